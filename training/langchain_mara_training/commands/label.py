"""`mara label`: labels tokens by preference pairs or by rollouts."""

# The job reads its options from the context. Heavy libraries are imported only when the command runs.
# ruff: noqa: ARG001, PLC0415

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from langchain_mara.cli import one_sentence
from langchain_mara.options import DEFAULTS
from langchain_mara_training.commands.examples import print_examples
from langchain_mara_training.commands.options import (
    Data,
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
    print_values,
    refuse_unused,
    reward_option,
    weight_option,
)
from langchain_mara_training.labeling.rollout_options import ROLLOUT_DEFAULTS, RolloutOptions, Ties, Value, Weighting
from langchain_mara_training.storage.defaults import OnBadRow, TooLong

# Options that have no effect with a labeler.
_UNUSED = {
    "preference": ("reward", "reward_weight", "agent", "max_new_tokens", *RolloutOptions.model_fields),
    "rollout": ("all_tokens",),
}


Judging = Literal["before", "after"]


class Labeler(StrEnum):
    """Source of the labels."""

    PREFERENCE = "preference"
    ROLLOUT = "rollout"


_rollout = partial(count_option, rich_help_panel="Rollouts")
_choice = partial(typer.Option, metavar="NAME", rich_help_panel="Rollouts")


def label(
    ctx: typer.Context,
    data: Data,
    output: Annotated[Path, typer.Option(metavar="RUN", help="Run folder; an interrupted job resumes there.")],
    model: Annotated[str | None, name_option(help="Hub id or folder; the bundled model by default.")] = None,
    labeler: Annotated[Labeler, name_option(help="Source of the labels: preference or rollout.")] = Labeler.PREFERENCE,
    judges: Annotated[
        Judging, name_option(help="Agent to fit: after judges the state after a token, before looks ahead.")
    ] = "after",
    all_tokens: Annotated[
        bool, typer.Option("--all-tokens", help="Also label tokens of the pairs that no agent is asked about.")
    ] = False,
    top_k: Annotated[int, count_option(help="Most candidates of a position.")] = DEFAULTS.top_k,
    top_p: Annotated[float, number_option(help="Nucleus mass.")] = DEFAULTS.top_p,
    too_long: Annotated[
        TooLong, name_option(help="What a prompt that leaves no room for an answer does: error, skip or truncate-left.")
    ] = "error",
    on_bad_row: Annotated[
        OnBadRow, name_option(help="What a row that cannot be used does: error, or skip, which counts it.")
    ] = "error",
    split: Split = "train",
    data_name: DataName = None,
    data_revision: DataRevision = None,
    streaming: Annotated[
        bool, typer.Option("--streaming", help="Read a data set on the hub as it is needed, without storing it.")
    ] = False,
    limit: Limit = None,
    device: Device = None,
    seed: Seed = 0,
    engine: EngineOption = "process",
    workers: Workers = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    reward: Annotated[list[str] | None, reward_option(rich_help_panel="Rollouts")] = None,
    reward_weight: Annotated[list[float] | None, weight_option(rich_help_panel="Rollouts")] = None,
    agent: Annotated[
        str | None,
        name_option(rich_help_panel="Rollouts", help="Run folder or agent that answers; plain decoding by default."),
    ] = None,
    generations: Annotated[int, _rollout(help="Answers per prompt.")] = ROLLOUT_DEFAULTS.generations,
    positions: Annotated[int, _rollout(help="Most positions of an answer.")] = ROLLOUT_DEFAULTS.positions,
    candidates: Annotated[
        int, _rollout(min=2, help="Most candidates to compare at a position.")
    ] = ROLLOUT_DEFAULTS.candidates,
    continuations: Annotated[int, _rollout(help="Completions of each candidate.")] = ROLLOUT_DEFAULTS.continuations,
    value: Annotated[
        Value, _choice(help="Average that a candidate is compared with: policy or mean.")
    ] = ROLLOUT_DEFAULTS.value,
    margin: Annotated[
        float, _choice(metavar="X", min=0, help="Largest distance from the value that counts as a tie.")
    ] = ROLLOUT_DEFAULTS.margin,
    ties: Annotated[Ties, _choice(help="Treatment of ties: accept or drop.")] = ROLLOUT_DEFAULTS.ties,
    weighting: Annotated[
        Weighting, _choice(help="Weight of a label: uniform or advantage.")
    ] = ROLLOUT_DEFAULTS.weighting,
    max_new_tokens: Annotated[int, _rollout(help="Most tokens of an answer.")] = DEFAULTS.max_new_tokens,
) -> None:
    """Labels tokens accept or reject, by preference pairs or by rollouts that reward functions score.

    Examples:
    $ mara label pairs.jsonl --output run
    $ mara label prompts.jsonl --output run --labeler rollout --reward my:score
    """
    with one_sentence():
        from langchain_mara_training import run_folder
        from langchain_mara_training.jobs.engines import EngineChoice
        from langchain_mara_training.jobs.label import FIRST_BAD_ROWS, label_examples
        from langchain_mara_training.jobs.label import label as label_run

        unused = _UNUSED[labeler]
        refuse_unused(ctx, unused, "with this labeler")
        # A run of an earlier version says nothing of the state that is judged, and resumes.
        as_before = ("judges",) if judges == "after" else ()
        options = run_folder.resolved(
            ctx.params, "output", "as_json", "dry_run", "engine", "workers", *unused, *as_before
        )
        if dry_run:
            print_examples(*label_examples(output, options), as_json=as_json)
            return
        values = label_run(output, options, EngineChoice(engine, workers))
        for sentence in values.get(FIRST_BAD_ROWS, ()):
            typer.echo(f"Skipped: {sentence}", err=True)
        if not as_json:
            values.pop(FIRST_BAD_ROWS, None)
        if values:
            print_values("Labels", values, as_json=as_json)
