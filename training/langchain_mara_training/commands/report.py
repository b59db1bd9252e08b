"""What people read of comparisons: `mara report` writes one as a web page, `mara table` measures the paper's tables."""

# The job reads its options from the context. Heavy libraries are imported only when the command runs.
# ruff: noqa: ARG001, PLC0415

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Column, Table

from langchain_mara.cli import console, one_sentence, plain_text
from langchain_mara.options import BATCH_DEFAULTS
from langchain_mara_training.commands.options import Device, Json, count_option, name_option, print_json
from langchain_mara_training.storage.defaults import TRACES_SHOWN

if TYPE_CHECKING:
    from langchain_mara_training.paper.render import PaperTable


# Points at which a data set's name may be broken, so that tables fit into 80 columns.
_BETWEEN_WORDS = re.compile(r"(?<=[a-z])(?=[A-Z])")


def _source(metavar: str, text: str) -> Any:
    return typer.Option(metavar=metavar, help=f"{text} Repeatable.")


def report(
    comparison: Annotated[Path, typer.Argument(help="Folder of a comparison.")],
    output: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="File to write; by default report.html in that folder.")
    ] = None,
    title: Annotated[str | None, typer.Option(metavar="TEXT", help="Title of the report.")] = None,
    agent: Annotated[str | None, name_option(help="Run folder or agent whose decisions to show.")] = None,
    model: Annotated[
        str | None, name_option(help="Hub id or folder of its policy model; by default the one of the comparison.")
    ] = None,
    traces: Annotated[int, count_option(help="Most answers to show with the agent's decisions.")] = TRACES_SHOWN,
    device: Device = None,
) -> None:
    """Writes a comparison as a web page for people, and its tables as Markdown next to it.

    Examples:
    $ mara report comparison
    $ mara report comparison --agent run --output report.html
    """
    with one_sentence():
        from langchain_mara_training import run_folder
        from langchain_mara_training.evaluation.comparison import Comparison
        from langchain_mara_training.evaluation.report.page import page_file, write_report
        from langchain_mara_training.evaluation.report.retrace import retrace

        loaded = Comparison.load(comparison)
        page_file(output or comparison)  # before the minutes that traces take
        shown_traces = None
        if agent is not None:
            shown_traces = retrace(loaded, run_folder.agent_source(agent), model=model, device=device, count=traces)
        for file in write_report(loaded, output or comparison, title=title, traces=shown_traces):
            console.print(plain_text(str(file)), style="bold", soft_wrap=True)


def table(
    ctx: typer.Context,
    number: Annotated[Literal["1", "2", "3"], typer.Argument(help="Number of the paper's table.", metavar="1|2|3")],
    output: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Folder for all answers; an interrupted job resumes there.")
    ],
    models: Annotated[
        list[str] | None, _source("NAME[=MODEL]", "Models to measure and where to load them; all by default.")
    ] = None,
    agents: Annotated[list[str] | None, _source("NAME=AGENT", "Agent of a model, as for mara evaluate.")] = None,
    rivals: Annotated[list[str] | None, _source("NAME/RIVAL=MODEL", "Rivals of table 2: RLHF, DPO or Aligner.")] = None,
    prompts: Annotated[
        list[str] | None, _source("SET[=FILE]", "Data sets and where to read them; all by default.")
    ] = None,
    rewards: Annotated[
        list[str] | None, _source("NAME=REWARD", "reward and cost, as for --reward of mara evaluate.")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Settings as a YAML file; the paper's by default.")
    ] = None,
    limit: Annotated[int | None, count_option(help="Most prompts of each data set.")] = None,
    batch_size: Annotated[int, count_option(help="Most prompts in one pass.")] = BATCH_DEFAULTS.batch_size,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Measures a table of the paper, and prints the paper's figures next to the measured ones.

    Table 1 compares with the upstream model, table 2 with RLHF, DPO and Aligner;
    table 3 uses agents of other models.

    Examples:
    $ mara table 1 --output table-1
    $ mara table 1 --output one --models mistral-v0.3 --agents mistral-v0.3=run
    """
    with one_sentence():
        from langchain_mara_training import run_folder
        from langchain_mara_training.paper.paper_tables import Tables
        from langchain_mara_training.paper.render import PaperTable
        from langchain_mara_training.paper.settings import TableSettings
        from langchain_mara_training.rewards.specs import current_folder_first
        from langchain_mara_training.storage.atomic import require_folder
        from langchain_mara_training.storage.records import command_line

        require_folder(output, "--output")
        for given in agents or ():
            run_folder.agent_source(given.partition("=")[2])
        sources = {name: ctx.params[name] or () for name in ("models", "agents", "rivals", "prompts", "rewards")}
        settings = TableSettings.load(recipe).with_sources(**sources)
        with current_folder_first():
            tables = Tables(settings, output, device=device, limit=limit, batch_size=batch_size, verbose=True)
            rows = tables.rows(number, [model.partition("=")[0] for model in models or ()])
        counts = {name: len(prompts) for name, prompts in tables.prompts.items()}
        paper_table = PaperTable(number, settings, counts, rows)
        output.mkdir(parents=True, exist_ok=True)
        paper_table.write(output, command_line())
        if as_json:
            print_json({**paper_table.as_json(), "problems": paper_table.problems})
        else:
            _print_paper_table(paper_table)


def _print_paper_table(paper_table: "PaperTable") -> None:
    headers, *rows = paper_table.cells()
    columns = [Column(plain_text(_BETWEEN_WORDS.sub("\n", header)), justify="right") for header in headers[1:]]
    table = Table(Column("model"), *columns, title=plain_text(paper_table.title))
    for label, *cells in rows:
        table.add_row(plain_text(label.replace(", ", "\n")), *(cell.replace(" ", "\n") for cell in cells))
    console.print(table)
    console.print(plain_text(paper_table.note))
    for problem in paper_table.problems:
        console.print(plain_text(problem), style="red")
