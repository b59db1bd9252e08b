"""`mara rl`: an agent trained by reinforcement."""

# Options reach the job through the context, and the job's libraries are imported only when the command runs.
# ruff: noqa: ARG001, PLC0415

from pathlib import Path
from typing import Annotated, Literal

import typer

from langchain_mara.cli import one_sentence
from langchain_mara_training.commands.options import (
    Device,
    Limit,
    count_option,
    name_option,
    print_values,
    reward_option,
    weight_option,
)

Preset = Literal["default", "reference"]


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
        from langchain_mara_training.jobs import rl as reinforcement
        from langchain_mara_training.reinforcement.recipe import Recipe

        given = {name: value for name, value in ctx.params.items() if name not in ("output", "recipe")}
        settings = Recipe() if recipe is None else Recipe.load(recipe)
        options = reinforcement.resolve_options(settings, given)
        print_values("Reinforcement", reinforcement.reinforce(output, options))
