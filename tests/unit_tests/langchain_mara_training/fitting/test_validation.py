"""Accuracy on labels that an agent was not fitted to."""

from typing import Any

import numpy as np
import pytest
from langchain_mara_training import MaraClassifier
from langchain_mara_training.fitting import validation
from langchain_mara_training.fitting.validation import held_out_accuracy, row_weights
from langchain_mara_training.labeling.token_labels import TokenLabels
from numpy.typing import NDArray


def labels_of(states: NDArray[np.float16], accepted: NDArray[np.int64]) -> TokenLabels:
    numbers = np.arange(len(states))
    return TokenLabels(states, accepted, np.ones(len(states), np.float32), *[numbers] * 6)


@pytest.mark.parametrize(("rows_at_once", "majority"), [(1, 0), (3, 1), (100, 0)])
def test_held_out_accuracy_by_hand(monkeypatch: pytest.MonkeyPatch, rows_at_once: int, majority: int) -> None:
    monkeypatch.setattr(validation, "_ROWS_AT_ONCE", rows_at_once)
    states = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float16)
    classifier = MaraClassifier(width=8, max_epochs=30, learning_rate=0.03, dropout=0, input_dropout=0, random_state=0)
    predicted = classifier.fit(states, (states[:, 0] > states[:, 1]).astype(int)).predict(states)
    # Five rows of one class and two of the other, mixed; the first row of each class has a wrong label.
    frequent, rare = np.flatnonzero(predicted == majority)[:5], np.flatnonzero(predicted != majority)[:2]
    labels = labels_of(states, predicted.copy())
    for wrong in (frequent[0], rare[0]):
        labels.y[wrong] = 1 - labels.y[wrong]
    rows = sorted([*frequent.tolist(), *rare.tolist()])
    measured = {"validation labels": 7, "validation accuracy": 5 / 7, "majority share": pytest.approx(5 / 7)}
    assert held_out_accuracy(classifier, labels, rows) == measured


def test_accuracy_on_nothing_is_none() -> None:
    labels = labels_of(np.zeros((2, 6), np.float16), np.array([0, 1]))
    nothing = {"validation labels": 0, "validation accuracy": None, "majority share": None}
    assert held_out_accuracy(MaraClassifier(), labels, []) == nothing


LABELS = np.array([0, 1, 1, 0])


@pytest.mark.parametrize(
    ("sample_weight", "class_weight"),
    [
        (None, {0: 1e-50}),
        (None, {1: 1e-300}),
        ([1e-50, 1, 1, 1e-50], None),
        ([1e308] * 4, None),
        ([1e308] * 4, "balanced"),
        ([1e200] * 4, {0: 1e200, 1: 1e200}),
    ],
)
@pytest.mark.parametrize("whole", [True, False])
def test_weights_with_which_a_class_would_count_for_nothing_are_refused(
    sample_weight: Any, class_weight: Any, whole: bool
) -> None:
    with pytest.raises(ValueError, match=r"float32 cannot add.*similar sizes"):
        row_weights(sample_weight, class_weight, np.array([0, 1]), LABELS, whole=whole)


@pytest.mark.parametrize(
    ("sample_weight", "class_weight", "expected"),
    [
        (None, {0: 1e-6}, [1e-6, 1, 1, 1e-6]),
        ([1e-300] * 4, None, [1e-300] * 4),
        ([0, 1, 1e-30, 2], None, [0, 1, 1e-30, 2]),
        ([3, 1, 1, 1], "balanced", [9 / 4, 3 / 2, 3 / 2, 3 / 4]),
    ],
)
def test_other_weights_are_multiplied(sample_weight: Any, class_weight: Any, expected: list[float]) -> None:
    weights = row_weights(sample_weight, class_weight, np.array([0, 1]), LABELS)
    np.testing.assert_allclose(weights, expected)


def test_parts_of_a_stream_have_weights_as_they_are() -> None:
    with pytest.raises(ValueError, match="from 1e-50 to 1e-50, which float32 cannot add"):
        row_weights([1e-50] * 4, None, np.array([0, 1]), LABELS, whole=False)
    one_class = row_weights([0, 2, 2, 0], None, np.array([0, 1]), LABELS, whole=False)
    assert one_class.tolist() == [0, 2, 2, 0]
