"""What `mara label`, `mara fit` and `mara evaluate` do, behind their options: the library's parts on a run folder."""

from collections.abc import Callable, Mapping
from typing import Any

import datasets

from langchain_mara import MaraLLM
from langchain_mara.options import DEFAULTS
from langchain_mara_training import run_folder
from langchain_mara_training.data.readers import Row

Options = Mapping[str, Any]
"""A command's options by name, as `run_folder.resolved` gives them."""
Values = dict[str, Any]
"""Results by name."""

EMBEDDED = "langchain-mara demo"
DECODING = {name: getattr(DEFAULTS, name) for name in ("top_k", "top_p", "max_new_tokens")}
"""Decoding options of the commands, and their defaults."""


def load_llm(options: Options, device: str | None, **fields: Any) -> MaraLLM:
    """The policy model and agent that a command's options name; the embedded model where they name none.

    Args:
        options: With `model` and perhaps `agent`, which may be a run folder.
        device: Where to compute.
        fields: Other fields of `MaraLLM`.

    Raises:
        TrainingError: If a run folder has no agent yet.
        MaraError: As `MaraLLM.from_model_id` does.
    """
    agent = options.get("agent")
    fields |= {"agent": None if agent is None else run_folder.agent_source(agent), "device": device}
    model = options["model"]
    return MaraLLM.demo(**fields) if model is None else MaraLLM.from_model_id(model, **fields)


def load_rows(options: Options, read: Callable[[str, str], list[Row]]) -> list[Row]:
    """The rows that a command's options name.

    Args:
        options: With `data`, `split` and `limit`.
        read: Reads a source and its split.

    Raises:
        DataError: If they cannot be read.
    """
    datasets.disable_progress_bars()
    return read(options["data"], options["split"])[: options["limit"]]
