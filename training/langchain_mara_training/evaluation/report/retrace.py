"""Traces of a comparison's answers. A comparison does not store the agent's decisions, so answers are decoded again."""

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from langchain_mara import DecodingOptions, MaraLLM
from langchain_mara.exceptions import OptionsError
from langchain_mara.loading.models import AgentSource, load_agent
from langchain_mara.tracing.trace import Trace
from langchain_mara_training.evaluation.comparison import Comparison
from langchain_mara_training.evaluation.report.page import cases
from langchain_mara_training.storage.defaults import TRACES_SHOWN
from langchain_mara_training.storage.identity.job_identity import describe_llm

_FIELDS = (
    *("use_chat_template", "system_prompt", "special_tokens_in_messages", "stop_token_ids"),
    *DecodingOptions.model_fields,
)


def retrace(
    comparison: Comparison,
    agent: AgentSource,
    *,
    model: str | Path | None = None,
    device: str | torch.device | None = None,
    count: int = TRACES_SHOWN,
) -> dict[str, list[Trace]]:
    """Traces of a few answers of each system that decoded with an agent.

    The answers are to the prompts with the largest wins and losses against the baseline. An answer that comes out
    differently this time is left out; that can happen to drawn answers and, in half precision, to near-ties.

    Args:
        comparison: Comparison with a system that uses this agent.
        agent: A `MaraAgent`, a folder, a hub id, or `repo:file` on the hub.
        model: Folder or hub id of the policy model; by default the one used in the comparison.
        device: Device to decode on; by default CUDA if available.
        count: Largest number of answers per system.

    Returns:
        Traces by system name.

    Raises:
        OptionsError: If no system uses this agent, or the model's weights are not those of the comparison.
        LoadingError: If the model cannot be loaded.
        CheckpointError: If the agent is missing or not valid.
    """
    loaded = load_agent(agent)
    fingerprint = None if loaded is None else loaded.fingerprint
    described = comparison.config["systems"]
    systems = [
        name
        for name, description in described.items()
        if description.get("kind") == "decoding" and _fingerprint(description) == fingerprint
    ]
    if not systems:
        raise OptionsError(
            f"No system of this comparison decoded with this agent ({fingerprint}). Give the agent of a system."
        )
    source = model or described[systems[0]]["model_id"]
    llm = MaraLLM.from_model_id(source, agent=loaded, device=device)
    return {name: _traces(comparison, name, llm, described[name], count) for name in systems}


def _traces(comparison: Comparison, system: str, llm: MaraLLM, described: dict[str, Any], count: int) -> list[Trace]:
    options = {name: described[name] for name in _FIELDS if name in described} | {"stop": described["default_stop"]}
    configured = llm.model_copy(update=options)
    if describe_llm(configured)["model"] != described["model"]:
        raise OptionsError(f"The weights of {llm.model_id} are not those that {system} answered with. Give --model.")
    numbers = _informative_prompts(comparison, system, count)
    traces = configured.trace([comparison.prompts[number] for number in numbers])
    return [
        trace
        for trace, number in zip(traces, numbers, strict=True)
        if trace.text == comparison.answers[system][number].completion
    ]


def _informative_prompts(comparison: Comparison, system: str, count: int) -> list[int]:
    """Numbers of the prompts with the largest wins and losses; if there are too few, the first other prompts follow."""
    by_outcome = cases(comparison, system)
    wins, losses = by_outcome["wins"], by_outcome["losses"]
    losses = losses[: max(count // 2, count - len(wins))]
    chosen = [case.answer.number for case in (*wins[: count - len(losses)], *losses)]
    others = (number for number in range(len(comparison.prompts)) if number not in chosen)
    return [*chosen, *islice(others, count - len(chosen))]


def _fingerprint(description: Mapping[str, Any]) -> str | None:
    """The fingerprint of a system's agent, which stands before the digest of its settings; None without an agent."""
    agent = description.get("agent")
    return None if agent is None else str(agent).partition(" ")[0]
