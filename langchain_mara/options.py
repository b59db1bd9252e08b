"""Decoding options and batch settings. Every default of the library is defined here, and only here."""

import warnings
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from reprlib import Repr
from typing import Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from langchain_mara.exceptions import OptionsError
from langchain_mara.gates.kinds import Gate

Order = Literal["descending", "reversed", "top-1-last", "sampled"]
"""Order in which the agent examines candidates."""
Strategy = Literal["first-accept", "max-prob", "random", "sampled", "guided"]
"""Which candidate is emitted."""

SYNONYMS = {
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "stop_sequences": "stop",
}
"""Option names of LangChain's chat models and of hosted models, and the same options in this library."""

# Python's own filters forget what was shown whenever any library changes them for a moment.
_told: set[tuple[str, str]] = set()

_REPR = Repr()
_REPR.maxlevel, _REPR.maxlong, _REPR.maxstring, _REPR.maxother = 3, 60, 200, 200

DEFAULT_AGENT_WIDTH = 1024
"""Units of a state agent's first hidden layer, as in the paper."""
DEFAULT_LOOK_AHEAD_WIDTH = 256
"""Units of a look-ahead agent's first hidden layer."""
DEFAULT_LOOK_AHEAD_RANK = 64
"""Rank of the matrix through which a look-ahead agent reads a token's embedding."""
DEFAULT_QUEUE_SIZE = 4096
"""Most requests that may wait for a loaded model."""


def _plain_number(value: Any) -> Any:
    """A number of NumPy or PyTorch as Python's, which pydantic can check; anything else as it is."""
    return value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value


class DecodingFields(BaseModel):
    """The fields of `DecodingOptions`, which the LangChain classes share. The defaults are the paper's."""

    _plain_numbers = field_validator(
        "top_k", "top_p", "temperature", "strength", "accept_threshold", "accept_action", "fallback", "max_new_tokens",
        "min_new_tokens", "seed", mode="before",
    )(_plain_number)  # fmt: skip

    top_k: int = Field(default=40, ge=1)
    """Most candidates at a position."""
    top_p: float = Field(default=0.95, gt=0, le=1)
    """Nucleus mass of the renormalized top-k candidates."""
    order: Order = "descending"
    """Order in which the agent examines candidates: `descending`, `reversed`, `top-1-last` or `sampled`."""
    temperature: float = Field(default=1.0, ge=0)
    """Temperature of the `sampled` order, which is `descending` at 0. Other orders ignore it. `MaraLLM` and `ChatMara`
    understand a temperature above 0 that is given without an order as a wish for samples: `order` becomes `sampled`."""
    strategy: Strategy = "first-accept"
    """Which candidate is emitted. Of the accepted ones: `first-accept`, `max-prob` (the one with the highest accept
    probability), or `random` (drawn uniformly). With no threshold: `sampled` (each candidate in turn is accepted with
    its accept probability), or `guided` (probability and accept probability are weighed against each other by
    `strength`; in the `sampled` order the candidate is drawn, otherwise the best is taken)."""
    strength: float = Field(default=0.9, ge=0, le=1)
    """Weight of the agent in the `guided` strategy: of p(c)^(1-s) a(c)^s, p is the model's probability of a candidate
    and a its accept probability. 0 is the plain model, 1 the agent's choice among the candidates. Accept probabilities
    differ far less between candidates than the model's probabilities do, so useful values are near 1."""
    accept_threshold: float = Field(default=0.5, ge=0, le=1)
    """A candidate is accepted if its accept probability is above this; 0.5 is the paper's argmax."""
    accept_action: Literal[0, 1] = 1
    """The agent's action that means accept; 0 swaps accept and reject, as a control experiment."""
    gate: Gate | None = None
    """Where the agent is asked: an `EntropyGate` or a `TrustGate`, or a dictionary such as
    `{"kind": "entropy", "threshold": 2.0}`. At skipped positions the first candidate is emitted. None asks the agent
    everywhere."""
    fallback: int = 0
    """Index, in order of examination, of the candidate to emit if all are rejected. Negative values count from the end,
    and values beyond the set are clamped. In `reversed` order it counts the other way round, so that 0 is the most
    probable candidate there, too, as in the reference."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Most tokens of an answer, including the EOS."""
    min_new_tokens: int = Field(default=0, ge=0)
    """Least tokens of an answer: before this many, the EOS is not a candidate."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the `sampled` order and of the `random` and `sampled` strategies. No other prompt in a batch changes the
    draws."""


class DecodingOptions(DecodingFields):
    """How one prompt is decoded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def fallback_index(self, count: int) -> int:
        """Index, in order of examination, of the candidate to emit if all `count` candidates are rejected."""
        index = min(self.fallback, count - 1) if self.fallback >= 0 else max(self.fallback + count, 0)
        return count - 1 - index if self.order == "reversed" else index

    @classmethod
    def parse(cls, **values: Any) -> Self:
        """Creates options and turns pydantic's report of an error into one readable sentence.

        Args:
            **values: Fields of this class.

        Raises:
            OptionsError: If a field is unknown or out of range.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            raise options_error(error, cls.model_fields) from None


DEFAULTS = DecodingOptions()
"""The default decoding options."""


class BatchConfig(NamedTuple):
    """Batch settings, which change speed and memory but never results. Only requests with equal settings share a batch.

    Attributes:
        batch_size: Most sequences that are decoded at a time.
        width: Most siblings of a sequence in one pass; None chooses the width of every pass by measured times.
        prefix_memory: Most bytes of keys and values to keep for prompts that begin like earlier ones.
        draft: Most drafted tokens of a sequence in one pass.
        compile: Whether passes over siblings run as compiled graphs.
    """

    batch_size: int = 8
    width: int | None = None
    prefix_memory: int = 512 * 2**20
    draft: int = 0
    compile: bool = False


BATCH_DEFAULTS = BatchConfig()
"""The default batch settings."""


class BatchFields(BaseModel):
    """The fields of `BatchConfig`, which the LangChain classes share."""

    _plain_numbers = field_validator("batch_size", "width", "draft", "prefix_memory", mode="before")(_plain_number)

    batch_size: int = Field(default=BATCH_DEFAULTS.batch_size, ge=1)
    """Most prompts in one pass. Calls with equal batch settings share passes."""
    width: int | None = Field(default=BATCH_DEFAULTS.width, ge=1)
    """Most siblings of a prompt in one pass. By default it is chosen for each pass, by measured times of passes on this
    device and by how early the agent accepts. A fixed width makes rounding repeatable from run to run."""
    draft: int = Field(default=BATCH_DEFAULTS.draft, ge=0)
    """Most tokens to draft in one pass: what followed the last tokens when they occurred before, in the prompt or the
    answer. This is faster if answers repeat their prompts (edits, summaries, code); 0 drafts nothing."""
    compile: bool = BATCH_DEFAULTS.compile
    """Whether passes over siblings run as compiled graphs. On CUDA they are recorded and replayed, which is faster if
    launching the kernels of a small model takes longer than running them. The first passes of each shape take many
    seconds."""
    prefix_memory: int = Field(default=BATCH_DEFAULTS.prefix_memory, ge=0)
    """Most bytes of keys and values to keep, on the model's device, for prompts that begin like earlier ones. The
    largest value among the calls to a loaded model counts; a call with 0 neither reads nor keeps any."""


class PromptFields(BaseModel):
    """Fields that the LangChain classes share and that say how a prompt becomes token ids."""

    special_tokens_in_messages: bool = False
    """Whether special tokens in the texts of messages count, so that a message can begin another turn. By default they
    are encoded as the letters they consist of. A prompt without chat template is always encoded with them."""


def _never_none() -> frozenset[str]:
    """Options for which None means the value that holds without them."""
    fields = {**DecodingFields.model_fields, **BatchFields.model_fields, **PromptFields.model_fields}
    others = ("n", "queue_size", "include_accept_probabilities", "model_id")
    return frozenset({name for name, field in fields.items() if field.default is not None}.union(others))


def options_error(error: ValidationError, known: Iterable[str]) -> OptionsError:
    """Turns a pydantic report into an error of one sentence, which suggests a known name for each unknown one.

    Args:
        error: Report of pydantic.
        known: Names that exist.
    """
    parts = []
    for item in error.errors():
        name = ".".join(str(part) for part in item["loc"]) or "arguments"
        if item["type"] == "extra_forbidden":
            parts.append(f"{name} is unknown{_suggestion(name, known)}")
        elif item["type"] == "missing":
            parts.append(f"{name} is required")
        else:
            message = item["msg"].replace("Input should", "should").removeprefix("Value error, ")
            parts.append(f"{name}={_brief(item['input'])} {message}")
    return OptionsError("Invalid options: " + "; ".join(parts) + ".")


def refuse_unknown(given: Iterable[str], allowed: Iterable[str], known: Iterable[str]) -> None:
    """Refuses names that are not allowed, and suggests a known name for each.

    Args:
        given: Names to check.
        allowed: Names that are allowed.
        known: Names to suggest from.

    Raises:
        OptionsError: If any name is not allowed; the message lists all of them.
    """
    unknown = sorted(set(given) - set(allowed))
    if unknown:
        faults = "; ".join(f"{name} is unknown{_suggestion(name, known)}" for name in unknown)
        raise OptionsError(f"Invalid options: {faults}.")


def canonical(kwargs: Mapping[str, Any], order: Order = DEFAULTS.order) -> dict[str, Any]:
    """Arguments under this library's names instead of LangChain's; a temperature above 0 alone asks for samples.

    None is left out where it is no value of the option, and where the option is given under its other name.

    Args:
        kwargs: Arguments under either name.
        order: The order before. Only the default one, `descending`, becomes `sampled`.

    Raises:
        OptionsError: If an argument is given under both names.
    """
    given = {SYNONYMS.get(name, name) for name, value in kwargs.items() if value is not None} | _never_none()
    kwargs = {
        name: value for name, value in kwargs.items() if value is not None or SYNONYMS.get(name, name) not in given
    }
    names: dict[str, list[str]] = {}
    for name in kwargs:
        names.setdefault(SYNONYMS.get(name, name), []).append(name)
    # The library's own name comes last.
    given_twice = [" and ".join(sorted(same, key=lambda name: name in names)) for same in names.values() if same[1:]]
    if given_twice:
        raise OptionsError(f"Invalid options: {'; '.join(given_twice)} mean the same. Give one of them.")
    named = {SYNONYMS.get(name, name): value for name, value in kwargs.items()}
    temperature = _plain_number(named.get("temperature"))
    asks_for_samples = isinstance(temperature, int | float) and temperature > 0
    if asks_for_samples and "order" not in named and order == DEFAULTS.order:
        named["order"] = "sampled"
    return named


def warn_of_no_effect(fields: DecodingFields, given: Iterable[str]) -> None:
    """Warns of options that do nothing together with the other ones, once in a process.

    Args:
        fields: All options, checked.
        given: Names of those that the caller has just given.

    Raises:
        UserWarning: Where warnings are errors.
    """
    given = set(given)
    if given.issuperset(DecodingFields.model_fields):  # a copy, in which nobody has just given them
        return
    without = {
        f"order={fields.order!r}": ["temperature"] if fields.order != "sampled" and fields.temperature else [],
        f"strategy={fields.strategy!r}": _unread(fields.strategy),
        "no agent": [
            name
            for name in ("accept_threshold", "accept_action", "fallback", "strength", "gate")
            if getattr(fields, "agent", fields) is None and getattr(fields, name) != getattr(DEFAULTS, name)
        ],
    }
    for reason, names in without.items():
        for name in sorted(given.intersection(names)):
            if (name, reason) not in _told:
                text = f"{name}={getattr(fields, name)!r} has no effect with {reason}. Leave one of them out."
                # LangChain lies between here and the caller, so no stack level would name the caller's line.
                warnings.warn(text, stacklevel=2)
                _told.add((name, reason))


def _unread(strategy: Strategy) -> list[str]:
    """Options that a strategy ignores."""
    ignores_threshold = ["accept_threshold"] if strategy in ("sampled", "guided") else []
    return [*ignores_threshold, *([] if strategy == "guided" else ["strength"])]


def _brief(value: Any) -> str:
    """A value in a message, which others may have made large."""
    try:
        return _REPR.repr(value)
    except ValueError:
        return "a number of many digits"


def _suggestion(name: str, known: Iterable[str]) -> str:
    close = get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""
