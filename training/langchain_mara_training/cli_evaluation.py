"""The subcommands of `mara` that compare: `evaluate`, `report`, `table`."""

# The command starts, and answers, without what only these subcommands need; options are handed on by the context.
# ruff: noqa: ARG001, PLC0415

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Column, Table

from langchain_mara.cli import console
from langchain_mara_training.cli_parts import (
    Data,
    Device,
    Limit,
    Seed,
    Split,
    count_option,
    name_option,
    one_sentence,
    reward_option,
    shown,
    weight_option,
)

if TYPE_CHECKING:
    from langchain_mara_training.table_texts import PaperTable

# Of an evaluation's table, broken so that it fits into 80 columns.
_COLUMNS = {
    "mean reward": "mean\nreward",
    "preference rate": "preference\nrate",
    "interval": "interval",
    "harmful share": "harmful\nshare",
    "tokens/s": "tokens\nper s",
    "passes/token": "passes\nper\ntoken",
}


# Where a data set's name may be broken, so that tables fit into 80 columns.
_BETWEEN_WORDS = re.compile(r"(?<=[a-z])(?=[A-Z])")


def _source(metavar: str, text: str) -> Any:
    return typer.Option(metavar=metavar, help=text)


def evaluate(
    ctx: typer.Context,
    data: Data,
    agent: Annotated[str, name_option(help="Run folder, or agent: folder, hub id, .pth, or repo:file.")],
    model: Annotated[str | None, name_option(help="By default the run's, or else the embedded one.")] = None,
    reward: Annotated[list[str] | None, reward_option()] = None,
    reward_weight: Annotated[list[float] | None, weight_option()] = None,
    best_of: Annotated[list[int] | None, count_option(help="Compare with best-of-N, too. Can be repeated.")] = None,
    harmful: Annotated[str | None, name_option(help="Like --reward; answers that it puts above 0 are harmful.")] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Keeps all answers; what was interrupted goes on there.")
    ] = None,
    report: Annotated[Path | None, typer.Option(metavar="FILE", help="JSON with all answers.")] = None,
    prompt_column: Annotated[str | None, name_option(help="By default prompt, instruction or question.")] = None,
    split: Split = "test",
    limit: Limit = None,
    threshold: Annotated[float, typer.Option(metavar="X", help="Accept probability to exceed.")] = 0.5,
    batch_size: Annotated[int, count_option(help="Most prompts in one pass.")] = 32,
    max_new_tokens: Annotated[int | None, count_option(help="Most tokens of an answer; the run's, or 256.")] = None,
    top_k: Annotated[int | None, count_option(help="Most candidates of a position; the run's, or 40.")] = None,
    top_p: Annotated[float | None, typer.Option(metavar="X", help="Nucleus mass; the run's, or 0.95.")] = None,
    device: Device = None,
    seed: Seed = 0,
) -> None:
    """Compares an agent with plain decoding, and with best-of-n, by reward and by cost.

    Without --reward, answers are scored by the rewards of the run, or by what its preference pairs teach.

    Examples:
    $ mara evaluate prompts.jsonl --agent run --best-of 8
    $ mara evaluate prompts.jsonl --agent run --reward my:score
    """
    with one_sentence():
        from langchain_mara_training import jobs, runs

        found = jobs.evaluate(report, output, runs.resolved(ctx.params, "report", "output"))
        columns = [name for name in _COLUMNS if name != "harmful share" or harmful is not None]
        headers = (Column(_COLUMNS[name], justify="right") for name in columns)
        table = Table("system", *headers, title=found.title)
        for name, values in found.systems.items():
            table.add_row(name, *(shown(values[column]) for column in columns))
        console.print(table)


def report(
    comparison: Annotated[Path, typer.Argument(help="Folder of a comparison.")],
    output: Annotated[Path | None, typer.Option(metavar="FILE.html", help="By default report.html in it.")] = None,
    title: Annotated[str | None, typer.Option(metavar="TEXT", help="Of the report.")] = None,
    agent: Annotated[str | None, name_option(help="Shows what this agent decided: a run folder or agent.")] = None,
    model: Annotated[str | None, name_option(help="Where its policy model is; by default where it was.")] = None,
    traces: Annotated[int, count_option(help="Most answers to show the agent's decisions of.")] = 5,
    device: Device = None,
) -> None:
    """Writes what a comparison found as a page for people, with the tables in Markdown beside it.

    Examples:
    $ mara report comparison
    $ mara report comparison --agent run --output report.html
    """
    with one_sentence():
        from langchain_mara_training import runs
        from langchain_mara_training.comparison import Comparison
        from langchain_mara_training.report import write_report
        from langchain_mara_training.traces import retrace

        found = Comparison.load(comparison)
        decided = None
        if agent is not None:
            decided = retrace(found, runs.agent_source(agent), model=model, device=device, count=traces)
        for file in write_report(found, output or comparison, title=title, traces=decided):
            console.print(file, style="bold", soft_wrap=True)


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
        from langchain_mara_training import runs
        from langchain_mara_training.table_settings import TableSettings
        from langchain_mara_training.table_texts import PaperTable
        from langchain_mara_training.tables import Tables

        sources = {name: ctx.params[name] or () for name in ("models", "agents", "rivals", "prompts", "rewards")}
        settings = TableSettings.load(recipe).with_sources(**sources)
        tables = Tables(settings, output, device=device, limit=limit, batch_size=batch_size, verbose=True)
        rows = tables.rows(number, [one.partition("=")[0] for one in models or ()])
        found = PaperTable(number, settings, {name: len(one) for name, one in tables.prompts.items()}, rows)
        output.mkdir(parents=True, exist_ok=True)
        found.write(output, runs.command_line())
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
