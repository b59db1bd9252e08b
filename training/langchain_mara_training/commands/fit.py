"""`mara fit`: fits an agent to labels."""

# The job reads its options from the context. Heavy libraries are imported only when the command runs.
# ruff: noqa: ARG001, PLC0415

from pathlib import Path
from typing import Annotated, Literal

import typer

from langchain_mara.cli import one_sentence
from langchain_mara_training.commands.options import (
    Device,
    Json,
    Seed,
    count_option,
    name_option,
    number_option,
    print_values,
)
from langchain_mara_training.storage.defaults import FITTING_DEFAULTS, Precision, Schedule

ClassWeight = Literal["balanced"]


def fit(
    ctx: typer.Context,
    run: Annotated[Path, typer.Argument(help="Run folder with labels.")],
    output: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Run folder for the agent; the folder with the labels by default."),
    ] = None,
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

        options = run_folder.resolved(ctx.params, "run", "output", "as_json", "all_epochs")
        options["early_stopping"] = not all_epochs
        print_values("Fit", fit_run(run, output, options), as_json=as_json)
