"""Accuracy and calibration on labels that an agent was not fitted to."""

import numpy as np
import pytest
from langchain_mara_training import MaraClassifier
from langchain_mara_training.fitting import predictions
from langchain_mara_training.fitting.predictions import held_out_measures
from langchain_mara_training.fitting.temperature import calibration_error
from langchain_mara_training.labeling.token_labels import TokenLabels
from numpy.typing import NDArray


def labels_of(states: NDArray[np.float16], accepted: NDArray[np.int64]) -> TokenLabels:
    numbers = np.arange(len(states))
    return TokenLabels(states, accepted, np.ones(len(states), np.float32), *[numbers] * 6)


@pytest.mark.parametrize(("rows_at_once", "majority"), [(1, 0), (3, 1), (100, 0)])
def test_held_out_accuracy_by_hand(monkeypatch: pytest.MonkeyPatch, rows_at_once: int, majority: int) -> None:
    monkeypatch.setattr(predictions, "_ROWS_AT_ONCE", rows_at_once)
    states = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float16)
    classifier = MaraClassifier(width=8, max_epochs=30, learning_rate=0.03, dropout=0, input_dropout=0, random_state=0)
    predicted = classifier.fit(states, (states[:, 0] > states[:, 1]).astype(int)).predict(states)
    # Five rows of one class and two of the other, mixed; the first row of each class has a wrong label.
    frequent, rare = np.flatnonzero(predicted == majority)[:5], np.flatnonzero(predicted != majority)[:2]
    labels = labels_of(states, predicted.copy())
    for wrong in (frequent[0], rare[0]):
        labels.y[wrong] = 1 - labels.y[wrong]
    rows = sorted([*frequent.tolist(), *rare.tolist()])
    measured = held_out_measures(classifier, labels, rows)
    expected = {"validation labels": 7, "validation accuracy": 5 / 7, "majority share": 5 / 7}
    assert {name: measured[name] for name in expected} == pytest.approx(expected)
    classifier.temperature_ = 2.0
    probability, before = (1 / (1 + np.exp(-scale * classifier.decision_function(states[rows]))) for scale in (1, 2))
    assert held_out_measures(classifier, labels, rows) == pytest.approx(
        {
            **expected,
            "calibration error": calibration_error(probability, labels.y[rows]),
            "Brier score": np.mean((probability - labels.y[rows]) ** 2),
            "calibration error before": calibration_error(before, labels.y[rows]),
            "Brier score before": np.mean((before - labels.y[rows]) ** 2),
        }
    )


def test_accuracy_on_nothing_is_none() -> None:
    labels = labels_of(np.zeros((2, 6), np.float16), np.array([0, 1]))
    measured = held_out_measures(MaraClassifier(), labels, [])
    assert measured.pop("validation labels") == 0
    assert list(measured) == [
        "validation accuracy", "majority share", "calibration error", "Brier score", "calibration error before",
        "Brier score before",
    ]  # fmt: skip
    assert set(measured.values()) == {None}
