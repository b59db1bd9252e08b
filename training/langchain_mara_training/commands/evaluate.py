"""`mara evaluate` compares an agent with plain decoding and best-of-n; `mara calibrate` sets its dial from data."""

# The job reads its options from the context. Heavy libraries are imported only when the command runs.
# ruff: noqa: ARG001, PLC0415

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Column, Table

from langchain_mara.cli import console, one_sentence, plain_text
from langchain_mara.options import DEFAULTS
from langchain_mara_training.commands.examples import print_examples
from langchain_mara_training.commands.options import (
    DataName,
    DataRevision,
    Device,
    DryRun,
    EngineOption,
    Json,
    Limit,
    Seed,
    Split,
    Workers,
    count_option,
    name_option,
    number_option,
    print_json,
    print_values,
    refuse_unused,
    reward_option,
    shown,
    weight_option,
)
from langchain_mara_training.storage.defaults import TRAINING_BATCH_SIZE

# Headers of the table by name of the value, with line breaks so that it fits into 80 columns.
_HEADERS = {
    "mean reward": "mean\nreward",
    "preference rate": "preference\nrate",
    "interval": "interval",
    "harmful share": "harmful\nshare",
    "tokens/s": "tokens\nper s",
    "passes/token": "passes\nper\ntoken",
}


# Options of the systems, which are not asked again when answers are rescored.
_OF_SYSTEMS = (
    "agent", "model", "best_of", "threshold", "max_new_tokens", "top_k", "top_p", "seed", "dry_run", "engine",
    "workers",
)  # fmt: skip


Measured = Literal["changed", "divergence", "perplexity", "harmful"]
Dialed = Literal["first-accept", "guided"]
_OWN_OR = "by default what the agent recommends, or else {}"


def _run_default(description: str, default: float) -> str:
    return f"{description}; by default the run's, what the agent recommends, or else {default}."


def evaluate(
    ctx: typer.Context,
    data: Annotated[str | None, typer.Argument(help="Prompts: a file or the name of a data set on the hub.")] = None,
    agent: Annotated[
        str | None, name_option(help="Run folder, or agent: folder, hub id, .pth file, or repo:file.")
    ] = None,
    model: Annotated[
        str | None, name_option(help="Hub id or folder; by default the run's, or else the bundled model.")
    ] = None,
    reward: Annotated[list[str] | None, reward_option()] = None,
    reward_weight: Annotated[list[float] | None, weight_option()] = None,
    best_of: Annotated[list[int] | None, count_option(help="Also compare with best-of-N; repeatable.")] = None,
    harmful: Annotated[str | None, name_option(help="Like --reward; answers with a score above 0 are harmful.")] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder for all answers; an interrupted job resumes there.")
    ] = None,
    rescore: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Score the answers of this comparison again; nothing is generated."),
    ] = None,
    tolerance: Annotated[
        float | None,
        number_option(
            min=0, help="Largest difference in reward that counts as a draw; by default what rounding can cause."
        ),
    ] = None,
    report: Annotated[Path | None, typer.Option(metavar="FILE", help="JSON file for all answers.")] = None,
    prompt_column: Annotated[
        str | None, name_option(help="Column of the prompts; by default prompt, instruction or question.")
    ] = None,
    split: Split = "test",
    data_name: DataName = None,
    data_revision: DataRevision = None,
    limit: Limit = None,
    threshold: Annotated[
        float | None,
        number_option(help=f"Accept probability that a candidate must exceed; {_OWN_OR.format(0.5)}."),
    ] = None,
    batch_size: Annotated[int, count_option(help="Most prompts in one pass.")] = TRAINING_BATCH_SIZE,
    max_new_tokens: Annotated[
        int | None, count_option(help=_run_default("Most tokens of an answer", DEFAULTS.max_new_tokens))
    ] = None,
    top_k: Annotated[
        int | None, count_option(help=_run_default("Most candidates of a position", DEFAULTS.top_k))
    ] = None,
    top_p: Annotated[float | None, number_option(help=_run_default("Nucleus mass", DEFAULTS.top_p))] = None,
    device: Device = None,
    seed: Seed = 0,
    engine: EngineOption = "process",
    workers: Workers = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Compares an agent with plain decoding and with best-of-n, by reward and by cost.

    With --rescore, answers that --output kept earlier are scored by other rewards, and no model is loaded. DATA is then
    only needed for columns that the rewards read.

    Without --reward, answers are scored by a reward fitted on the run's preference pairs. A run that was made with
    rewards needs the same --reward again, because nothing that a run folder names is imported.

    Examples:
    $ mara evaluate prompts.jsonl --agent run --best-of 8
    $ mara evaluate --rescore comparison --reward my:score --output rescored
    """
    if rescore is None and (data is None or agent is None):
        missing = "DATA" if data is None else "--agent"
        raise typer.BadParameter(f"{missing} is missing, and so is --rescore.", ctx)
    with one_sentence():
        from langchain_mara_training import run_folder
        from langchain_mara_training.jobs.engines import EngineChoice
        from langchain_mara_training.jobs.evaluate import evaluate as evaluate_run
        from langchain_mara_training.jobs.evaluate import examples

        if rescore is not None:
            refuse_unused(ctx, _OF_SYSTEMS, "with --rescore")
        options = run_folder.resolved(ctx.params, "report", "output", "dry_run", "as_json", "engine", "workers")
        if dry_run:
            print_examples(*examples(report, output, options), as_json=as_json)
            return
        evaluation = evaluate_run(report, output, options, EngineChoice(engine, workers))
        if as_json:
            print_json({"title": evaluation.title, "systems": evaluation.systems})
            return
        columns = [name for name in _HEADERS if name != "harmful share" or harmful is not None]
        headers = (Column(_HEADERS[name], justify="right") for name in columns)
        table = Table("system", *headers, title=plain_text(evaluation.title))
        for name, values in evaluation.systems.items():
            table.add_row(plain_text(name), *(shown(values[column]) for column in columns))
        console.print(table)


def calibrate(
    ctx: typer.Context,
    data: Annotated[str, typer.Argument(help="Prompts like those in use: a file or a data set on the hub.")],
    output: Annotated[Path, typer.Option(metavar="RUN", help="Run folder for the agent with what was found.")],
    target: Annotated[
        Measured,
        name_option(
            help="changed (share of positions), divergence or perplexity under the plain model, or harmful (share of "
            "answers, as an upper bound)."
        ),
    ],
    at_most: Annotated[float, number_option(help="Limit of the target.")],
    agent: Annotated[
        str | None, name_option(help="Run folder, or agent: folder, hub id, .pth file, or repo:file.")
    ] = None,
    model: Annotated[str | None, name_option(help="Hub id or folder; the bundled model by default.")] = None,
    strategy: Annotated[
        Dialed | None,
        name_option(help=f"first-accept sets the threshold, guided the strength; {_OWN_OR.format('first-accept')}."),
    ] = None,
    harmful: Annotated[str | None, name_option(help="Like --reward; answers with a score above 0 are harmful.")] = None,
    reward: Annotated[list[str] | None, reward_option()] = None,
    reward_weight: Annotated[list[float] | None, weight_option()] = None,
    least_reward: Annotated[float | None, number_option(help="Answers with a lower reward are harmful.")] = None,
    confidence: Annotated[float, number_option(help="Confidence of the bound and of intervals.")] = 0.9,
    split: Split = "train",
    data_name: DataName = None,
    data_revision: DataRevision = None,
    limit: Limit = None,
    batch_size: Annotated[int, count_option(help="Most prompts in one pass.")] = TRAINING_BATCH_SIZE,
    max_new_tokens: Annotated[
        int | None, count_option(help=f"Most tokens of an answer; {DEFAULTS.max_new_tokens} by default.")
    ] = None,
    top_k: Annotated[
        int | None, count_option(help=f"Most candidates of a position; {_OWN_OR.format(DEFAULTS.top_k)}.")
    ] = None,
    top_p: Annotated[float | None, number_option(help=f"Nucleus mass; {_OWN_OR.format(DEFAULTS.top_p)}.")] = None,
    device: Device = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Sets an agent's threshold or strength from data: within a limit, or for a bound on the share of harmful answers.

    Examples:
    $ mara calibrate prompts.jsonl --output careful --agent run --target changed --at-most 0.05
    $ mara calibrate prompts.jsonl --output bounded --agent run --target harmful --at-most 0.05 --harmful my:judge
    """
    with one_sentence():
        from langchain_mara_training import run_folder
        from langchain_mara_training.jobs.calibrate import calibrate_agent

        options = run_folder.resolved(ctx.params, "output", "as_json")
        print_values("Calibration", calibrate_agent(output, options), as_json=as_json)
