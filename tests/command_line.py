"""Calls of the `mara` command in tests, and what they print."""

from pathlib import Path
from typing import Any

from langchain_mara_training.commands.main import app
from typer.testing import CliRunner, Result

SMALL = ["--device", "cpu", "--limit", "6"]
WIDE = 10_000
"""Columns of a terminal so wide that no message is wrapped, however long the paths in it are."""
COMMANDS = {"demo", "generate", "info", "label", "fit", "rl", "evaluate", "report", "table"}


def vowels(completions: list[str], **_: Any) -> list[float]:
    return [float(sum(text.count(letter) for letter in "aeiou")) for text in completions]


def mara(*arguments: str | Path, columns: int = WIDE) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": str(columns)})


def succeed(*arguments: str | Path, columns: int = WIDE) -> str:
    result = mara(*arguments, columns=columns)
    assert result.exit_code == 0, result.output
    return result.stdout


def message_of(result: Result) -> str:
    """The printed error, as one line."""
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    assert isinstance(result.exception, SystemExit)
    return " ".join(result.stderr.split())


def table(output: str) -> dict[str, list[str]]:
    """The cells of a printed table by those of the first column."""
    rows = [[cell.strip() for cell in line[1:-1].split("│")] for line in output.splitlines() if line.startswith("│")]
    return {name: cells for name, *cells in rows}
