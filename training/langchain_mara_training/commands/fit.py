"""`mara fit` and `mara distill`: fit an agent to labels, or to what another agent says."""

# The job reads its options from the context. Heavy libraries are imported only when the command runs.
# ruff: noqa: ARG001, PLC0415

from pathlib import Path
from typing import Annotated, Literal

import typer

from langchain_mara.cli import one_sentence
from langchain_mara.options import DEFAULT_LOOK_AHEAD_RANK, DEFAULT_LOOK_AHEAD_WIDTH, DEFAULTS
from langchain_mara_training.commands.options import (
    Data,
    DataName,
    DataRevision,
    Device,
    Json,
    Limit,
    Seed,
    Split,
    count_option,
    name_option,
    number_option,
    print_values,
    reward_option,
    weight_option,
)
from langchain_mara_training.storage.defaults import FITTING_DEFAULTS, Precision, Schedule

ClassWeight = Literal["balanced"]
Kind = Literal["state", "look-ahead"]
_rank = count_option(min=0, help="Rank of a look-ahead agent's matrix for tokens; 0 for a full one.")


def fit(
    ctx: typer.Context,
    run: Annotated[Path, typer.Argument(help="Run folder with labels.")],
    output: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Run folder for the agent; the folder with the labels by default."),
    ] = None,
    agent: Annotated[
        Kind, name_option(help="Kind of agent: state, or look-ahead for labels made with --judges before.")
    ] = "state",
    rank: Annotated[int, _rank] = DEFAULT_LOOK_AHEAD_RANK,
    width: Annotated[int, count_option(min=4, help="Units of the agent's first layer.")] = FITTING_DEFAULTS.width,
    epochs: Annotated[int, count_option(help="Passes over the labels.")] = FITTING_DEFAULTS.max_epochs,
    batch_size: Annotated[int, count_option(help="Labels per training step.")] = FITTING_DEFAULTS.batch_size,
    learning_rate: Annotated[
        float, number_option(help="Learning rate at the first step.")
    ] = FITTING_DEFAULTS.learning_rate,
    weight_decay: Annotated[
        float, number_option(min=0, help="Weight decay of the matrices.")
    ] = FITTING_DEFAULTS.weight_decay,
    schedule: Annotated[
        Schedule, name_option(help="Course of the learning rate: linear, cosine or constant.")
    ] = FITTING_DEFAULTS.schedule,
    dropout: Annotated[
        float, number_option(min=0, max=0.99, help="Share of the hidden units that a step leaves out.")
    ] = FITTING_DEFAULTS.dropout,
    input_dropout: Annotated[
        float, number_option(min=0, max=0.99, help="Share of the states' entries that a step leaves out.")
    ] = FITTING_DEFAULTS.input_dropout,
    class_weight: Annotated[ClassWeight | None, name_option(help="balanced gives both labels equal weight.")] = None,
    mixed_precision: Annotated[Precision | None, name_option(help="bf16, or on CUDA fp16; float32 by default.")] = None,
    all_epochs: Annotated[
        bool, typer.Option("--all-epochs", help="Go on when the loss on further held-out groups rises.")
    ] = False,
    validation_fraction: Annotated[
        float, number_option(min=0, max=0.9, help="Share of the groups to hold out and measure on.")
    ] = FITTING_DEFAULTS.validation_fraction,
    device: Device = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Fits an agent to a run's labels, and measures it on held-out groups (prompts).

    Examples:
    $ mara fit run
    $ mara fit run --output wide --width 1024 --all-epochs
    """
    with one_sentence():
        from langchain_mara_training import run_folder
        from langchain_mara_training.jobs.fit import fit as fit_run

        # A run of an earlier version says nothing of kinds, and resumes.
        as_before = ("agent", "rank") if agent == "state" else ()
        options = run_folder.resolved(ctx.params, "run", "output", "as_json", "all_epochs", *as_before)
        options["early_stopping"] = not all_epochs
        print_values("Fit", fit_run(run, output, options), as_json=as_json)


def distill(
    ctx: typer.Context,
    data: Data,
    output: Annotated[Path, typer.Option(metavar="RUN", help="Run folder for the look-ahead agent.")],
    model: Annotated[str | None, name_option(help="Hub id or folder; the bundled model by default.")] = None,
    agent: Annotated[
        str | None, name_option(help="Agent to distill: run folder, folder, hub id, .pth file, or repo:file.")
    ] = None,
    reward: Annotated[list[str] | None, reward_option()] = None,
    reward_weight: Annotated[list[float] | None, weight_option()] = None,
    answers: Annotated[int, count_option(help="Answers per prompt: the agent's own, then drawn ones.")] = 2,
    rounds: Annotated[
        int, count_option(help="Fits; each further one also learns from answers of the look-ahead agent so far.")
    ] = 2,
    held_out: Annotated[float, number_option(min=0.01, max=0.9, help="Share of the prompts to measure on.")] = 0.2,
    width: Annotated[int, count_option(min=4, help="Units of the agent's first layer.")] = DEFAULT_LOOK_AHEAD_WIDTH,
    rank: Annotated[int, _rank] = DEFAULT_LOOK_AHEAD_RANK,
    top_k: Annotated[int, count_option(help="Most candidates of a position.")] = DEFAULTS.top_k,
    top_p: Annotated[float, number_option(help="Nucleus mass.")] = DEFAULTS.top_p,
    max_new_tokens: Annotated[int, count_option(help="Most tokens of an answer.")] = DEFAULTS.max_new_tokens,
    split: Split = "train",
    data_name: DataName = None,
    data_revision: DataRevision = None,
    limit: Limit = None,
    device: Device = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Distills an agent into a look-ahead agent, which needs one pass per token, and measures how they agree.

    Examples:
    $ mara distill prompts.jsonl --output ahead
    $ mara distill prompts.jsonl --output ahead --model org/model --agent run --reward my:score
    """
    with one_sentence():
        from langchain_mara_training import run_folder
        from langchain_mara_training.jobs.distill import distill_agent

        options = run_folder.resolved(ctx.params, "output", "as_json")
        print_values("Distillation", distill_agent(output, options), as_json=as_json)
