"""What the training subcommands of `mara` share: options and tables of values."""

from functools import partial
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from langchain_mara.cli import console

_WHOLE_FROM = 100

name_option = partial(typer.Option, metavar="NAME")
count_option = partial(typer.Option, metavar="N", min=1)
_MODELS = "Models of PKU, UltraRM and Ziya: beaver:MODEL, ultrarm:MODEL, ziya:MODEL."
reward_option = partial(
    name_option, "--reward", help=f"module:function, reward model, or pairs:FILE; repeatable. {_MODELS}"
)
weight_option = partial(typer.Option, "--reward-weight", metavar="X", help="One for each reward; 1 by default.")

Data = Annotated[str, typer.Argument(help="A .json, .jsonl or .parquet file, or a dataset's name on the hub.")]
Device = Annotated[str | None, name_option(help="Such as cuda or cpu.")]
Limit = Annotated[int | None, count_option(help="Most rows to take; all by default.")]
Seed = Annotated[int, typer.Option(metavar="N", help="Of everything that is drawn.")]
Split = Annotated[str, name_option(help="Which split of a dataset on the hub.")]


def print_values(title: str, values: dict[str, Any]) -> None:
    """Prints a table of two columns: names and values."""
    table = Table(Column(), Column(justify="right"), show_header=False, title=title)
    for name, value in values.items():
        table.add_row(name, shown(value))
    console.print(table)


def shown(value: float | list[float] | None) -> str:
    """A number as tables show it, or the ends of an interval; nothing known is a hyphen."""
    if isinstance(value, list):
        return "…".join(f"{one:.2f}" for one in value)
    if value is None or value != value:  # noqa: PLR0124 - NaN
        return "-"
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= _WHOLE_FROM else f"{value:,.3f}"
