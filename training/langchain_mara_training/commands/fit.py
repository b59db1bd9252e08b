"""`mara fit`: an agent fitted to labels."""

# Options reach the job through the context, and the job's libraries are imported only when the command runs.
# ruff: noqa: ARG001, PLC0415

from pathlib import Path
from typing import Annotated, Literal

import typer

from langchain_mara.cli import one_sentence
from langchain_mara_training.commands.options import (
    Device,
    Seed,
    count_option,
    name_option,
    print_values,
)

Schedule = Literal["linear", "cosine", "constant"]
ClassWeight = Literal["balanced"]
Precision = Literal["bf16", "fp16"]


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
        from langchain_mara_training import run_folder
        from langchain_mara_training.jobs.fit import fit as fit_run

        print_values("Fit", fit_run(run, output, run_folder.resolved(ctx.params, "run", "output")))
