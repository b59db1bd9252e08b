"""The `mara` command with training: `label`, `fit`, `rl`, `evaluate`, `report` join those of `langchain_mara.cli`."""

# The command starts, and answers, without what only these subcommands need; options are handed on by the context.
# ruff: noqa: ARG001, PLC0415

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Column, Table
from transformers.utils import logging

from langchain_mara.cli import app, console
from langchain_mara.exceptions import MaraError, OptionsError

_ROLLOUTS = ("generations", "positions", "candidates", "continuations", "value", "margin", "ties", "weighting")
# Options that the other labeler has no use for.
_UNUSED = {"preference": ("reward", "reward_weight", "agent", "max_new_tokens", *_ROLLOUTS), "rollout": ("all_tokens",)}
_WHOLE_FROM = 100
# Of an evaluation's table, broken so that it fits into 80 columns.
_COLUMNS = {
    "mean reward": "mean\nreward",
    "preference rate": "preference\nrate",
    "interval": "interval",
    "harmful share": "harmful\nshare",
    "tokens/s": "tokens\nper s",
    "passes/token": "passes\nper\ntoken",
}


class Labeler(StrEnum):
    """Where labels come from."""

    PREFERENCE = "preference"
    ROLLOUT = "rollout"


_name = partial(typer.Option, metavar="NAME")
_count = partial(typer.Option, metavar="N", min=1)
_rollout = partial(_count, rich_help_panel="Rollouts")
_choice = partial(typer.Option, metavar="NAME", rich_help_panel="Rollouts")
_MODELS = "Models of PKU, UltraRM and Ziya: beaver:MODEL, ultrarm:MODEL, ziya:MODEL."
_reward = partial(_name, "--reward", help=f"module:function, reward model, or pairs:FILE; repeatable. {_MODELS}")
_weight = partial(typer.Option, "--reward-weight", metavar="X", help="One for each reward; 1 by default.")

Value = Literal["policy", "mean"]
Ties = Literal["accept", "drop"]
Weighting = Literal["uniform", "advantage"]
Schedule = Literal["linear", "cosine", "constant"]
ClassWeight = Literal["balanced"]
Precision = Literal["bf16", "fp16"]
Data = Annotated[str, typer.Argument(help="A .json, .jsonl or .parquet file, or a dataset's name on the hub.")]
Device = Annotated[str | None, _name(help="Such as cuda or cpu.")]
Limit = Annotated[int | None, _count(help="Most rows to take; all by default.")]
Seed = Annotated[int, typer.Option(metavar="N", help="Of everything that is drawn.")]
Preset = Literal["default", "reference"]
Split = Annotated[str, _name(help="Which split of a dataset on the hub.")]


@app.command()
def label(
    ctx: typer.Context,
    data: Data,
    output: Annotated[Path, typer.Option(metavar="RUN", help="Run folder; what was interrupted goes on there.")],
    model: Annotated[str | None, _name(help="Hub id or folder; the embedded model by default.")] = None,
    labeler: Annotated[Labeler, _name(help="What is labelled: preference or rollout.")] = Labeler.PREFERENCE,
    all_tokens: Annotated[bool, typer.Option("--all-tokens", help="Of pairs, also what no agent is asked.")] = False,
    top_k: Annotated[int, _count(help="Most candidates of a position.")] = 40,
    top_p: Annotated[float, typer.Option(metavar="X", help="Nucleus mass.")] = 0.95,
    split: Split = "train",
    limit: Limit = None,
    device: Device = None,
    seed: Seed = 0,
    reward: Annotated[list[str] | None, _reward(rich_help_panel="Rollouts")] = None,
    reward_weight: Annotated[list[float] | None, _weight(rich_help_panel="Rollouts")] = None,
    agent: Annotated[str | None, _name(rich_help_panel="Rollouts", help="Who answers: a run folder or agent.")] = None,
    generations: Annotated[int, _rollout(help="Answers per prompt.")] = 1,
    positions: Annotated[int, _rollout(help="Most positions of an answer.")] = 4,
    candidates: Annotated[int, _rollout(min=2, help="Most candidates to compare at a position.")] = 8,
    continuations: Annotated[int, _rollout(help="Completions of a candidate.")] = 1,
    value: Annotated[Value, _choice(help="What a candidate is compared with: policy or mean.")] = "policy",
    margin: Annotated[float, _choice(metavar="X", min=0, help="Rewards this near to the value are ties.")] = 0.0,
    ties: Annotated[Ties, _choice(help="What becomes of ties: accept or drop.")] = "accept",
    weighting: Annotated[Weighting, _choice(help="Of labels: uniform, or by advantage.")] = "uniform",
    max_new_tokens: Annotated[int, _rollout(help="Most tokens of an answer.")] = 256,
) -> None:
    """Labels tokens accept or reject: of preference pairs, or of rollouts that reward functions score.

    Examples:
    $ mara label pairs.jsonl --output run
    $ mara label prompts.jsonl --output run --labeler rollout --reward my:score
    """
    with _one_sentence():
        from langchain_mara_training import jobs, runs

        unused = _UNUSED[labeler]
        _refuse(ctx, unused)
        values = jobs.label(output, runs.resolved(ctx.params, "output", *unused))
        if values:
            _print_values("Labels", values)


@app.command()
def fit(
    ctx: typer.Context,
    run: Annotated[Path, typer.Argument(help="Run folder with labels.")],
    output: Annotated[Path | None, typer.Option(metavar="RUN", help="Folder for the agent; RUN by default.")] = None,
    width: Annotated[int, _count(min=4, help="Units of the agent's first layer.")] = 1024,
    epochs: Annotated[int, _count(help="How often to go through the labels.")] = 10,
    batch_size: Annotated[int, _count(help="Labels per training step.")] = 512,
    learning_rate: Annotated[float, typer.Option(metavar="X", help="At the first step.")] = 1e-3,
    weight_decay: Annotated[float, typer.Option(metavar="X", min=0, help="Of the matrices.")] = 0.01,
    schedule: Annotated[Schedule, _name(help="Of the learning rate: linear, cosine or constant.")] = "linear",
    class_weight: Annotated[ClassWeight | None, _name(help="balanced weighs both labels alike.")] = None,
    mixed_precision: Annotated[Precision | None, _name(help="bf16, or on CUDA fp16; float32 by default.")] = None,
    early_stopping: Annotated[
        bool, typer.Option("--early-stopping", help="Stop when the loss on further groups rises.")
    ] = False,
    validation_fraction: Annotated[
        float, typer.Option(metavar="X", min=0, max=0.9, help="Share of groups to measure on.")
    ] = 0.1,
    device: Device = None,
    seed: Seed = 0,
) -> None:
    """Fits an agent to a run's labels, and measures it on groups (prompts) that took no part.

    Examples:
    $ mara fit run
    $ mara fit run --output narrow --width 256 --early-stopping
    """
    with _one_sentence():
        from langchain_mara_training import jobs, runs

        _print_values("Fit", jobs.fit(run, output, runs.resolved(ctx.params, "run", "output")))


@app.command()
def rl(
    ctx: typer.Context,
    output: Annotated[Path, typer.Option(metavar="RUN", help="Run folder; what was interrupted goes on there.")],
    data: Annotated[str | None, typer.Argument(help="Prompts, as a file or a name on the hub.")] = None,
    recipe: Annotated[str | None, _name(help="Shipped, such as llama-3.1-8b, or a YAML file.")] = None,
    model: Annotated[str | None, _name(help="Hub id or folder; the embedded model by default.")] = None,
    agent: Annotated[str | None, _name(help="To begin with: a run folder or agent.")] = None,
    reward: Annotated[list[str] | None, _reward()] = None,
    reward_weight: Annotated[list[float] | None, _weight()] = None,
    preset: Annotated[Preset | None, _name(help="Environment: default, or the paper's reference.")] = None,
    episodes: Annotated[int | None, _count(help="Answers to play and learn from.")] = None,
    parallel: Annotated[int | None, _count(help="Episodes played at once.")] = None,
    workers: Annotated[int | None, _count(min=0, help="Processes that play; 0: this one.")] = None,
    batch_size: Annotated[int | None, _count(help="Transitions of a gradient step.")] = None,
    warm_up: Annotated[int | None, _count(help="Batches to play before learning begins.")] = None,
    max_new_tokens: Annotated[int | None, _count(help="Most tokens of an answer.")] = None,
    evaluation: Annotated[str | None, _name(help="Prompts to measure on; the best agent is kept.")] = None,
    tracker: Annotated[list[str] | None, _name(help="Such as tensorboard or wandb; repeatable.")] = None,
    split: Annotated[str | None, _name(help="Which split of a dataset on the hub.")] = None,
    prompt_column: Annotated[str | None, _name(help="Column that holds the prompts.")] = None,
    limit: Limit = None,
    device: Device = None,
    seed: Annotated[int | None, typer.Option(metavar="N", min=0, help="Of everything that is drawn.")] = None,
) -> None:
    """Trains an agent by reinforcement: soft actor-critic on answers that reward functions score.

    Options override the recipe; without one they override the defaults of MaraSAC.

    Examples:
    $ mara rl prompts.jsonl --output run --reward my:score --episodes 2000
    $ mara rl --output run --recipe llama-3.1-8b --tracker tensorboard
    """
    with _one_sentence():
        from langchain_mara_training import reinforcement
        from langchain_mara_training.recipe import Recipe

        given = {name: value for name, value in ctx.params.items() if name not in ("output", "recipe")}
        settings = Recipe() if recipe is None else Recipe.load(recipe)
        options = reinforcement.resolve_options(settings, given)
        _print_values("Reinforcement", reinforcement.reinforce(output, options))


@app.command()
def evaluate(
    ctx: typer.Context,
    data: Data,
    agent: Annotated[str, _name(help="Run folder, or agent: folder, hub id, .pth, or repo:file.")],
    model: Annotated[str | None, _name(help="By default the run's, or else the embedded one.")] = None,
    reward: Annotated[list[str] | None, _reward()] = None,
    reward_weight: Annotated[list[float] | None, _weight()] = None,
    best_of: Annotated[list[int] | None, _count(help="Compare with best-of-N, too. Can be repeated.")] = None,
    harmful: Annotated[str | None, _name(help="Like --reward; answers that it puts above 0 are harmful.")] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Keeps all answers; what was interrupted goes on there.")
    ] = None,
    report: Annotated[Path | None, typer.Option(metavar="FILE", help="JSON with all answers.")] = None,
    prompt_column: Annotated[str | None, _name(help="By default prompt, instruction or question.")] = None,
    split: Split = "test",
    limit: Limit = None,
    threshold: Annotated[float, typer.Option(metavar="X", help="Accept probability to exceed.")] = 0.5,
    batch_size: Annotated[int, _count(help="Most prompts in one pass.")] = 32,
    max_new_tokens: Annotated[int | None, _count(help="Most tokens of an answer; the run's, or 256.")] = None,
    top_k: Annotated[int | None, _count(help="Most candidates of a position; the run's, or 40.")] = None,
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
    with _one_sentence():
        from langchain_mara_training import jobs, runs

        found = jobs.evaluate(report, output, runs.resolved(ctx.params, "report", "output"))
        columns = [name for name in _COLUMNS if name != "harmful share" or harmful is not None]
        headers = (Column(_COLUMNS[name], justify="right") for name in columns)
        table = Table("system", *headers, title=found.title)
        for name, values in found.systems.items():
            table.add_row(name, *(_shown(values[column]) for column in columns))
        console.print(table)


@app.command()
def report(
    comparison: Annotated[Path, typer.Argument(help="Folder of a comparison.")],
    output: Annotated[Path | None, typer.Option(metavar="FILE.html", help="By default report.html in it.")] = None,
    title: Annotated[str | None, typer.Option(metavar="TEXT", help="Of the report.")] = None,
    agent: Annotated[str | None, _name(help="Shows what this agent decided: a run folder or agent.")] = None,
    model: Annotated[str | None, _name(help="Where its policy model is; by default where it was.")] = None,
    traces: Annotated[int, _count(help="Most answers to show the agent's decisions of.")] = 5,
    device: Device = None,
) -> None:
    """Writes what a comparison found as a page for people, with the tables in Markdown beside it.

    Examples:
    $ mara report comparison
    $ mara report comparison --agent run --output report.html
    """
    with _one_sentence():
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


@contextmanager
def _one_sentence() -> Iterator[None]:
    """Prints an error as one red sentence and ends the command."""
    logging.disable_progress_bar()
    try:
        yield
    except (MaraError, OSError) as error:
        message = str(error)
    except ImportError as error:
        message = f"This command needs more libraries: pip install 'langchain-mara[training]' ({error})."
    else:
        return
    Console(stderr=True).print(message, style="red", markup=False)
    raise typer.Exit(1)


def _refuse(ctx: typer.Context, unused: tuple[str, ...]) -> None:
    given = [name for name in unused if getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"]
    if given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise OptionsError(f"{options} would have no effect with this labeler. Leave it out.")


def _print_values(title: str, values: dict[str, Any]) -> None:
    table = Table(Column(), Column(justify="right"), show_header=False, title=title)
    for name, value in values.items():
        table.add_row(name, _shown(value))
    console.print(table)


def _shown(value: float | list[float] | None) -> str:
    if isinstance(value, list):
        return "…".join(f"{one:.2f}" for one in value)
    if value is None or value != value:  # noqa: PLR0124 - NaN
        return "-"
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= _WHOLE_FROM else f"{value:,.3f}"
