"""Tables of the benchmarks: printed, and appended to a file together with the machine they were measured on."""

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
"""Folder of the benchmarks' results; not under version control."""
Output = Annotated[Path | None, typer.Option(help="JSON lines file to append the tables to.")]


class Machine(BaseModel, frozen=True):
    """The machine that measured, and the versions installed on it.

    Attributes:
        processor: Name of the processor.
        threads: Number of threads torch uses for one operation.
        memory_gib: Total memory in GiB; 0 if it cannot be read.
        accelerator: Name of the accelerator, if there is one.
        torch: Version of torch.
        transformers: Version of transformers.
        langchain_mara: Version of langchain-mara.
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
        """This machine."""
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
    """A measured table.

    Attributes:
        command: The benchmark and its arguments, without `--output`.
        title: Title of the table.
        columns: Column headings.
        rows: Cells as printed.
        measured: The figures the cells are computed from, for every repeat, if the benchmark provides them.
        machine: Machine that measured.
        date: Time of the measurement, in UTC.
    """

    command: str
    title: str
    columns: list[str]
    rows: list[list[str]]
    measured: Any
    machine: Machine
    date: datetime


def publish(table: Table, output: Path | None, measured: object = None) -> None:
    """Prints a table and, if a file is given, appends a `Record` of it.

    Args:
        table: Table whose cells are text.
        output: JSON lines file; it and its folders are created if missing.
        measured: The figures the cells are computed from, as JSON values.
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
    """Reads the tables of a file, in the order of measurement.

    Args:
        file: JSON lines file that `publish` wrote.

    Raises:
        ValueError: If a line is not a `Record`.
    """
    return [Record.model_validate_json(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _command(arguments: Sequence[str]) -> str:
    """A command line without `--output`. Absolute paths, which differ between machines, are cut to the file name."""
    kept = [
        argument
        for previous, argument in pairwise(arguments)
        if "--output" not in (previous, argument.partition("=")[0])
    ]
    words = [Path(arguments[0]).name, *kept]
    return shlex.join(Path(word).name if Path(word).is_absolute() else word for word in words)


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory_bytes() -> int:
    names = getattr(os, "sysconf_names", {})
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if "SC_PHYS_PAGES" in names else 0


def _accelerator() -> str | None:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else None
