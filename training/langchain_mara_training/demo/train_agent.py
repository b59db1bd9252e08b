"""Rebuilds the agent of the bundled model: `python -m langchain_mara_training.demo.train_agent`.

It uses only `MaraAligner` and `MaraClassifier`, as any user would.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer

from langchain_mara import MaraAgent, MaraLLM
from langchain_mara.loading.models import DEMO_AGENT_FOLDER
from langchain_mara_training.aligner import MaraAligner
from langchain_mara_training.demo.corpus import preference_pairs
from langchain_mara_training.fitting.classifier import MaraClassifier

DEFAULT_SEED = 2505
POLICY_MODEL = "langchain-mara demo"


def make_agent(seed: int = DEFAULT_SEED, pairs_per_topic: int = 24) -> MaraAgent:
    """Fits an agent to the tokens of preference pairs about the training topics.

    Args:
        seed: Seed of pairs, weights and batch order. Equal seeds give equal agents on the same kind of processor.
        pairs_per_topic: Number of pairs about each topic.
    """
    pairs = [asdict(pair) for pair in preference_pairs("train", seed, pairs_per_topic)]
    # The parameters that the shipped file was fitted with, before the defaults were chosen on a real model.
    classifier = MaraClassifier(
        max_epochs=12, learning_rate=1e-3, weight_decay=0.01, dropout=0, input_dropout=0, early_stopping=False,
        policy_model=POLICY_MODEL,
    )  # fmt: skip
    aligner = MaraAligner(MaraLLM.demo(agent=None), classifier=classifier, rounds=1, random_state=seed)
    agent: MaraAgent = aligner.fit(pairs).agent_
    return agent


def main(
    seed: Annotated[int, typer.Option(help="Seed of pairs, weights and batch order.")] = DEFAULT_SEED,
    output: Annotated[Path, typer.Option(help="Folder of the agent; by default the bundled one.")] = DEMO_AGENT_FOLDER,
) -> None:
    """Fits the agent of the bundled model and saves it."""
    # One thread, so that the result does not depend on the number of cores.
    torch.set_num_threads(1)
    make_agent(seed).save_pretrained(output)
    typer.echo(f"agent: written to {output}")


if __name__ == "__main__":
    typer.run(main)
