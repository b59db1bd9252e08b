"""Tables of the benchmarks: printed, and appended to a file with the machine they were measured on."""

import os
import platform
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

console = Console()
RESULTS = Path(__file__).parent / "results"
"""Where benchmarks keep what they measure; not under version control."""
Output = Annotated[Path | None, typer.Option(help="JSON lines file to append the tables to.")]


class Machine(BaseModel, frozen=True):
    """What measured.

    Attributes:
        processor: Its name.
        threads: Of torch, for one operation.
        memory_gib: All of it; 0 where it cannot be read.
        accelerator: Its name, if there is one.
        torch: Version.
        transformers: Version.
        langchain_mara: Version.
    """

    processor: str
    threads: int
    memory_gib: float
    accelerator: str | None
    torch: str
    transformers: str
    langchain_mara: str

    @classmethod
    def here(cls) -> "Machine":
        """This machine, with what is installed."""
        return cls(
            processor=_processor(),
            threads=torch.get_num_threads(),
            memory_gib=_memory_bytes() / 2**30,
            accelerator=_accelerator(),
            torch=torch.__version__,
            transformers=version("transformers"),
            langchain_mara=version("langchain-mara"),
        )


class Record(BaseModel):
    """One table.

    Attributes:
        command: The benchmark and its arguments, without the file of the output.
        title: Of the table.
        columns: Their headings.
        rows: Cells as they were printed.
        measured: The figures behind them, every repeat, where the benchmark gives them.
        machine: Where.
        date: When, in UTC.
    """

    command: str
    title: str
    columns: list[str]
    rows: list[list[str]]
    measured: Any
    machine: Machine
    date: datetime


def publish(table: Table, output: Path | None, measured: object = None) -> None:
    """Prints a table and, if there is a file, appends a `Record` of it.

    Args:
        table: Of texts.
        output: JSON lines; made where it is missing, with the folders above it.
        measured: The figures behind the cells, as JSON can hold them.
    """
    console.print(table)
    if output is None:
        return
    record = Record(
        command=_command(sys.argv),
        title=str(table.title or ""),
        columns=[str(column.header) for column in table.columns],
        rows=[list(row) for row in zip(*(map(str, column.cells) for column in table.columns), strict=True)],
        measured=measured,
        machine=Machine.here(),
        date=datetime.now(UTC),
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("a", encoding="utf-8") as file:
        file.write(record.model_dump_json() + "\n")


def read(file: Path) -> list[Record]:
    """The tables of a file, in the order in which they were measured.

    Raises:
        ValueError: If a line is not a `Record`.
    """
    return [Record.model_validate_json(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _command(arguments: Sequence[str]) -> str:
    """A command line without its output; of absolute paths, which tell of their machine, the name alone."""
    kept = [one for before, one in pairwise(arguments) if "--output" not in (before, one.partition("=")[0])]
    return shlex.join(Path(one).name if Path(one).is_absolute() else one for one in [Path(arguments[0]).name, *kept])


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory_bytes() -> int:
    known = getattr(os, "sysconf_names", {})
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if "SC_PHYS_PAGES" in known else 0


def _accelerator() -> str | None:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else None
