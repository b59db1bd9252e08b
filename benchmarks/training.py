"""Speed of training in one table: labeling, fitting, and the steps of reinforcement, each against its yardstick.

    python benchmarks/training.py

It runs `labelling.py speed`, `fitting.py speed` and `reinforcement.py steps` with less data than their defaults, and
also prints their tables.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import fitting
import labelling
import reinforcement
import torch
import typer
from rich.table import Table
from tables import Output, publish, read


class Part(NamedTuple):
    """A benchmark of one part of training.

    Attributes:
        run: Function that runs the benchmark and appends its table to a file.
        names: Number of columns that name what was measured.
        unit: Heading of the column with the speed.
        ratio: Heading of the column with the ratio to a yardstick.
    """

    run: Callable[[Path], None]
    names: int
    unit: str
    ratio: str


def parts(pairs: int, long_pairs: int, rows: int, episodes: int, repeats: int) -> dict[str, Part]:
    """The benchmarks, by the part of training they measure."""
    return {
        "labeling": Part(
            lambda file: labelling.speed(pairs, long_pairs, repeats, output=file),
            names=2,
            unit="tokens/s",
            ratio="share of the whole model",
        ),
        "fitting": Part(
            lambda file: fitting.speed(rows, repeats=repeats, output=file),
            names=1,
            unit="rows/s",
            ratio="faster than MLPClassifier",
        ),
        "reinforcement": Part(
            lambda file: reinforcement.steps(parallel=episodes, repeats=repeats, output=file),
            names=1,
            unit="steps/s",
            ratio="faster than the loop",
        ),
    }


def main(
    pairs: Annotated[int, typer.Option(help="Pairs to label with the bundled model.")] = 384,
    long_pairs: Annotated[int, typer.Option(help="Pairs to label with the 135 M model.")] = 4,
    rows: Annotated[int, typer.Option(help="States to fit.")] = 50_000,
    episodes: Annotated[int, typer.Option(help="Episodes of reinforcement, in parallel.")] = 16,
    repeats: Annotated[int, typer.Option(help="Interleaved repeats; medians are printed.")] = 3,
    output: Output = None,
) -> None:
    """Prints the tables of the parts, and a summary of them."""
    torch.set_flush_denormal(True)
    table = Table("", "speed", "ratio", "meaning of the ratio", title="Speed of training")
    with tempfile.TemporaryDirectory() as folder:
        for name, part in parts(pairs, long_pairs, rows, episodes, repeats).items():
            for measured, *figures in summary(part, output or Path(folder) / "tables.jsonl"):
                table.add_row(f"{name}: {measured}", *figures)
    publish(table, output)


def summary(part: Part, file: Path) -> Iterator[tuple[str, str, str, str]]:
    """Runs a part. Yields for each row of its table: name, speed, ratio, meaning of the ratio."""
    part.run(file)
    record = read(file)[-1]
    speed, ratio = (record.columns.index(heading) for heading in (part.unit, part.ratio))
    for row in record.rows:
        yield ", ".join(row[: part.names]), f"{row[speed]} {part.unit}", row[ratio], part.ratio


if __name__ == "__main__":
    typer.run(main)
