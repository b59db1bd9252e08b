"""Preference by hand, and its interval against scipy called directly and against what it promises."""

import itertools
import math
import warnings
from typing import Any

import numpy as np
import pytest
from langchain_mara_training.evaluation.preference_rate import RESAMPLES, Preference, outcomes, preference_rate
from scipy import stats

from langchain_mara.exceptions import DataError

NAN = math.nan


@pytest.mark.parametrize(
    ("rewards", "baseline", "rate"),
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
def test_preference_rate_by_hand(rewards: list[float], baseline: list[float], rate: float) -> None:
    np.testing.assert_equal(preference_rate(rewards, baseline), rate)
    np.testing.assert_equal(preference_rate(baseline, rewards), 0.0 - rate)


def test_preference_rate_against_itself_is_exactly_zero() -> None:
    rewards = np.random.default_rng(0).normal(size=101)
    rewards[::7] = NAN
    assert preference_rate(rewards, rewards) == 0.0


@pytest.mark.parametrize("baseline", [[1.0, 2.0], [[1.0], [2.0], [3.0]], 1.0])
def test_preference_rate_refuses_other_shapes(baseline: Any) -> None:
    with pytest.raises(DataError, match=r"Rewards of shapes \(3,\) and .* cannot be compared; give one per prompt."):
        preference_rate([1.0, 2.0, 3.0], baseline)


def test_wins_draws_and_losses_by_hand() -> None:
    preference = Preference.between([2, 1, 0, 5, NAN, 7], [1, 1, 1, 1, 0, NAN])
    assert preference[:4] == (2, 1, 1, 0.25)
    assert -1 <= preference.low < 0.25 < preference.high <= 1
    reverse = Preference.between([1, 1, 1, 1, 0, NAN], [2, 1, 0, 5, NAN, 7])
    assert reverse[:4] == (1, 1, 2, -0.25)


def test_a_system_against_itself_draws_every_time() -> None:
    rewards = np.random.default_rng(0).normal(size=50)
    rewards[3] = NAN
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        preference = Preference.between(rewards, rewards)
    assert preference[:4] == (0, 49, 0, 0.0)
    # A share of wins or losses that 49 prompts without any would still allow.
    assert preference.high == -preference.low == pytest.approx(1 - 0.025 ** (1 / 49))


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        ([], (0, 0, 0, NAN, NAN, NAN)),
        ([NAN], (0, 0, 0, NAN, NAN, NAN)),
        ([1], (1, 0, 0, 1.0, -0.95, 1.0)),
        ([0], (0, 1, 0, 0.0, -0.975, 0.975)),
        ([1, 2, 3], (3, 0, 0, 1.0, 2 * 0.025 ** (1 / 3) - 1, 1.0)),
        ([-1, -2], (0, 0, 2, -1.0, -1.0, 1 - 2 * 0.025 ** (1 / 2))),
    ],
)
def test_where_all_prompts_agree_the_interval_is_the_exact_one(
    rewards: list[float], expected: tuple[float, ...]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_allclose(tuple(Preference.between(rewards, [0] * len(rewards))), expected, atol=1e-15)


def test_a_few_prompts_without_losses_do_not_rule_losses_out() -> None:
    few = Preference.between([1, 0, 1], [0, 0, 0])
    assert few[:4] == (2, 1, 0, 2 / 3)
    assert few.low < 0 < few.rate < few.high == 1
    many = Preference.between([1, 0] * 200, [0] * 400)
    assert 0.4 < many.low < 0.5 < many.high < 0.6


def test_every_interval_has_a_width_and_holds_its_rate() -> None:
    for count in range(1, 6):
        for rewards in itertools.combinations_with_replacement([-1, 0, 1], count):
            preference = Preference.between(rewards, [0] * count)
            assert -1 <= preference.low <= preference.rate <= preference.high <= 1
            assert preference.low < preference.high


def test_differences_within_the_tolerance_are_draws() -> None:
    rewards, baseline = [1.0, 1.25, 2.0, math.inf, -math.inf, NAN], [1.25, 1.0, 1.0, math.inf, 1.0, 1.0]
    np.testing.assert_equal(outcomes(rewards, baseline), [-1, 1, 1, 0, -1, NAN])
    np.testing.assert_equal(outcomes(rewards, baseline, 0.25), [0, 0, 1, 0, -1, NAN])
    assert Preference.between(rewards, baseline, tolerance=0.25)[:3] == (1, 3, 1)
    assert preference_rate(rewards, baseline, 0.25) == 0.0


@pytest.mark.parametrize(("confidence", "seed"), [(0.95, 0), (0.8, 7)])
def test_the_interval_is_scipys_of_the_pairs(confidence: float, seed: int) -> None:
    generator = np.random.default_rng(1)
    # Lopsided, so that the interval is not the same on both sides.
    rewards, baseline = generator.integers(1, 9, 30).astype(float), generator.integers(0, 4, 30).astype(float)

    def rate(rewards: Any, baseline: Any, axis: int = -1) -> Any:
        return np.sign(rewards - baseline).mean(axis=axis)

    expected = stats.bootstrap(
        (rewards, baseline), rate, paired=True, vectorized=True, n_resamples=RESAMPLES, confidence_level=confidence,
        method="percentile", rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    preference = Preference.between(rewards, baseline, confidence=confidence, random_state=seed)
    assert (preference.low, preference.high) == pytest.approx(tuple(expected), abs=1e-12)
    assert preference.low < preference.rate < preference.high


def test_long_prompt_sets_are_resampled_in_parts_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(2)
    rewards, baseline = generator.normal(size=30), generator.normal(size=30)
    whole = Preference.between(rewards, baseline)
    monkeypatch.setattr("langchain_mara_training.evaluation.preference_rate._AT_ONCE", 100)
    assert Preference.between(rewards, baseline) == whole


@pytest.mark.slow
def test_intervals_hold_the_true_rate_about_as_often_as_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("langchain_mara_training.evaluation.preference_rate.RESAMPLES", 400)
    generator = np.random.default_rng(3)
    chances, true = [0.5, 0.2, 0.3], 0.3 - 0.5
    held = 0
    for number in range(400):
        rewards = generator.choice([-1.0, 0.0, 1.0], size=60, p=chances)
        preference = Preference.between(rewards, np.zeros(60), confidence=0.9, random_state=number)
        held += preference.low <= true <= preference.high
    # Of 400 intervals of 90 %, the standard error of the share is 1.5 points; the percentile bootstrap is a bit narrow.
    assert 0.85 <= held / 400 <= 0.94
