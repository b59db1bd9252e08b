"""`mara table`: the tables of the paper, measured."""

# Options reach the job through the context, and the job's libraries are imported only when the command runs.
# ruff: noqa: ARG001, PLC0415

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Column, Table

from langchain_mara.cli import console, one_sentence
from langchain_mara_training.commands.options import (
    Device,
    count_option,
)

if TYPE_CHECKING:
    from langchain_mara_training.paper.render import PaperTable


# Where a data set's name may be broken, so that tables fit into 80 columns.
_BETWEEN_WORDS = re.compile(r"(?<=[a-z])(?=[A-Z])")


def _source(metavar: str, text: str) -> Any:
    return typer.Option(metavar=metavar, help=text)


def table(
    ctx: typer.Context,
    number: Annotated[Literal["1", "2", "3"], typer.Argument(help="Of the paper's table.", metavar="1|2|3")],
    output: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Keeps all answers; what was interrupted goes on there.")
    ],
    models: Annotated[list[str] | None, _source("NAME[=MODEL]", "Which models, and where; all by default.")] = None,
    agents: Annotated[list[str] | None, _source("NAME=AGENT", "Agent of a model: as for mara evaluate.")] = None,
    rivals: Annotated[list[str] | None, _source("NAME/RIVAL=MODEL", "Of table 2: RLHF, DPO or Aligner.")] = None,
    prompts: Annotated[list[str] | None, _source("SET[=FILE]", "Which data sets, and where; all by default.")] = None,
    rewards: Annotated[list[str] | None, _source("NAME=REWARD", "reward and cost, as for --reward.")] = None,
    recipe: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Settings as YAML; the paper's by default.")
    ] = None,
    limit: Annotated[int | None, count_option(help="Most prompts of a data set.")] = None,
    batch_size: Annotated[int, count_option(help="Most prompts in one pass.")] = 8,
    device: Device = None,
) -> None:
    """Measures a table of the paper, and prints the paper's figures beside.

    1: against the upstream model; 2: against RLHF, DPO and Aligner; 3: with
    agents of other models. Options that take a NAME can be repeated.

    Examples:
    $ mara table 1 --output table-1
    $ mara table 1 --output one --models mistral-v0.3 --agents mistral-v0.3=run
    """
    with one_sentence():
        from langchain_mara_training.paper.paper_tables import Tables
        from langchain_mara_training.paper.render import PaperTable
        from langchain_mara_training.paper.settings import TableSettings
        from langchain_mara_training.storage.records import command_line

        sources = {name: ctx.params[name] or () for name in ("models", "agents", "rivals", "prompts", "rewards")}
        settings = TableSettings.load(recipe).with_sources(**sources)
        tables = Tables(settings, output, device=device, limit=limit, batch_size=batch_size, verbose=True)
        rows = tables.rows(number, [one.partition("=")[0] for one in models or ()])
        found = PaperTable(number, settings, {name: len(one) for name, one in tables.prompts.items()}, rows)
        output.mkdir(parents=True, exist_ok=True)
        found.write(output, command_line())
        _print_paper_table(found)


def _print_paper_table(found: "PaperTable") -> None:
    headers, *rows = found.cells()
    columns = [Column(_BETWEEN_WORDS.sub("\n", header), justify="right") for header in headers[1:]]
    table = Table(Column("model"), *columns, title=found.title)
    for label, *cells in rows:
        table.add_row(label.replace(", ", "\n"), *(cell.replace(" ", "\n") for cell in cells))
    console.print(table)
    console.print(found.note, markup=False)
    for problem in found.problems:
        console.print(problem, style="red", markup=False)
