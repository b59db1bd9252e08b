"""The identity of a job: everything its results depend on, by name. The one place that computes it for all jobs.

A resumed job must have the identity of the job that began. Reward functions are identified by what they compute, see
`content_digest`, not by their names.
"""

import json
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from langchain_mara import DecodingOptions
from langchain_mara._base import LocalModel
from langchain_mara.exceptions import RewardError, TrainingError
from langchain_mara.text.chat_template import eos_token_ids
from langchain_mara_training.storage.identity.content_digest import digest
from langchain_mara_training.storage.records import Config, dump, read_sealed, write_sealed

_UNKNOWN = "unknown: "
# What LangChain's description of an LLM holds beyond what one answer depends on; jobs set the seed of each answer.
_NOT_OF_AN_ANSWER = {"seed", "n", "include_accept_probabilities", "_type"}
_ONLY_WITH_AN_AGENT = {"accept_action", "accept_threshold", "fallback", "gate", "strength"}


@runtime_checkable
class Weighted(Protocol):
    """Reward functions with their names and weights, as `WeightedRewards` holds them."""

    functions: list[Callable[..., Any]]
    weights: Any

    @property
    def names(self) -> list[str]:
        """A name for each function."""


def describe_llm(llm: LocalModel) -> Config:
    """Everything that an LLM's answers depend on except prompt and seed: weights, agent, tokenizer, template, options.

    Args:
        llm: The LLM. The options of an agent are left out if it has none.
    """
    left_out = _NOT_OF_AN_ANSWER | (_ONLY_WITH_AN_AGENT if llm.agent is None else set())
    described = {name: value for name, value in llm.dict().items() if name not in left_out}
    return described | {
        "weights": digest(llm.model),
        "dtype": str(llm.model.dtype).removeprefix("torch."),
        "tokenizer": digest(llm.tokenizer),
        "end_tokens": sorted(eos_token_ids(llm.model, llm.tokenizer)),
        "transformers": version("transformers").partition(".")[0],
    }


def describe_policy(llm: LocalModel, *options: str) -> Config:
    """What depends on the policy model alone: its weights, tokenizer, template and system prompt.

    Args:
        llm: The LLM; its agent is left out.
        *options: Names of the decoding options that count, too.
    """
    left_out = {"agent", "model_id", "default_stop", *DecodingOptions.model_fields} - set(options)
    return {name: value for name, value in describe_llm(llm).items() if name not in left_out}


def describe_rewards(rewards: Weighted) -> Config:
    """The `weight` of each reward function and a digest of what it computes, its `code`, by the function's name.

    An attribute `version` of a function replaces the digest of its code, for functions whose state cannot be read. A
    function that is itself a sum is described by its own functions.
    """
    described = zip(rewards.names, rewards.functions, rewards.weights.tolist(), strict=True)
    return {name: {"weight": weight, "code": _code_of(function)} for name, function, weight in described}


def require_known(identity: Mapping[str, Any]) -> None:
    """Refuses a job that could not be told from another.

    Args:
        identity: Identity of a job that keeps its results.

    Raises:
        RewardError: If a reward function has no digest.
    """
    for name, value in identity.items():
        if isinstance(value, Mapping):
            code = str(value.get("code", ""))
            if not is_known(code):
                raise RewardError(
                    f"The reward function {name} cannot be told from others: {code.removeprefix(_UNKNOWN)}. Give it an "
                    f"attribute, such as {name}.version = '1', and change that whenever its rewards change; or wrap it "
                    "in a function of your own that has one."
                )
            require_known(value)


def is_known(code: str) -> bool:
    """Whether the `code` of a reward function, see `describe_rewards`, tells it from all others."""
    return not code.startswith(_UNKNOWN)


def claim(file: Path, identity: Mapping[str, Any], has_results: Callable[[], bool]) -> None:
    """Writes the identity of a job to its folder, or checks that the folder holds the same one.

    Args:
        file: File of the identity; its folder is created if it is missing.
        identity: Identity of the job.
        has_results: Whether the folder holds results. Without the file, nobody can tell of which job they are.

    Raises:
        TrainingError: If the folder holds another job, or the file is lost or damaged.
        RewardError: If a reward function has no digest.
    """
    require_known(identity)
    folder = file.parent
    folder.mkdir(parents=True, exist_ok=True)
    # Another process of the same job may write the file at any time, but always before its first result.
    if has_results() and not file.exists():
        raise TrainingError(
            f"{folder} holds results, but {file.name}, which says what they were made from, is missing. Put it back, "
            "or give another folder."
        )
    if not file.exists():
        write_sealed(file, identity)
        return
    stored = read_sealed(file, "Nobody can tell what the results in its folder were made from. Give another folder.")
    if differing := differences(stored, identity):
        raise TrainingError(
            f"{folder} holds the results of another job; different: {', '.join(differing)}. Give another folder, or "
            "what that job began with."
        )


def differences(stored: Mapping[str, Any], now: Mapping[str, Any], ignored: Iterable[str] = ()) -> list[str]:
    """What differs between two identities: dotted names, each with its value there and its value now.

    Args:
        stored: Identity of the job that began.
        now: Identity of the job that would resume it.
        ignored: Names, at any depth, that may differ.
    """
    return list(_differences(json.loads(dump(stored)), json.loads(dump(now)), set(ignored), ""))


def _code_of(function: Callable[..., Any]) -> str:
    if isinstance(function, Weighted):
        described = describe_rewards(function)
        unknown = [inner["code"] for inner in described.values() if not is_known(inner["code"])]
        return str(unknown[0]) if unknown else f"sum {digest(described)}"
    explicit = getattr(function, "version", None)
    if isinstance(explicit, str | int | float):
        return f"version {explicit}"
    try:
        if isinstance(function, types.BuiltinFunctionType):
            raise TypeError("it is written in C")  # noqa: TRY301 - the same answer as for its parts
        return digest(function)
    except (TypeError, RecursionError) as error:
        return f"{_UNKNOWN}{error}"


def _differences(stored: Config, now: Config, ignored: set[str], within: str) -> Iterator[str]:
    for name in sorted({*stored, *now} - ignored):
        there, here = stored.get(name), now.get(name)
        if isinstance(there, dict) and isinstance(here, dict):
            yield from _differences(there, here, ignored, f"{within}{name}.")
        elif there != here:
            yield f"{within}{name} ({_shown(there)} there, {_shown(here)} now)"


def _shown(value: Any) -> str:
    return "nothing" if value is None else dump(value)[:60]
