"""Options and tables of values that the training subcommands of `mara` share."""

from functools import partial
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from langchain_mara.cli import console, plain_text

_WHOLE_FROM = 100

name_option = partial(typer.Option, metavar="NAME")
count_option = partial(typer.Option, metavar="N", min=1)
number_option = partial(typer.Option, metavar="X")
_MODELS = "Reward models of PKU, UltraRM and Ziya: beaver:MODEL, ultrarm:MODEL, ziya:MODEL."
reward_option = partial(
    name_option, "--reward", help=f"module:function, a reward model, or pairs:FILE; repeatable. {_MODELS}"
)
weight_option = partial(number_option, "--reward-weight", help="Weight of each reward, in order; 1 by default.")

Data = Annotated[
    str, typer.Argument(help="A file or folder of rows, - for standard input, or the name of a data set on the hub.")
]
DataName = Annotated[str | None, name_option(help="Configuration of a data set on the hub that has several.")]
DataRevision = Annotated[str | None, name_option(help="Branch, tag or commit of a data set on the hub.")]
Device = Annotated[str | None, name_option(help="Device, such as cuda or cpu.")]
Limit = Annotated[int | None, count_option(help="Most rows to read; all by default.")]
Seed = Annotated[int, typer.Option(metavar="N", help="Seed of all random draws.")]
Split = Annotated[str, name_option(help="Split of a data set on the hub.")]


def print_values(title: str, values: dict[str, Any]) -> None:
    """Prints a table of two columns: names and values."""
    table = Table(Column(), Column(justify="right"), show_header=False, title=title)
    for name, value in values.items():
        table.add_row(plain_text(name), shown(value))
    console.print(table)


def shown(value: float | list[float] | None) -> str:
    """A number as tables show it, or the two ends of an interval; a hyphen for None and NaN."""
    if isinstance(value, list):
        return "…".join(f"{end:.2f}" for end in value)
    if value is None or value != value:  # noqa: PLR0124 - NaN
        return "-"
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= _WHOLE_FROM else f"{value:,.3f}"
