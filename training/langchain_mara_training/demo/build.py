"""Rebuilds the demonstration's policy model from nothing: `python -m langchain_mara_training.demo.build`.

Its agent is made by `python -m langchain_mara_training.demo.train_agent`.
"""

from pathlib import Path
from typing import Annotated

import typer

from langchain_mara.loading.models import DEMO_MODEL_FOLDER
from langchain_mara_training.demo.train_model import build_model

DEFAULT_SEED = 2505


def build(
    seed: Annotated[int, typer.Option(help="Seed of corpus and weights.")] = DEFAULT_SEED,
    output: Annotated[Path, typer.Option(help="Folder of the model.")] = DEMO_MODEL_FOLDER,
) -> None:
    """Trains the demonstration's policy model and saves it."""
    loss = build_model(output, seed)
    typer.echo(f"model: mean loss of the last steps {loss:.3f}, written to {output}")


if __name__ == "__main__":
    typer.run(build)
