"""Inputs that the jobs share: the policy model and the rows of data that a command's options name."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import datasets

from langchain_mara import MaraLLM
from langchain_mara.loading.models import load_agent
from langchain_mara.options import DEFAULTS
from langchain_mara_training import run_folder
from langchain_mara_training.data.readers import Row
from langchain_mara_training.data.row_report import RowReport
from langchain_mara_training.data.sources import HubOptions, OpenedSource

Options = Mapping[str, Any]
"""A command's options by name, as `run_folder.resolved` returns them."""
Values = dict[str, Any]
"""Results by name."""

BUNDLED_MODEL = "langchain-mara demo"
"""Name of the bundled model in model cards and agents."""
DECODING = {name: getattr(DEFAULTS, name) for name in ("top_k", "top_p", "max_new_tokens")}
"""Decoding options of the commands, and their defaults."""


def load_llm(options: Options, device: str | None, **fields: Any) -> MaraLLM:
    """Loads the policy model and the agent that a command's options name; by default the bundled model.

    Args:
        options: Options with `model` and perhaps `agent`, which may be a run folder.
        device: Device of the model.
        fields: Other fields of `MaraLLM`.

    Raises:
        TrainingError: If a run folder has no agent yet.
        MaraError: If the model or the agent cannot be loaded; see `MaraLLM.from_model_id`.
    """
    agent = options.get("agent")
    fields |= {"agent": None if agent is None else run_folder.agent_source(agent), "device": device}
    model = options["model"]
    return MaraLLM.demo(**fields) if model is None else MaraLLM.from_model_id(model, **fields)


def require_agent(options: Options) -> None:
    """Refuses an agent that cannot be loaded, before reward models and the policy model take their minutes.

    Args:
        options: Options with perhaps an `agent`, which may be a run folder.

    Raises:
        TrainingError: If a run folder has no agent yet.
        CheckpointError: If the agent is missing or not valid.
    """
    if options.get("agent") is not None:
        load_agent(run_folder.agent_source(options["agent"]))


def load_rows(options: Options, read: Callable[..., list[Row]]) -> list[Row]:
    """Loads the rows that a command's options name, without the progress bars of `datasets`.

    Args:
        options: Options with `data`, `split` and `limit`, and perhaps those of `hub_options`.
        read: Function that reads a split of a source.

    Raises:
        DataError: If the rows cannot be read.
    """
    with no_progress_bars():
        return read(options["data"], options["split"], **hub_options(options))[: options["limit"]]


def open_rows(options: Options) -> OpenedSource:
    """Opens the rows that a command's options name. They are read later, as they are needed.

    Args:
        options: Options with `data`, `split`, `limit` and `on_bad_row`, and perhaps those of `hub_options`.

    Raises:
        DataError: If there are no rows, or the first one cannot be read.
    """
    hub = HubOptions(options["split"], **hub_options(options))
    with no_progress_bars():
        source = OpenedSource(options["data"], hub, options["limit"], RowReport(options["on_bad_row"]))
        source.check_start()
    return source


def hub_options(options: Options) -> dict[str, Any]:
    """Which part of a data set on the hub a command's options name; only what was given.

    Args:
        options: Options, perhaps with `data_name`, `data_revision` and `streaming`.
    """
    names = {"name": "data_name", "revision": "data_revision", "streaming": "streaming"}
    return {name: options[option] for name, option in names.items() if options.get(option)}


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Turns the progress bars of `datasets` off while the context is open."""
    if datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()
