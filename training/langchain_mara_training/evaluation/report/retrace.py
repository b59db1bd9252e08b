"""Traces of a comparison's answers: what the agent decided is not kept, so a few of them are decoded again."""

from pathlib import Path
from typing import Any

import torch

from langchain_mara import DecodingOptions, MaraLLM
from langchain_mara.exceptions import OptionsError
from langchain_mara.loading.models import AgentSource, load_agent
from langchain_mara.tracing.trace import Trace
from langchain_mara_training.evaluation.comparison import Comparison
from langchain_mara_training.evaluation.report.page import cases
from langchain_mara_training.evaluation.systems import describe_llm
from langchain_mara_training.storage.defaults import TRACES_SHOWN

_FIELDS = ("use_chat_template", "system_prompt", *DecodingOptions.model_fields)


def retrace(
    comparison: Comparison,
    agent: AgentSource,
    *,
    model: str | Path | None = None,
    device: str | torch.device | None = None,
    count: int = TRACES_SHOWN,
) -> dict[str, list[Trace]]:
    """Traces of a few answers of each system that an agent decided.

    They are answers to the prompts on which the system gained and lost most against the baseline. Those that come out
    otherwise this time are left out: answers that were drawn, and in half precision near-ties.

    Args:
        comparison: That has a system with this agent.
        agent: A `MaraAgent`, a folder, a hub id, or `repo:file` on the hub.
        model: Where to load the policy model from; by default from where it was.
        device: By default CUDA where there is one.
        count: Most answers of a system.

    Raises:
        OptionsError: If no system has this agent, or the model gives other answers than in the comparison.
        LoadingError: If the model cannot be loaded.
        CheckpointError: If there is no valid agent.
    """
    loaded = load_agent(agent)
    fingerprint = None if loaded is None else loaded.fingerprint
    described = comparison.config["systems"]
    systems = [
        name for name, one in described.items() if (one.get("kind"), one.get("agent")) == ("decoding", fingerprint)
    ]
    if not systems:
        raise OptionsError(f"No system of this comparison was decoded with this agent ({fingerprint}). Give another.")
    source = model or described[systems[0]]["model_id"]
    llm = MaraLLM.from_model_id(source, agent=loaded, device=device)
    return {name: _traces(comparison, name, llm, described[name], count) for name in systems}


def _traces(comparison: Comparison, system: str, llm: MaraLLM, described: dict[str, Any], count: int) -> list[Trace]:
    options = {name: described[name] for name in _FIELDS if name in described} | {"stop": described["default_stop"]}
    same = llm.model_copy(update=options)
    if describe_llm(same)["model"] != described["model"]:
        raise OptionsError(f"The weights of {llm.model_id} are not those that {system} answered with. Give --model.")
    places = _telling(comparison, system, count)
    traces = same.trace([comparison.prompts[place] for place in places])
    return [
        one
        for one, place in zip(traces, places, strict=True)
        if one.text == comparison.answers[system][place].completion
    ]


def _telling(comparison: Comparison, system: str, count: int) -> list[int]:
    """Numbers of the prompts of the largest losses and wins, some of each, or else the first ones."""
    found = cases(comparison, system)
    losses = found["losses"][: max(count // 2, count - len(found["wins"]))]
    chosen = [case.answer.number for case in (*found["wins"][: count - len(losses)], *losses)]
    rest = (place for place in range(len(comparison.prompts)) if place not in chosen)
    return [*chosen, *(place for _, place in zip(range(count - len(chosen)), rest, strict=False))]
