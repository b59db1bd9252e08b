"""`mara rl`: trains an agent by reinforcement."""

# The job reads its options from the context. Heavy libraries are imported only when the command runs.
# ruff: noqa: ARG001, PLC0415

from pathlib import Path
from typing import Annotated, Literal

import typer

from langchain_mara.cli import one_sentence
from langchain_mara_training.commands.examples import print_examples
from langchain_mara_training.commands.options import (
    DataName,
    DataRevision,
    Device,
    DryRun,
    Json,
    Limit,
    count_option,
    name_option,
    print_values,
    reward_option,
    weight_option,
)

Preset = Literal["default", "reference"]
Kind = Literal["state", "look-ahead"]

_NOT_OF_THE_JOB = {"output", "recipe", "dry_run", "as_json"}


def rl(
    ctx: typer.Context,
    output: Annotated[Path, typer.Option(metavar="RUN", help="Run folder; an interrupted job resumes there.")],
    data: Annotated[str | None, typer.Argument(help="Prompts: a file or the name of a data set on the hub.")] = None,
    recipe: Annotated[
        str | None, name_option(help="Name of a shipped recipe, such as llama-3.1-8b, or a YAML file.")
    ] = None,
    model: Annotated[str | None, name_option(help="Hub id or folder; the bundled model by default.")] = None,
    agent: Annotated[str | None, name_option(help="Run folder or agent to start from.")] = None,
    kind: Annotated[
        Kind | None, name_option(help="Kind of a new agent: state, or look-ahead, which needs one pass per token.")
    ] = None,
    reward: Annotated[list[str] | None, reward_option()] = None,
    reward_weight: Annotated[list[float] | None, weight_option()] = None,
    preset: Annotated[
        Preset | None, name_option(help="Environment: default, or reference for that of the paper's code.")
    ] = None,
    episodes: Annotated[int | None, count_option(help="Number of answers to play and learn from.")] = None,
    parallel: Annotated[int | None, count_option(help="Episodes played at once.")] = None,
    workers: Annotated[
        int | None, count_option(min=0, help="Number of processes that play; with 0 this process plays.")
    ] = None,
    batch_size: Annotated[int | None, count_option(help="Transitions per gradient step.")] = None,
    warm_up: Annotated[int | None, count_option(help="Number of batches to play before learning begins.")] = None,
    max_new_tokens: Annotated[int | None, count_option(help="Most tokens of an answer.")] = None,
    evaluation: Annotated[str | None, name_option(help="Prompts to evaluate on; the best agent is kept.")] = None,
    tracker: Annotated[list[str] | None, name_option(help="Tracker, such as tensorboard or wandb; repeatable.")] = None,
    split: Annotated[str | None, name_option(help="Split of a data set on the hub.")] = None,
    data_name: DataName = None,
    data_revision: DataRevision = None,
    prompt_column: Annotated[str | None, name_option(help="Column that holds the prompts.")] = None,
    limit: Limit = None,
    device: Device = None,
    seed: Annotated[int | None, typer.Option(metavar="N", min=0, help="Seed of all random draws.")] = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Trains an agent by reinforcement: soft actor-critic on answers that reward functions score.

    Options override the recipe, or the defaults of MaraSAC if there is no recipe.

    Examples:
    $ mara rl prompts.jsonl --output run --reward my:score --episodes 2000
    $ mara rl --output run --recipe llama-3.1-8b --tracker tensorboard
    """
    with one_sentence():
        from langchain_mara_training.jobs import rl as reinforcement
        from langchain_mara_training.reinforcement.recipe import Recipe

        given = {name: value for name, value in ctx.params.items() if name not in _NOT_OF_THE_JOB}
        settings = Recipe() if recipe is None else Recipe.load(recipe)
        options = reinforcement.resolve_options(settings, given)
        if dry_run:
            print_examples(*reinforcement.examples(output, options), as_json=as_json)
        else:
            print_values("Reinforcement", reinforcement.reinforce(output, options), as_json=as_json)
