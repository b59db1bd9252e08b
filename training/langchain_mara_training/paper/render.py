"""Measured tables next to the paper's figures: the same cells for the terminal, in Markdown, and in JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any, get_args

from langchain_mara.untrusted import markdown, printable
from langchain_mara_training.evaluation.preference_rate import CONFIDENCE, Preference
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
_NOTE = (
    "Preference rates: wins minus losses as a share of all prompts, in percentage points, with "
    f"{100 * CONFIDENCE:g} % intervals. Columns named paper: the paper's figures."
)
_NOTHING = "-"


@dataclass(frozen=True)
class Line:
    """A line of a table.

    Attributes:
        label: Model with its rival or agent, or the name of an average.
        measured: By data set, the preference with its interval; in averages, only the rate.
        paper: By data set, the paper's figure, in percentage points.
    """

    label: str
    measured: Mapping[str, Preference | float]
    paper: Figures


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper, measured again.

    Attributes:
        number: Number of the table in the paper.
        settings: Settings used for measuring.
        prompts: Number of prompts, by data set.
        rows: Measured rows.
    """

    number: TableNumber
    settings: TableSettings
    prompts: dict[str, int]
    rows: list[TableRow]

    @property
    def title(self) -> str:
        """Title above the table."""
        return f"Table {self.number}: {_TITLES[self.number]}"

    @property
    def note(self) -> str:
        """Note below the table."""
        counts = ", ".join(f"{count} of {name}" for name, count in self.prompts.items())
        return f"{_NOTE} Prompts: {counts}."

    @property
    def problems(self) -> list[str]:
        """Reasons why cells are empty, for each row that has such cells."""
        return [f"{self._label(row)}: {row.problem}" for row in self.rows if row.problem is not None]

    def lines(self) -> list[Line]:
        """The rows, followed by their averages."""
        paper = self.settings.paper
        paper_rows = paper.upstream if self.number == "1" else {}
        rows = [Line(self._label(row), row.cells, paper_rows.get(row.model, {})) for row in self.rows]
        return rows + self._averages(paper)

    def cells(self) -> list[list[str]]:
        """Text of all cells, headers first: the label, then for each data set the measured and the paper's figure."""
        headers = ["", *(text for name in self.prompts for text in (name, "paper"))]
        return [headers, *([line.label, *_texts(line, self.prompts)] for line in self.lines())]

    def write(self, output: Path, command: str) -> list[Path]:
        """Writes `table.json` and `table.md`, each completely or not at all.

        Args:
            output: Existing folder.
            command: Command that repeats the measurement, for the Markdown.

        Returns:
            Paths of both files.
        """
        files = {output / "table.json": dump(self.as_json(), indent=2), output / "table.md": self._markdown(command)}
        for file, text in files.items():
            write_atomically(file, f"{text}\n".encode())
        return list(files)

    def as_json(self) -> dict[str, Any]:
        """The table as plain values, without anything that depends on time or machine."""
        rows = [
            {**row._asdict(), "cells": {name: preference._asdict() for name, preference in row.cells.items()}}
            for row in self.rows
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
        problems = "\n".join(f"- {markdown(problem)}" for problem in self.problems)
        repeat = f"    {' '.join(printable(command).split())}"
        sections = [f"# {markdown(self.title)}", "Created with", repeat, table, markdown(self.note), problems]
        return "\n\n".join(filter(None, sections))

    def _label(self, row: TableRow) -> str:
        return row.model if row.other is None else f"{row.model}, {_OTHERS[self.number]}{row.other}"

    def _averages(self, paper: PaperFigures) -> list[Line]:
        complete = [row for row in self.rows if row.problem is None]
        if self.number == "1":
            figures = [paper.upstream.get(row.model, {}) for row in complete]
            return [_average("", complete, _means(figures) if all(figures) else {})]
        if self.number == "2":
            by_rival = {rival: [row for row in complete if row.other == rival] for rival in get_args(Rival)}
            return [
                _average(f"against {rival}, ", rows, paper.rivals.get(rival, {})) for rival, rows in by_rival.items()
            ]
        return [_average("", complete, paper.transfer)]


def _average(prefix: str, rows: Sequence[TableRow], paper: Figures) -> Line:
    measured = _means([{name: preference.rate for name, preference in row.cells.items()} for row in rows])
    return Line(f"{prefix}average of {len(rows)}", measured, paper)


def _means(figures: Sequence[Mapping[str, float]]) -> Figures:
    names = figures[0] if figures else ()
    return {name: sum(row[name] for row in figures) / len(figures) for name in names}


def _texts(line: Line, data_sets: Sequence[str] | Mapping[str, int]) -> list[str]:
    return [text for name in data_sets for text in (_measured(line.measured.get(name)), _points(line.paper.get(name)))]


def _measured(value: Preference | float | None) -> str:
    if not isinstance(value, Preference):
        return _points(None if value is None else 100 * value)
    if isnan(value.rate):
        return _NOTHING
    return f"{_points(100 * value.rate)} {100 * value.low:+.0f}…{100 * value.high:+.0f}"


def _points(value: float | None) -> str:
    return _NOTHING if value is None or isnan(value) else f"{value:+.2f}"
