"""`mara evaluate`: an agent compared with plain decoding and best-of-n."""

# Options reach the job through the context, and the job's libraries are imported only when the command runs.
# ruff: noqa: ARG001, PLC0415

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Column, Table

from langchain_mara.cli import console, one_sentence
from langchain_mara.options import DEFAULTS
from langchain_mara_training.commands.options import (
    Data,
    Device,
    Limit,
    Seed,
    Split,
    count_option,
    name_option,
    reward_option,
    shown,
    weight_option,
)

# Of an evaluation's table, broken so that it fits into 80 columns.
_COLUMNS = {
    "mean reward": "mean\nreward",
    "preference rate": "preference\nrate",
    "interval": "interval",
    "harmful share": "harmful\nshare",
    "tokens/s": "tokens\nper s",
    "passes/token": "passes\nper\ntoken",
}


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
    threshold: Annotated[
        float, typer.Option(metavar="X", help="Accept probability to exceed.")
    ] = DEFAULTS.accept_threshold,
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
        from langchain_mara_training import run_folder
        from langchain_mara_training.jobs.evaluate import evaluate as evaluate_run

        found = evaluate_run(report, output, run_folder.resolved(ctx.params, "report", "output"))
        columns = [name for name in _COLUMNS if name != "harmful share" or harmful is not None]
        headers = (Column(_COLUMNS[name], justify="right") for name in columns)
        table = Table("system", *headers, title=found.title)
        for name, values in found.systems.items():
            table.add_row(name, *(shown(values[column]) for column in columns))
        console.print(table)
