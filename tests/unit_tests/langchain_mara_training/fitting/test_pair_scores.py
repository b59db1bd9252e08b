"""Scores of preference pairs, by hand."""

import math

import numpy as np
import pytest
from langchain_mara_training import MaraClassifier
from langchain_mara_training.fitting.pair_scores import score_pairs
from langchain_mara_training.labeling.token_labels import TokenLabels

from langchain_mara.exceptions import DataError

# pair, label, offset, log-odds: pair 0 is ordered rightly, pair 1 wrongly but not at its first difference, pair 2 has
# lost its first chosen token to the candidate filter, pair 3 one whole answer, and the last row is of no pair.
ROWS = [
    (0, 1, 0, 1.0), (0, 1, 1, 3.0), (0, 0, 0, -1.0), (0, 0, 1, 2.0),
    (1, 1, 0, 0.5), (1, 1, 1, -4.0), (1, 0, 0, 0.0),
    (2, 1, 1, 1.0), (2, 0, 0, -1.0),
    (3, 1, 0, 5.0),
    (-1, 0, -1, 0.0),
]  # fmt: skip
ORDER = np.random.default_rng(0).permutation(len(ROWS))


def labels(rows: np.ndarray) -> TokenLabels:
    count = len(rows)
    pairs, y, offsets = rows[:, 0].astype(int), rows[:, 1].astype(int), rows[:, 2].astype(int)
    states, numbers = np.repeat(rows[:, 3:].astype(np.float16), 4, axis=1), np.arange(count)
    return TokenLabels(states, y, np.ones(count, np.float32), pairs, numbers, numbers, numbers, pairs, offsets)


def test_by_hand() -> None:
    rows = np.array(ROWS)[ORDER]
    scores = score_pairs(rows[:, 3], labels(rows))
    assert (scores.pairs, scores.first_differences) == (3, 2)
    assert scores.pair_accuracy == pytest.approx(2 / 3)
    assert scores.first_difference_accuracy == 1
    assert scores.auc_within_pairs == pytest.approx(np.mean([3 / 4, 1 / 2, 1]))
    losses = [math.log1p(math.exp(-odds if label else odds)) for _, label, _, odds in ROWS]
    assert scores.loss == pytest.approx(np.mean(losses))


def test_calibration_error_by_hand() -> None:
    # One bin holds probabilities of 0.75 with half of the labels accept, another 0.05 with none.
    odds = np.array([math.log(3)] * 4 + [math.log(0.05 / 0.95)] * 2)
    rows = np.column_stack([[0] * 6, [1, 1, 0, 0, 0, 0], np.arange(6), odds])
    assert score_pairs(odds, labels(rows)).calibration_error == pytest.approx((4 * 0.25 + 2 * 0.05) / 6)


def test_equal_means_count_half_and_missing_first_differences_are_nan() -> None:
    rows = np.array([(0, 1, 1, 2.0), (0, 0, 0, 2.0)])
    scores = score_pairs(rows[:, 3], labels(rows))
    assert scores.pair_accuracy == 0.5
    assert math.isnan(scores.first_difference_accuracy)


def test_labels_without_pairs() -> None:
    with pytest.raises(DataError, match="No pair has labeled tokens of both answers"):
        score_pairs(np.zeros(2), labels(np.array([(-1, 1, -1, 0.0), (-1, 0, -1, 0.0)])))


@pytest.mark.parametrize("names", [(0, 1), ("reject", "accept"), ("rejected", "chosen"), ("good", "bad")])
def test_whatever_the_classes_are_called(names: tuple[object, object]) -> None:
    states = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    accepted = (states[:, 0] > states[:, 1]).astype(int)
    if names[0] == "good":
        names = names[::-1]
    y = np.array([names[label] for label in accepted])
    classifier = MaraClassifier(width=8, max_epochs=30, learning_rate=0.03, dropout=0, input_dropout=0, random_state=0)
    pairs = np.arange(64) // 16
    data = TokenLabels(states, accepted, np.ones(64, np.float32), pairs, *[pairs] * 3, pairs, np.arange(64) % 16)
    scores = classifier.fit(states, y).score_pairs(data)
    assert scores.pair_accuracy == 1
    assert scores.auc_within_pairs > 0.9
