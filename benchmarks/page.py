"""Writes the page of results from the tables in JSON lines files, grouped by machine: `python benchmarks/page.py`."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from langchain_mara_training.storage.atomic import write_atomically
from tables import RESULTS, Machine, Record, read

_HEAD = """# Results of the benchmarks

`python benchmarks/page.py` writes this page from the measurements of `make bench` and `make bench-long`. Do not edit
it. The [README](README.md) and the first lines of each script explain what is compared. Ratios are medians of
interleaved repeats in one run. Seconds are from one machine on one day."""


def main(
    results: Annotated[Path, typer.Argument(help="Folder of JSON lines files.")] = RESULTS,
    page: Annotated[Path, typer.Option(help="Page to replace.")] = RESULTS.parent / "RESULTS.md",
) -> None:
    """Replaces the page with the latest tables."""
    records = [record for file in sorted(results.glob("*.jsonl")) for record in read(file)]
    if not records:
        raise typer.BadParameter(f"{results} holds no results. Measure first: make bench, or a script with --output.")
    write_atomically(page, rendered(records).encode())


def rendered(records: Iterable[Record]) -> str:
    """The page in Markdown. If a command ran several times on a machine, the page shows the last run."""
    by_date = sorted(records, key=lambda record: record.date)
    latest = {(hardware(record.machine), record.command, record.title): record for record in by_date}
    machines: dict[Machine, dict[str, list[Record]]] = {}
    for record in latest.values():
        machines.setdefault(record.machine, {}).setdefault(record.command, []).append(record)
    blocks = [_HEAD]
    for machine, commands in machines.items():
        blocks += [f"## {hardware(machine)}", _versions_and_dates(machine, commands.values())]
        for command, tables in commands.items():
            blocks.append(f"### `{command}`")
            for record in tables:
                blocks += [f"**{record.title}**", _table(record)]
    return "\n\n".join(blocks) + "\n"


def hardware(machine: Machine) -> str:
    """A machine's hardware on one line."""
    threads = "1 thread" if machine.threads == 1 else f"{machine.threads} threads"
    accelerator = machine.accelerator or "no accelerator"
    return f"{machine.processor}, {threads}, {machine.memory_gib:.0f} GiB, {accelerator}"


def _versions_and_dates(machine: Machine, commands: Iterable[Sequence[Record]]) -> str:
    dates = sorted({f"{record.date:%Y-%m-%d}" for tables in commands for record in tables})
    versions = f"torch {machine.torch}, transformers {machine.transformers}, langchain-mara {machine.langchain_mara}"
    return f"{versions}; measured on {', '.join(dates)}."


def _table(record: Record) -> str:
    return "\n".join([_row(record.columns), "|---" * len(record.columns) + "|", *map(_row, record.rows)])


def _row(cells: Sequence[str]) -> str:
    escaped = [cell.replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"


if __name__ == "__main__":
    typer.run(main)
