"""Makes the page of results: the tables in JSON lines files, by the machine they were measured on.

python benchmarks/page.py
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from langchain_mara_training.storage.atomic import write_atomically
from tables import RESULTS, Machine, Record, read

_HEAD = """# Results of the benchmarks

`python benchmarks/page.py` makes this page from what `make bench` and `make bench-long` measured. Do not edit it by
hand. The [README](README.md) and the head of each script say what is compared and what it means. Ratios are medians of
interleaved repeats in one run. Seconds are those of one machine on one day."""


def main(
    results: Annotated[Path, typer.Argument(help="Folder of JSON lines files.")] = RESULTS,
    page: Annotated[Path, typer.Option(help="The page, replaced.")] = RESULTS.parent / "RESULTS.md",
) -> None:
    """Replaces the page by the tables measured last."""
    records = [record for file in sorted(results.glob("*.jsonl")) for record in read(file)]
    if not records:
        raise typer.BadParameter(f"{results} holds no results. Measure first: make bench, or a script with --output.")
    write_atomically(page, rendered(records).encode())


def rendered(records: Iterable[Record]) -> str:
    """The page in Markdown; of several runs of a command on one machine, it shows the last."""
    latest = {(hardware(one.machine), one.command, one.title): one for one in sorted(records, key=lambda one: one.date)}
    machines: dict[Machine, dict[str, list[Record]]] = {}
    for record in latest.values():
        machines.setdefault(record.machine, {}).setdefault(record.command, []).append(record)
    parts = [_HEAD]
    for machine, commands in machines.items():
        parts += [f"## {hardware(machine)}", _circumstances(machine, commands.values())]
        for command, tables in commands.items():
            parts += [f"### `{command}`", *(part for one in tables for part in (f"**{one.title}**", _table(one)))]
    return "\n\n".join(parts) + "\n"


def hardware(machine: Machine) -> str:
    """A machine on one line."""
    threads = "1 thread" if machine.threads == 1 else f"{machine.threads} threads"
    accelerator = machine.accelerator or "no accelerator"
    return f"{machine.processor}, {threads}, {machine.memory_gib:.0f} GiB, {accelerator}"


def _circumstances(machine: Machine, commands: Iterable[Sequence[Record]]) -> str:
    dates = sorted({f"{one.date:%Y-%m-%d}" for tables in commands for one in tables})
    versions = f"torch {machine.torch}, transformers {machine.transformers}, langchain-mara {machine.langchain_mara}"
    return f"{versions}; measured on {', '.join(dates)}."


def _table(record: Record) -> str:
    return "\n".join([_row(record.columns), "|---" * len(record.columns) + "|", *map(_row, record.rows)])


def _row(cells: Sequence[str]) -> str:
    escaped = [cell.replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"


if __name__ == "__main__":
    typer.run(main)
