"""Rebuilds the demonstration, policy model and agent, from nothing: `python -m langchain_mara.demo.build`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from langchain_mara.demo import AGENT_FOLDER, MODEL_FOLDER

DEFAULT_SEED = 2505


class Part(StrEnum):
    """What to rebuild."""

    MODEL = "model"
    AGENT = "agent"


def build(
    seed: Annotated[int, typer.Option(help="Seed of corpus and weights.")] = DEFAULT_SEED,
    only: Annotated[Part | None, typer.Option(help="Rebuild only this part.")] = None,
    output: Annotated[Path, typer.Option(help="Folder for model/ and agent/.")] = MODEL_FOLDER.parent,
) -> None:
    """Train the demonstration model, then its agent."""
    model_folder = output / MODEL_FOLDER.name
    if only is not Part.AGENT:
        from langchain_mara.demo.train_model import build_model

        loss = build_model(model_folder, seed)
        typer.echo(f"model: mean loss of the last steps {loss:.3f}, written to {model_folder}")
    if only is not Part.MODEL:
        from langchain_mara.demo.train_agent import build_agent

        build_agent(model_folder, output / AGENT_FOLDER.name, seed)
        typer.echo(f"agent: written to {output / AGENT_FOLDER.name}")


if __name__ == "__main__":
    typer.run(build)
