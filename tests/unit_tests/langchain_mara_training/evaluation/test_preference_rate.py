"""Preference by hand, and its interval against scipy called directly and against what it promises."""

import math
import warnings
from typing import Any

import numpy as np
import pytest
from langchain_mara_training.evaluation.preference_rate import RESAMPLES, Preference, preference_rate
from scipy import stats

from langchain_mara.exceptions import DataError

NAN = math.nan


@pytest.mark.parametrize(
    ("own", "other", "rate"),
    [
        ([2, 2, 0, 5], [1, 1, 1, 1], (3 - 1) / 4),
        ([2, 1, 1, 1], [1, 1, 1, 1], 1 / 4),
        ([0, 0, 3], [1, 1, 1], (1 - 2) / 3),
        ([2, NAN, 0, 5, 1], [1, 1, NAN, 1, 4], (2 - 1) / 3),
        ([1, 2], [0, 0], 1.0),
        ([math.inf, math.inf], [1, math.inf], 1 / 2),
        ([NAN, 1], [1, NAN], NAN),
        ([], [], NAN),
    ],
)
def test_preference_rate_by_hand(own: list[float], other: list[float], rate: float) -> None:
    np.testing.assert_equal(preference_rate(own, other), rate)
    np.testing.assert_equal(preference_rate(other, own), 0.0 - rate)


def test_preference_rate_against_itself_is_exactly_zero() -> None:
    rewards = np.random.default_rng(0).normal(size=101)
    rewards[::7] = NAN
    assert preference_rate(rewards, rewards) == 0.0


@pytest.mark.parametrize("other", [[1.0, 2.0], [[1.0], [2.0], [3.0]], 1.0])
def test_preference_rate_refuses_other_shapes(other: Any) -> None:
    with pytest.raises(DataError, match=r"Rewards of shapes \(3,\) and .* cannot be compared; give one per prompt."):
        preference_rate([1.0, 2.0, 3.0], other)


def test_wins_draws_and_losses_by_hand() -> None:
    found = Preference.between([2, 1, 0, 5, NAN, 7], [1, 1, 1, 1, 0, NAN])
    assert found[:4] == (2, 1, 1, 0.25)
    assert -1 <= found.low < 0.25 < found.high <= 1
    other = Preference.between([1, 1, 1, 1, 0, NAN], [2, 1, 0, 5, NAN, 7])
    assert other[:4] == (1, 1, 2, -0.25)


def test_a_system_against_itself_is_zero_for_certain() -> None:
    rewards = np.random.default_rng(0).normal(size=50)
    rewards[3] = NAN
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Preference.between(rewards, rewards) == (0, 49, 0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ([], (0, 0, 0, NAN, NAN, NAN)),
        ([NAN], (0, 0, 0, NAN, NAN, NAN)),
        ([1], (1, 0, 0, 1.0, 1.0, 1.0)),
        ([1, 2, 3], (3, 0, 0, 1.0, 1.0, 1.0)),
        ([-1, -2], (0, 0, 2, -1.0, -1.0, -1.0)),
    ],
)
def test_where_all_prompts_agree_there_is_nothing_to_resample(own: list[float], expected: tuple[float, ...]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_equal(tuple(Preference.between(own, [0] * len(own))), expected)


@pytest.mark.parametrize(("confidence", "seed"), [(0.95, 0), (0.8, 7)])
def test_the_interval_is_scipys_of_the_pairs(confidence: float, seed: int) -> None:
    draw = np.random.default_rng(1)
    # Lopsided, so that the interval is not the same on both sides.
    own, other = draw.integers(1, 9, 30).astype(float), draw.integers(0, 4, 30).astype(float)

    def rate(own: Any, other: Any, axis: int = -1) -> Any:
        return np.sign(own - other).mean(axis=axis)

    expected = stats.bootstrap(
        (own, other), rate, paired=True, vectorized=True, n_resamples=RESAMPLES, confidence_level=confidence,
        method="percentile", rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    found = Preference.between(own, other, confidence=confidence, random_state=seed)
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=1e-12)
    assert found.low < found.rate < found.high


def test_long_prompt_sets_are_resampled_in_parts_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(2)
    own, other = draw.normal(size=30), draw.normal(size=30)
    whole = Preference.between(own, other)
    monkeypatch.setattr("langchain_mara_training.evaluation.preference_rate._AT_ONCE", 100)
    assert Preference.between(own, other) == whole


def test_intervals_hold_the_true_rate_about_as_often_as_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("langchain_mara_training.evaluation.preference_rate.RESAMPLES", 400)
    draw = np.random.default_rng(3)
    chances, true = [0.5, 0.2, 0.3], 0.3 - 0.5
    held = 0
    for number in range(400):
        own = draw.choice([-1.0, 0.0, 1.0], size=60, p=chances)
        found = Preference.between(own, np.zeros(60), confidence=0.9, random_state=number)
        held += found.low <= true <= found.high
    # Of 400 intervals of 90 %, the standard error of the share is 1.5 points; the percentile bootstrap is a bit narrow.
    assert 0.85 <= held / 400 <= 0.94
