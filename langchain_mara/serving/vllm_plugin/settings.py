"""What server and request say about the agent: names, values and what cannot go together. Imports no vLLM."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from langchain_mara.agents.base import Agent
from langchain_mara.decoding.judging.rows import ROW_STRATEGIES
from langchain_mara.exceptions import AgentMismatchError, OptionsError
from langchain_mara.loading.models import load_agent
from langchain_mara.options import DecodingOptions, refuse_unknown

SECTION = "mara"
"""Name of our part of vLLM's `additional_config`."""
AGENT = "agent"
"""Name of the agent in it: a folder, hub id, or whatever else `load_agent` takes."""
OTHER_MODEL = "allow_other_model"
"""Name in it of whether the agent may have been trained on another model."""
ON = "mara"
"""Name by which a request says whether it is aligned."""
PREFIX = "mara_"
"""What the names of a request's other options begin with."""
GATE = "entropy_gate"
OPTION_NAMES = ("accept_threshold", "top_k", "top_p", "strategy", "strength", "fallback", GATE)
"""Options that server and requests may set. Each is that of `DecodingOptions`; `entropy_gate` is a threshold."""
_OFF_WORDS = {"0": False, "false": False, "off": False, "1": True, "true": True, "on": True}
_GREEDY_BELOW = 1e-5  # vLLM takes the largest logit below this temperature


class Served(NamedTuple):
    """What a server is started with.

    Attributes:
        agent: The look-ahead agent.
        defaults: Options for what a request does not say.
        allow_other_model: Whether the agent may have been trained on another model.
    """

    agent: Agent
    defaults: dict[str, Any]
    allow_other_model: bool


class Sampling(Protocol):
    """What is read of vLLM's `SamplingParams`."""

    temperature: float
    extra_args: dict[str, Any] | None
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float


def checked_config(config: Mapping[str, Any]) -> Served:
    """Loads the agent that a configuration names, and checks the rest.

    Args:
        config: Our part of vLLM's `additional_config`.

    Raises:
        OptionsError: If no agent is named, or an option is unknown or out of range.
        CheckpointError: If the agent cannot be loaded.
        AgentMismatchError: If it judges the state after a candidate.
    """
    options = dict(config)
    refuse_unknown(options, {AGENT, OTHER_MODEL, *OPTION_NAMES}, OPTION_NAMES)
    any_model, source = bool(options.pop(OTHER_MODEL, False)), options.pop(AGENT, None)
    agent = load_agent(source)
    if agent is None:
        raise OptionsError(
            "No agent is named. Start with `mara vllm MODEL --agent AGENT`, or give vLLM "
            'additional_config={"mara": {"agent": "…"}}.'
        )
    if agent.judges != "before":
        raise AgentMismatchError(
            f"{source} judges the state after a candidate, and vLLM shows only the state before it. Make a look-ahead "
            "agent of it with `mara distill`, or use `mara serve`."
        )
    defaults = {**agent_options(agent.recommended_options), **options}
    _checked(defaults, temperature=0.0)
    return Served(agent, defaults, any_model)


def agent_options(recommended: Mapping[str, Any]) -> dict[str, Any]:
    """Options that an agent recommends, under the names of this module.

    Args:
        recommended: The agent's `recommended_options`.

    Raises:
        OptionsError: If one of them does not exist in vLLM.
    """
    options = dict(recommended)
    if (gate := options.pop("gate", None)) is not None:
        gate = gate if isinstance(gate, Mapping) else gate.model_dump()
        if gate["kind"] != "entropy":
            raise OptionsError(
                "The agent recommends a trust gate, which looks back at earlier positions, and vLLM asks the agent of "
                "each position alone. Use MaraLLM or `mara serve`, or save the agent without this recommendation."
            )
        options[GATE] = gate["threshold"]
    if options.get("order") in ("descending", "sampled"):
        del options["order"]  # the temperature decides
    unknown = set(options) - {*OPTION_NAMES}
    if unknown:
        raise OptionsError(
            f"The agent recommends {', '.join(sorted(unknown))}, which cannot be set in vLLM. Use MaraLLM or "
            "`mara serve`, or save the agent without this recommendation."
        )
    return options


def request_options(params: Sampling, defaults: Mapping[str, Any]) -> DecodingOptions | None:
    """Options of a request, or None if it is plain.

    Args:
        params: The request's parameters.
        defaults: Options of the server and the agent, for what the request does not say.

    Raises:
        OptionsError: If an option is unknown, out of range, or contradicts the request's other parameters.
    """
    given = {k: v for k, v in (params.extra_args or {}).items() if k == ON or str(k).startswith(PREFIX)}
    named = [PREFIX + name for name in OPTION_NAMES]
    refuse_unknown(given, {ON, *named}, named)
    if not _is_on(given.pop(ON, True)):
        return None
    _refuse_what_comes_later(params)
    values = {**defaults, **{name.removeprefix(PREFIX): value for name, value in given.items()}}
    return _checked(values, params.temperature if params.temperature >= _GREEDY_BELOW else 0.0)


def _checked(values: Mapping[str, Any], temperature: float) -> DecodingOptions:
    threshold = values.get(GATE)
    options = DecodingOptions.parse(
        **{name: value for name, value in values.items() if name != GATE},
        temperature=temperature,
        order="sampled" if temperature else "descending",
        gate=None if threshold is None else {"kind": "entropy", "threshold": threshold},
    )
    _refuse_combinations(options)
    return options


def _is_on(value: Any) -> bool:
    word = str(value).lower()
    if word not in _OFF_WORDS:
        raise OptionsError(f"{ON}={value!r} should be 1 or 0: whether the request is aligned.")
    return _OFF_WORDS[word]


def _refuse_what_comes_later(params: Sampling) -> None:
    """Refuses what vLLM does to the logits after the agent has chosen; it would have no effect, or undo the choice."""
    later = {
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "thinking_token_budget": None,
    }
    set_to = {name: getattr(params, name, neutral) for name, neutral in later.items()}
    set_to = {name: value for name, value in set_to.items() if value != later[name]}
    if set_to:
        said = ", ".join(f"{name}={value}" for name, value in set_to.items())
        raise OptionsError(
            f"{said}: vLLM applies this after the agent has chosen, so an aligned request cannot have it. Leave it "
            f"out, or send {ON}=0. If the model's generation_config.json sets it, start vLLM with "
            "--generation-config vllm."
        )


def _refuse_combinations(options: DecodingOptions) -> None:
    if options.strategy not in ROW_STRATEGIES:
        raise OptionsError(
            f"{PREFIX}strategy={options.strategy!r} draws tokens itself, and vLLM does the drawing here. Take one of "
            f"{', '.join(ROW_STRATEGIES)}; with a temperature above 0, the first draws among the accepted candidates."
        )
    if options.order == "sampled" and options.fallback != 0:
        raise OptionsError(
            f"{PREFIX}fallback={options.fallback} counts candidates in order of examination, and with a temperature "
            "vLLM draws without an order. Leave it out, or set the temperature to 0."
        )
