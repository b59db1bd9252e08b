"""How well agents order human pairs, cross-validated by conversation, next to an agent that does not see the token.

    python benchmarks/real_pairs.py

The blind control judges the state before a candidate alone, so it says the same of all candidates of a position, and
cannot guide at all. What it orders rightly is the context's merit, not the token's.
"""

from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from langchain_mara_training import MaraClassifier, PreferenceLabeler
from langchain_mara_training.demo.smollm2.model import smollm2
from langchain_mara_training.demo.smollm2.pairs import split_pairs
from langchain_mara_training.fitting.pair_scores import PairScores
from langchain_mara_training.labeling.token_labels import TokenLabels
from numpy.typing import NDArray
from rich.table import Table
from sklearn.model_selection import GroupShuffleSplit
from tables import RESULTS, Output, console, publish

from langchain_mara.agents.look_ahead import hidden_size_of_features

SHOWN = ("pair_accuracy", "first_difference_accuracy", "auc_within_pairs", "loss", "calibration_error")
TEST_SHARE = 0.25


def main(
    folder: Annotated[Path, typer.Option(help="Folder of results; labels are kept there.")] = RESULTS / "real",
    seeds: Annotated[int, typer.Option(min=2, help="Number of divisions.")] = 5,
    output: Output = None,
) -> None:
    """Fits both to the same parts of the labels, and scores them on the rest."""
    llm = smollm2(say=console.print, device="cpu")
    labels = PreferenceLabeler(llm, judges="before").label(split_pairs().train, folder / "labels")
    figures: dict[str, list[PairScores]] = {"look-ahead": [], "blind": []}
    cut = GroupShuffleSplit(seeds, test_size=TEST_SHARE, random_state=0)
    for seed, (train, test) in enumerate(cut.split(labels.y, groups=labels.groups)):
        for name, scores in figures.items():
            scores.append(fitted_and_scored(name, part(labels, train), part(labels, test), seed))
            console.print(f"division {seed}, {name}: {scores[-1]}")
    table = Table("agent", *(name.replace("_", " ") for name in SHOWN), title=f"{seeds} divisions by conversation")
    for name, scores in figures.items():
        table.add_row(name, *(_cell([getattr(score, shown) for score in scores]) for shown in SHOWN))
    publish(table, output)


def fitted_and_scored(name: str, train: TokenLabels, test: TokenLabels, seed: int) -> PairScores:
    """Pair scores, on one part of the labels, of an agent fitted to the other.

    Args:
        name: "look-ahead", or "blind" for one that sees only the first columns, the state.
        train: Labels to fit to.
        test: Labels to score.
        seed: Seed of the fit.
    """
    if name == "look-ahead":
        classifier = MaraClassifier(agent="look-ahead", random_state=seed, device="cpu")
    else:
        classifier = MaraClassifier(random_state=seed, device="cpu")
        train, test = blind(train), blind(test)
    return classifier.fit(train.X, train.y, train.weight, train.groups).score_pairs(test)


def blind(labels: TokenLabels) -> TokenLabels:
    """The same labels, with the state before the candidate as the only feature."""
    features = np.asarray(labels.X)
    return replace(labels, X=features[:, : hidden_size_of_features(features.shape[1])])


def part(labels: TokenLabels, rows: NDArray[np.int64]) -> TokenLabels:
    """Some rows of labels, in memory."""
    columns = {field.name: getattr(labels, field.name)[rows] for field in fields(labels)}
    return TokenLabels(**columns)


def _cell(values: list[float]) -> str:
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"


if __name__ == "__main__":
    torch.set_flush_denormal(True)
    typer.run(main)
