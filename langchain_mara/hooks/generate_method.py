"""Puts accept/reject decoding into a model's own `generate`, for callers who cannot name a `custom_generate`."""

from collections.abc import Callable
from functools import partial
from typing import Any

from transformers import GenerationMixin, PreTrainedModel, StoppingCriteriaList, StopStringCriteria

from langchain_mara.agents.base import Agent
from langchain_mara.custom_generate import mara_generate
from langchain_mara.exceptions import OptionsError

_CONTINUOUS = ("generate_batch", "init_continuous_batching", "continuous_batching_context_manager")


def replace_generate(model: PreTrainedModel, agent: Agent | None, **options: Any) -> None:
    """Makes `model.generate` decode with accept/reject, whoever calls it: `transformers serve`, a pipeline, a trainer.

    Stop strings work as in plain `generate`, if the caller gives the tokenizer. Transformers' continuous batching has
    a loop of its own, which would leave the agent out without a word, so the model then refuses it.

    Args:
        model: The model to change.
        agent: Agent that accepts or rejects candidates; None decodes without an agent.
        **options: Other arguments of `mara_generate`. Those that a caller gives as well, such as `top_k`, are the
            caller's.
    """
    changed: Any = model
    changed.generate = partial(_generate, model, {"agent": agent, **options})
    for name in _CONTINUOUS:
        if hasattr(model, name):
            setattr(changed, name, _refused(name))


def _generate(model: PreTrainedModel, options: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    if kwargs.get("cache_implementation") == "paged":
        raise _continuous_batching_error("cache_implementation='paged'")
    generate: Any = GenerationMixin.generate
    return generate(model, *args, custom_generate=mara_generate, **{**options, **_with_stop_criteria(kwargs)})


def _with_stop_criteria(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments with stop strings as a criterion: `generate` hands the tokenizer to no `custom_generate`."""
    config, tokenizer = kwargs.get("generation_config"), kwargs.get("tokenizer")
    strings = kwargs.get("stop_strings") or getattr(config, "stop_strings", None)
    if not strings or tokenizer is None:
        return kwargs
    criterion = StopStringCriteria(tokenizer, strings)
    changed = {name: value for name, value in kwargs.items() if name != "stop_strings"}
    changed["stopping_criteria"] = StoppingCriteriaList([*(kwargs.get("stopping_criteria") or ()), criterion])
    if config is not None:
        changed["generation_config"] = type(config).from_dict({**config.to_dict(), "stop_strings": None})
    return changed


def _refused(name: str) -> Callable[..., Any]:
    def refuse(*_args: Any, **_kwargs: Any) -> Any:
        raise _continuous_batching_error(name)

    return refuse


def _continuous_batching_error(asked: str) -> OptionsError:
    return OptionsError(
        f"{asked} asks for transformers' continuous batching, which would decode without the agent. Use generate "
        "(`transformers serve` without --continuous-batching), or `mara serve`, which batches with the agent."
    )
