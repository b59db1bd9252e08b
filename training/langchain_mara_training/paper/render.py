"""Tables beside the paper's: the same cells for the terminal, as Markdown and as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from langchain_mara_training.evaluation.preference_rate import Preference
from langchain_mara_training.evaluation.report.page import markdown
from langchain_mara_training.paper.paper_tables import TableNumber, TableRow
from langchain_mara_training.paper.settings import Figures, PaperFigures, Rival, TableSettings
from langchain_mara_training.storage.atomic import write_atomically
from langchain_mara_training.storage.records import dump

_TITLES = {
    "1": "MARA against the upstream model",
    "2": "MARA against RLHF, DPO and Aligner",
    "3": "Agents of other models against the inference model",
}
_OTHERS = {"1": "", "2": "against ", "3": "agent of "}
_NOTE = "Wins minus losses over all prompts, in percentage points, with 95 % intervals; paper: what it reports."
_NOTHING = "-"


@dataclass(frozen=True)
class Line:
    """A line of a table.

    Attributes:
        label: Model, and rival or agent; or what is averaged.
        measured: By data set: a preference rate with its interval; of averages the rate alone.
        paper: By data set what the paper reports, in percentage points.
    """

    label: str
    measured: Mapping[str, Preference | float]
    paper: Figures


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper, measured again.

    Attributes:
        number: Of the table.
        settings: It was measured with.
        prompts: How many, by data set.
        rows: What was measured.
    """

    number: TableNumber
    settings: TableSettings
    prompts: dict[str, int]
    rows: list[TableRow]

    @property
    def title(self) -> str:
        """Above the table."""
        return f"Table {self.number}: {_TITLES[self.number]}"

    @property
    def note(self) -> str:
        """Below the table."""
        counts = ", ".join(f"{count} of {name}" for name, count in self.prompts.items())
        return f"{_NOTE} Prompts: {counts}."

    @property
    def problems(self) -> list[str]:
        """Why cells are empty, a sentence or two for each row."""
        return [f"{self._label(row)}: {row.problem}" for row in self.rows if row.problem is not None]

    def lines(self) -> list[Line]:
        """The rows, and below them their averages."""
        paper = self.settings.paper
        own = paper.upstream if self.number == "1" else {}
        rows = [Line(self._label(row), row.cells, own.get(row.model, {})) for row in self.rows]
        return rows + self._averages(paper)

    def cells(self) -> list[list[str]]:
        """Text of all cells, headers first: label, and of each data set what was measured and what the paper has."""
        headers = ["", *(text for name in self.prompts for text in (name, "paper"))]
        return [headers, *([line.label, *_texts(line, self.prompts)] for line in self.lines())]

    def write(self, output: Path, command: str) -> list[Path]:
        """Writes `table.json` and `table.md`, each whole or not at all.

        Args:
            output: A folder that is there.
            command: That repeats it, for the Markdown.
        """
        files = {output / "table.json": dump(self.as_json(), indent=2), output / "table.md": self._markdown(command)}
        for file, text in files.items():
            write_atomically(file, f"{text}\n".encode())
        return list(files)

    def as_json(self) -> dict[str, Any]:
        """Plain values: everything but what a clock or the machine says."""
        rows = [
            {**row._asdict(), "cells": {name: one._asdict() for name, one in row.cells.items()}} for row in self.rows
        ]
        averages = [
            {"label": line.label, "cells": dict(line.measured), "paper": line.paper}
            for line in self._averages(self.settings.paper)
        ]
        return {
            "table": self.number,
            "prompts": self.prompts,
            "rows": rows,
            "averages": averages,
            "settings": self.settings.model_dump(),
        }

    def _markdown(self, command: str) -> str:
        headers, *rows = [[markdown(text) for text in cells] for cells in self.cells()]
        lines = [headers, ["---", *["---:"] * (len(headers) - 1)], *rows]
        table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
        problems = "\n".join(f"- {markdown(one)}" for one in self.problems)
        parts = [f"# {self.title}", "Made by", f"    {command}", table, self.note, problems]
        return "\n\n".join(filter(None, parts))

    def _label(self, row: TableRow) -> str:
        return row.model if row.other is None else f"{row.model}, {_OTHERS[self.number]}{row.other}"

    def _averages(self, paper: PaperFigures) -> list[Line]:
        whole = [row for row in self.rows if row.problem is None]
        if self.number == "1":
            figures = [paper.upstream.get(row.model, {}) for row in whole]
            return [_average("", whole, _means(figures) if all(figures) else {})]
        if self.number == "2":
            return [
                _average(
                    f"against {rival}, ", [row for row in whole if row.other == rival], paper.rivals.get(rival, {})
                )
                for rival in get_args(Rival)
            ]
        return [_average("", whole, paper.transfer)]


def _average(what: str, rows: Sequence[TableRow], paper: Figures) -> Line:
    measured = _means([{name: one.rate for name, one in row.cells.items()} for row in rows])
    return Line(f"{what}average of {len(rows)}", measured, paper)


def _means(figures: Sequence[Mapping[str, float]]) -> Figures:
    names = figures[0] if figures else ()
    return {name: sum(one[name] for one in figures) / len(figures) for name in names}


def _texts(line: Line, data_sets: Sequence[str] | Mapping[str, int]) -> list[str]:
    return [text for name in data_sets for text in (_measured(line.measured.get(name)), _points(line.paper.get(name)))]


def _measured(found: Preference | float | None) -> str:
    if not isinstance(found, Preference):
        return _points(None if found is None else 100 * found)
    return f"{_points(100 * found.rate)} {100 * found.low:+.0f}…{100 * found.high:+.0f}"


def _points(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:+.2f}"
