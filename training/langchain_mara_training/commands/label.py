"""`mara label`: token-level labels, from preference pairs or from rollouts."""

# Options reach the job through the context, and the job's libraries are imported only when the command runs.
# ruff: noqa: ARG001, PLC0415

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from langchain_mara.cli import one_sentence
from langchain_mara.exceptions import OptionsError
from langchain_mara.options import DEFAULTS
from langchain_mara_training.commands.options import (
    Data,
    Device,
    Limit,
    Seed,
    Split,
    count_option,
    name_option,
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


def label(
    ctx: typer.Context,
    data: Data,
    output: Annotated[Path, typer.Option(metavar="RUN", help="Run folder; what was interrupted goes on there.")],
    model: Annotated[str | None, name_option(help="Hub id or folder; the embedded model by default.")] = None,
    labeler: Annotated[Labeler, name_option(help="What is labelled: preference or rollout.")] = Labeler.PREFERENCE,
    all_tokens: Annotated[bool, typer.Option("--all-tokens", help="Of pairs, also what no agent is asked.")] = False,
    top_k: Annotated[int, count_option(help="Most candidates of a position.")] = DEFAULTS.top_k,
    top_p: Annotated[float, typer.Option(metavar="X", help="Nucleus mass.")] = DEFAULTS.top_p,
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
    max_new_tokens: Annotated[int, _rollout(help="Most tokens of an answer.")] = DEFAULTS.max_new_tokens,
) -> None:
    """Labels tokens accept or reject: of preference pairs, or of rollouts that reward functions score.

    Examples:
    $ mara label pairs.jsonl --output run
    $ mara label prompts.jsonl --output run --labeler rollout --reward my:score
    """
    with one_sentence():
        from langchain_mara_training import run_folder
        from langchain_mara_training.jobs.label import label as label_run

        unused = _UNUSED[labeler]
        _refuse(ctx, unused)
        values = label_run(output, run_folder.resolved(ctx.params, "output", *unused))
        if values:
            print_values("Labels", values)


def _refuse(ctx: typer.Context, unused: tuple[str, ...]) -> None:
    given = [name for name in unused if getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"]
    if given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise OptionsError(f"{options} would have no effect with this labeler. Leave it out.")
