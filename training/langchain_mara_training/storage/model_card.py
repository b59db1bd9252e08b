"""Saves agents with a model card that says how they were trained."""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from langchain_mara.agents.base import Agent
from langchain_mara.untrusted import markdown
from langchain_mara_training.storage.atomic import explained

_ABSOLUTE_PATH = re.compile(r"^(?P<prefix>[a-z]+:)?(?P<path>/.*|[A-Za-z]:[\\/].*)$", re.DOTALL)

Sections = Mapping[str, Mapping[str, Any]]
"""Tables of a model card by title; each table maps names to values."""


def save_agent(agent: Agent, folder: Path, sections: Sections) -> None:
    """Saves an agent completely or not at all, and replaces the agent that was there.

    Args:
        agent: Agent to save.
        folder: Folder of the agent; it and its parents are created.
        sections: Tables of the model card. Values of None are left out, and paths are cut to the file name.

    Raises:
        TrainingError: If the disk is full. The agent that was there stays.
        CheckpointError: If the disk is full or a weight is not finite. The agent that was there stays.
    """
    new, old = (folder.with_name(f".{folder.name}.{suffix}") for suffix in ("new", "old"))
    shutil.rmtree(new, ignore_errors=True)
    if old.exists() and not folder.exists():
        old.rename(folder)  # a process was killed between the two renamings below
    shutil.rmtree(old, ignore_errors=True)
    tables = [_section(title, values) for title, values in sections.items()]
    card = "\n\n".join([str(agent.generate_model_card()).rstrip(), *tables]) + "\n"
    try:
        with explained(folder, sum(tensor.nbytes for tensor in agent.state_dict().values()) + len(card.encode())):
            agent.save_pretrained(new)
            (new / "README.md").write_text(card, encoding="utf-8")
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def _section(title: str, values: Mapping[str, Any]) -> str:
    shown_values = {name.replace("_", " "): shown(value) for name, value in values.items() if value is not None}
    rows = [f"| {markdown(name)} | {markdown(value)} |" for name, value in shown_values.items()]
    return "\n".join([f"## {title}", "", "| | |", "|---|---|", *rows])


def shown(value: Any) -> str:
    """A value on one line, fit for publication: paths are cut to the file name."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name.replace('_', ' ')} {shown(item)}" for name, item in value.items() if item is not None)
    if isinstance(value, list):
        return ", ".join(map(shown, value))
    if isinstance(value, float):
        return f"{value:.4g}"
    # A full path reveals the author's machine, also after a prefix such as "pairs:".
    return " ".join(
        _ABSOLUTE_PATH.sub(lambda match: (match["prefix"] or "") + Path(match["path"]).name, str(value)).split()
    )
