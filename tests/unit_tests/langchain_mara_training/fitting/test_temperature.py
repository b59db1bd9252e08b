"""Temperature scaling finds the temperature, is part of the saved agent, and moves no decision at 0.5."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_mara_training import MaraClassifier
from langchain_mara_training.fitting.temperature import calibration_error, fitted_temperature
from numpy.typing import NDArray
from scipy.special import expit

from langchain_mara.loading.models import load_agent

Table = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]


def table(columns: int = 6) -> Table:
    """Rows whose labels follow the first two columns in three of four cases, in 40 groups."""
    drawn = np.random.default_rng(1)
    X = drawn.normal(size=(400, columns)).astype(np.float32)  # noqa: N806
    y = (X[:, 0] > X[:, 1]).astype(int)
    return X, np.where(drawn.random(400) < 0.25, 1 - y, y), np.repeat(np.arange(40), 10)


def underconfident(**parameters: Any) -> MaraClassifier:
    """A classifier that stops before it is as sure as it could be."""
    settings = {"width": 32, "max_epochs": 4, "learning_rate": 0.003, "dropout": 0, "batch_size": 32}
    kept = {"input_dropout": 0, "random_state": 0, "validation_fraction": 0.4}
    return MaraClassifier(**{**settings, **kept, "schedule": "constant", "device": "cpu", **parameters})


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_the_temperature_of_drawn_labels_is_found(temperature: float) -> None:
    drawn = np.random.default_rng(0)
    odds = drawn.normal(scale=3, size=40_000)
    labels = (drawn.random(40_000) < expit(odds / temperature)).astype(int)
    assert fitted_temperature(odds, labels, np.ones(40_000)) == pytest.approx(temperature, rel=0.05)


def test_rows_count_by_their_weights() -> None:
    odds, labels = np.array([2.0, 2.0, 2.0, -2.0]), np.array([1, 0, 1, 0])
    repeated = fitted_temperature(np.repeat(odds, [3, 1, 1, 1]), np.repeat(labels, [3, 1, 1, 1]), np.ones(6))
    assert fitted_temperature(odds, labels, np.array([3.0, 1, 1, 1])) == pytest.approx(repeated, rel=1e-3)


@pytest.mark.parametrize(("labels", "end"), [([1, 1, 0, 0], 1 / 20), ([0, 0, 1, 1], 20)])
def test_it_has_bounds_where_the_best_one_has_none(labels: list[int], end: float) -> None:
    odds = np.array([1.0, 2.0, -1.0, -2.0])
    assert fitted_temperature(odds, np.array(labels), np.ones(4)) == pytest.approx(end, rel=1e-3)


def test_calibration_error_by_hand() -> None:
    probability = np.array([0.95, 0.95, 0.42, 0.48, 1.0])
    labels = np.array([1, 0, 1, 0, 1])
    by_hand = abs(0.95 - 1 + 0.95 - 0 + 1.0 - 1) + abs(0.42 - 1 + 0.48)
    assert calibration_error(probability, labels) == pytest.approx(by_hand / 5)
    weights = np.array([2.0, 0, 1, 1, 1])
    assert calibration_error(probability, labels, weights) == pytest.approx((0.1 + 0.1) / 5)


@pytest.mark.parametrize(("agent", "columns"), [("state", 6), ("look-ahead", 14)])
def test_the_saved_agent_is_calibrated_and_decides_as_before(agent: Any, columns: int, tmp_path: Path) -> None:
    X, y, groups = table(columns)  # noqa: N806
    plain = underconfident(agent=agent, rank=2, calibration=None).fit(X, y, groups=groups)
    scaled = underconfident(agent=agent, rank=2).fit(X, y, groups=groups)
    found = scaled.calibration_
    assert (plain.temperature_, plain.calibration_) == (1.0, None)
    assert found is not None
    assert found.temperature == scaled.temperature_ < 0.9
    assert found.error_after < found.error_before
    assert found.brier_after < found.brier_before
    odds = plain.decision_function(X)
    np.testing.assert_allclose(scaled.decision_function(X), odds / scaled.temperature_, atol=1e-5)
    np.testing.assert_array_equal(scaled.predict(X), plain.predict(X))
    scaled.agent_.save_pretrained(tmp_path)
    scaled.agent_ = load_agent(tmp_path)
    np.testing.assert_allclose(scaled.decision_function(X), odds / scaled.temperature_, atol=1e-5)


def test_the_report_is_of_the_held_out_rows() -> None:
    X, y, groups = table()  # noqa: N806
    found = underconfident().fit(X, y, groups=groups).calibration_
    assert found is not None
    assert found.rows == 160


def test_nothing_is_scaled_where_nothing_is_held_out() -> None:
    X, y, _ = table()  # noqa: N806
    fitted = underconfident(max_epochs=1).fit(X, y)
    assert (fitted.temperature_, fitted.calibration_) == (1.0, None)


@pytest.mark.parametrize(("calibration", "reason"), [("isotonic", "step function"), ("platt", "'temperature' or None")])
def test_other_ways_are_refused_with_a_reason(calibration: Any, reason: str) -> None:
    X, y, _ = table()  # noqa: N806
    with pytest.raises(ValueError, match=reason):
        MaraClassifier(calibration=calibration).fit(X, y)


def test_a_finished_job_resumes_with_another_calibration(tmp_path: Path) -> None:
    X, y, groups = table()  # noqa: N806
    scaled = underconfident(max_epochs=2, checkpoint_dir=tmp_path).fit(X, y, groups=groups)
    again = underconfident(max_epochs=2, checkpoint_dir=tmp_path).fit(X, y, groups=groups)
    np.testing.assert_array_equal(again.decision_function(X), scaled.decision_function(X))
    plain = underconfident(max_epochs=2, checkpoint_dir=tmp_path, calibration=None).fit(X, y, groups=groups)
    assert plain.temperature_ == 1.0
