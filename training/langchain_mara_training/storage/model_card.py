"""Saves agents with a model card that says how they came to be."""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from langchain_mara import MaraAgent

_ABSOLUTE_PATH = re.compile(r"^(?P<prefix>[a-z]+:)?(?P<path>/.*|[A-Za-z]:[\\/].*)$", re.DOTALL)

Sections = Mapping[str, Mapping[str, Any]]
"""Tables of a card by their titles."""


def save_agent(agent: MaraAgent, folder: Path, sections: Sections) -> None:
    """Saves an agent, whole or not at all, in place of the one that may be there.

    Args:
        agent: What was fitted.
        folder: Made, with those above it.
        sections: For its card; values that are None are left out, and of paths all but the name.
    """
    new, old = (folder.with_name(f".{folder.name}.{one}") for one in ("new", "old"))
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    agent.save_pretrained(new)
    tables = [_section(title, values) for title, values in sections.items()]
    card = "\n\n".join([str(agent.generate_model_card()).rstrip(), *tables]) + "\n"
    (new / "README.md").write_text(card, encoding="utf-8")
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _section(title: str, values: Mapping[str, Any]) -> str:
    rows = [f"| {name.replace('_', ' ')} | {_cell(value)} |" for name, value in values.items() if value is not None]
    return "\n".join([f"## {title}", "", "| | |", "|---|---|", *rows])


def _cell(value: Any) -> str:
    return shown(value).replace("|", "\\|")


def shown(value: Any) -> str:
    """A value on one line of a text that may be published; of paths the name alone."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name.replace('_', ' ')} {shown(one)}" for name, one in value.items() if one is not None)
    if isinstance(value, list):
        return ", ".join(map(shown, value))
    if isinstance(value, float):
        return f"{value:.4g}"
    # A path tells of its author's machine, also after a prefix such as "pairs:".
    return " ".join(
        _ABSOLUTE_PATH.sub(lambda match: (match["prefix"] or "") + Path(match["path"]).name, str(value)).split()
    )
