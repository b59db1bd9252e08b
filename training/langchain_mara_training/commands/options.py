"""Options and tables of values that the training subcommands of `mara` share."""

import json
from collections.abc import Iterable
from functools import partial
from typing import Annotated, Any, Literal

import typer
from rich.table import Column, Table

from langchain_mara.cli import console, plain_text
from langchain_mara.exceptions import OptionsError

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


DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check the options, print three examples as the model reads them, and stop.")
]
EngineOption = Annotated[
    Literal["process", "ray"],
    name_option("--engine", help="What computes: this process, or ray, whose workers each load the model."),
]
Workers = Annotated[
    int | None, count_option(help="Workers of --engine ray; by default one per GPU, or one if there is none.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def refuse_unused(ctx: typer.Context, unused: Iterable[str], where: str) -> None:
    """Refuses options that were given on the command line although they have no effect.

    Args:
        ctx: Context of the command.
        unused: Names of the parameters without effect.
        where: When they have none, such as "with this labeler".

    Raises:
        OptionsError: If one was given.
    """
    given = [name for name in unused if getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"]
    if given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise OptionsError(f"{options} would have no effect {where}. Leave it out.")


def print_json(value: Any) -> None:
    """Prints plain values as JSON in ASCII, so that no character in them controls the terminal."""
    from langchain_mara_training.storage.records import dump  # noqa: PLC0415 - heavy

    text = json.dumps(json.loads(dump(value)), indent=2)
    print(text.replace("\x7f", "\\u007f"))  # noqa: T201 - for other programs, so without rich


def print_values(title: str, values: dict[str, Any], *, as_json: bool = False) -> None:
    """Prints names and values, as a table of two columns or as JSON."""
    if as_json:
        print_json(values)
        return
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
