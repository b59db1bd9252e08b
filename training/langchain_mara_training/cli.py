"""The `mara` command with training: `label`, `fit`, `rl` and what compares join those of `langchain_mara.cli`."""

# The command starts, and answers, without what only these subcommands need; options are handed on by the context.
# ruff: noqa: ARG001, PLC0415

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from langchain_mara.cli import app
from langchain_mara.exceptions import OptionsError
from langchain_mara_training.cli_evaluation import evaluate, report, table
from langchain_mara_training.cli_parts import (
    Data,
    Device,
    Limit,
    Seed,
    Split,
    count_option,
    name_option,
    one_sentence,
    print_values,
    reward_option,
    weight_option,
)

_ROLLOUTS = ("generations", "positions", "candidates", "continuations", "value", "margin", "ties", "weighting")
# Options that the other labeler has no use for.
_UNUSED = {"preference": ("reward", "reward_weight", "agent", "max_new_tokens", *_ROLLOUTS), "rollout": ("all_tokens",)}


class Labeler(StrEnum):
    """Where labels come from."""

    PREFERENCE = "preference"
    ROLLOUT = "rollout"


_rollout = partial(count_option, rich_help_panel="Rollouts")
_choice = partial(typer.Option, metavar="NAME", rich_help_panel="Rollouts")

Value = Literal["policy", "mean"]
Ties = Literal["accept", "drop"]
Weighting = Literal["uniform", "advantage"]
Schedule = Literal["linear", "cosine", "constant"]
ClassWeight = Literal["balanced"]
Precision = Literal["bf16", "fp16"]
Preset = Literal["default", "reference"]


@app.command()
def label(
    ctx: typer.Context,
    data: Data,
    output: Annotated[Path, typer.Option(metavar="RUN", help="Run folder; what was interrupted goes on there.")],
    model: Annotated[str | None, name_option(help="Hub id or folder; the embedded model by default.")] = None,
    labeler: Annotated[Labeler, name_option(help="What is labelled: preference or rollout.")] = Labeler.PREFERENCE,
    all_tokens: Annotated[bool, typer.Option("--all-tokens", help="Of pairs, also what no agent is asked.")] = False,
    top_k: Annotated[int, count_option(help="Most candidates of a position.")] = 40,
    top_p: Annotated[float, typer.Option(metavar="X", help="Nucleus mass.")] = 0.95,
    split: Split = "train",
    limit: Limit = None,
    device: Device = None,
    seed: Seed = 0,
    reward: Annotated[list[str] | None, reward_option(rich_help_panel="Rollouts")] = None,
    reward_weight: Annotated[list[float] | None, weight_option(rich_help_panel="Rollouts")] = None,
    agent: Annotated[
        str | None, name_option(rich_help_panel="Rollouts", help="Who answers: a run folder or agent.")
    ] = None,
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
    with one_sentence():
        from langchain_mara_training import jobs, runs

        unused = _UNUSED[labeler]
        _refuse(ctx, unused)
        values = jobs.label(output, runs.resolved(ctx.params, "output", *unused))
        if values:
            print_values("Labels", values)


@app.command()
def fit(
    ctx: typer.Context,
    run: Annotated[Path, typer.Argument(help="Run folder with labels.")],
    output: Annotated[Path | None, typer.Option(metavar="RUN", help="Folder for the agent; RUN by default.")] = None,
    width: Annotated[int, count_option(min=4, help="Units of the agent's first layer.")] = 1024,
    epochs: Annotated[int, count_option(help="How often to go through the labels.")] = 10,
    batch_size: Annotated[int, count_option(help="Labels per training step.")] = 512,
    learning_rate: Annotated[float, typer.Option(metavar="X", help="At the first step.")] = 1e-3,
    weight_decay: Annotated[float, typer.Option(metavar="X", min=0, help="Of the matrices.")] = 0.01,
    schedule: Annotated[Schedule, name_option(help="Of the learning rate: linear, cosine or constant.")] = "linear",
    class_weight: Annotated[ClassWeight | None, name_option(help="balanced weighs both labels alike.")] = None,
    mixed_precision: Annotated[Precision | None, name_option(help="bf16, or on CUDA fp16; float32 by default.")] = None,
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
    with one_sentence():
        from langchain_mara_training import jobs, runs

        print_values("Fit", jobs.fit(run, output, runs.resolved(ctx.params, "run", "output")))


@app.command()
def rl(
    ctx: typer.Context,
    output: Annotated[Path, typer.Option(metavar="RUN", help="Run folder; what was interrupted goes on there.")],
    data: Annotated[str | None, typer.Argument(help="Prompts, as a file or a name on the hub.")] = None,
    recipe: Annotated[str | None, name_option(help="Shipped, such as llama-3.1-8b, or a YAML file.")] = None,
    model: Annotated[str | None, name_option(help="Hub id or folder; the embedded model by default.")] = None,
    agent: Annotated[str | None, name_option(help="To begin with: a run folder or agent.")] = None,
    reward: Annotated[list[str] | None, reward_option()] = None,
    reward_weight: Annotated[list[float] | None, weight_option()] = None,
    preset: Annotated[Preset | None, name_option(help="Environment: default, or the paper's reference.")] = None,
    episodes: Annotated[int | None, count_option(help="Answers to play and learn from.")] = None,
    parallel: Annotated[int | None, count_option(help="Episodes played at once.")] = None,
    workers: Annotated[int | None, count_option(min=0, help="Processes that play; 0: this one.")] = None,
    batch_size: Annotated[int | None, count_option(help="Transitions of a gradient step.")] = None,
    warm_up: Annotated[int | None, count_option(help="Batches to play before learning begins.")] = None,
    max_new_tokens: Annotated[int | None, count_option(help="Most tokens of an answer.")] = None,
    evaluation: Annotated[str | None, name_option(help="Prompts to measure on; the best agent is kept.")] = None,
    tracker: Annotated[list[str] | None, name_option(help="Such as tensorboard or wandb; repeatable.")] = None,
    split: Annotated[str | None, name_option(help="Which split of a dataset on the hub.")] = None,
    prompt_column: Annotated[str | None, name_option(help="Column that holds the prompts.")] = None,
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
    with one_sentence():
        from langchain_mara_training import reinforcement
        from langchain_mara_training.recipe import Recipe

        given = {name: value for name, value in ctx.params.items() if name not in ("output", "recipe")}
        settings = Recipe() if recipe is None else Recipe.load(recipe)
        options = reinforcement.resolve_options(settings, given)
        print_values("Reinforcement", reinforcement.reinforce(output, options))


def _refuse(ctx: typer.Context, unused: tuple[str, ...]) -> None:
    given = [name for name in unused if getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"]
    if given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise OptionsError(f"{options} would have no effect with this labeler. Leave it out.")


for command in (evaluate, report, table):
    app.command()(command)
