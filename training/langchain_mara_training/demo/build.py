"""Rebuilds the bundled policy model from scratch: `python -m langchain_mara_training.demo.build`.

Afterwards, rebuild its agent with `python -m langchain_mara_training.demo.train_agent`.
"""

from pathlib import Path
from typing import Annotated

import typer

from langchain_mara.loading.models import DEMO_MODEL_FOLDER
from langchain_mara_training.demo.train_model import build_model

DEFAULT_SEED = 2505


def build(
    seed: Annotated[int, typer.Option(help="Seed of the corpus and of the weights.")] = DEFAULT_SEED,
    output: Annotated[Path, typer.Option(help="Folder of the model; by default the bundled one.")] = DEMO_MODEL_FOLDER,
) -> None:
    """Trains the bundled policy model and saves it."""
    loss = build_model(output, seed)
    typer.echo(f"model: mean loss of the last steps {loss:.3f}, written to {output}")


if __name__ == "__main__":
    typer.run(build)
