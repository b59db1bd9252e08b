"""Bisection on systems that are known, and bounds that hold as often as they say."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from langchain_mara_training.calibration.searches import (
    bisection,
    fewest_trials,
    fixed_sequence,
    last_allowed,
    most_measurements,
    risk_bound,
)
from scipy import stats

LADDER = [0.0, 0.1, 0.3, 0.5, 1.0]


def searched(curve: Callable[[float], float], at_most: float, halvings: int = 5) -> tuple[float | None, list[float]]:
    asked: list[float] = []

    def allowed(value: float) -> tuple[bool, bool]:
        asked.append(value)
        return curve(value) <= at_most, False

    return last_allowed(bisection(LADDER, halvings), allowed), asked


@given(root=st.floats(0, 1, allow_subnormal=False), halvings=st.integers(0, 8))
@settings(phases=[Phase.generate], max_examples=200)
def test_bisection_ends_right_below_the_root_of_a_monotone_system(root: float, halvings: int) -> None:
    found, asked = searched(lambda value: value**2, root**2, halvings)
    assert found is not None
    assert len(asked) <= most_measurements(LADDER, halvings)
    assert found in asked
    assert found**2 <= root**2
    gap = next(high - low for low, high in zip(LADDER, [*LADDER[1:], 2.0], strict=True) if low <= root < high)
    assert found == 1.0 or root - found < gap / 2**halvings + 1e-12


def test_all_or_nothing_needs_few_measurements() -> None:
    assert searched(lambda _: 0.0, 1.0) == (1.0, [0.0, 1.0])
    assert searched(lambda _: 2.0, 1.0) == (None, [0.0])


def test_where_the_system_is_not_monotone_an_allowed_value_is_found_all_the_same() -> None:
    found, _ = searched(lambda value: math.sin(9 * value) + value, 0.5)
    assert found is not None
    assert math.sin(9 * found) + found <= 0.5


def test_one_value_is_measured_once() -> None:
    assert last_allowed(bisection([0.3], 4), lambda _: (True, False)) == 0.3


def test_a_stop_keeps_the_best_so_far() -> None:
    asked: list[float] = []

    def allowed(value: float) -> tuple[bool, bool]:
        asked.append(value)
        return value < 0.6, len(asked) == 3

    assert last_allowed(bisection(LADDER, 9), allowed) == 0.3
    assert asked == [0.0, 1.0, 0.3]


def test_the_sequence_ends_at_the_first_that_is_not_allowed() -> None:
    asked: list[float] = []

    def allowed(value: float) -> tuple[bool, bool]:
        asked.append(value)
        return value != 0.3, False

    assert last_allowed(fixed_sequence([0.5, 0.4, 0.3, 0.2]), allowed) == 0.4
    assert asked == [0.5, 0.4, 0.3]
    assert last_allowed(fixed_sequence([0.3, 0.2]), allowed) is None


@pytest.mark.parametrize(("failures", "trials"), [(0, 45), (3, 60), (60, 60)])
def test_the_bound_is_that_of_the_binomial_test(failures: int, trials: int) -> None:
    bound = risk_bound(failures, trials, 0.9)
    assert bound == 1.0 or stats.binom.cdf(failures, trials, bound) == pytest.approx(0.1, rel=1e-4)
    assert (bound == 1.0) is (failures == trials)


@pytest.mark.parametrize(("at_most", "confidence"), [(0.05, 0.9), (0.01, 0.95), (0.5, 0.9)])
def test_fewest_trials_are_just_enough(at_most: float, confidence: float) -> None:
    count = fewest_trials(at_most, confidence)
    assert risk_bound(0, count, confidence) <= at_most < risk_bound(0, count - 1, confidence)


@pytest.mark.parametrize("risk", [0.035, 0.05, 0.08, 0.12])
def test_bounds_cover_the_risk_as_often_as_they_say(risk: float) -> None:
    drawn = np.random.default_rng(0)
    bounds = np.array([risk_bound(count, 80, 0.9) for count in range(81)])
    covered = np.mean(risk <= bounds[drawn.binomial(80, risk, 4000)])
    assert covered >= 0.9 - 3 * math.sqrt(0.09 / 4000)
    assert covered < 1.0


@pytest.mark.parametrize("after", [0.1001, 0.02])
def test_the_chosen_value_breaks_its_limit_no_more_often_than_it_says(after: float) -> None:
    """Risks just above the limit at many values: whoever tests each and takes the last that passes is often wrong.

    The losses of a prompt at different values are independent, which is the worst case, and after the forbidden values
    come others, whose risk may be small.
    """
    drawn, limit, confidence = np.random.default_rng(1), 0.1, 0.9
    risks = [0.01, 0.03, *[0.1001] * 8, after]

    def allowed_in(sample: dict[int, float]) -> Callable[[float], tuple[bool, bool]]:
        return lambda place: (sample[int(place)] <= limit, False)

    wrong, found = [], []
    bounds = [risk_bound(count, 150, confidence) for count in range(151)]
    for failures in drawn.binomial(150, risks, (1500, len(risks))):
        sample = {place: bounds[count] for place, count in enumerate(failures)}
        place = last_allowed(fixed_sequence(range(len(risks))), allowed_in(sample))
        found.append(place is not None)
        wrong.append(place is not None and risks[int(place)] > limit)
    assert np.mean(found) > 0.9
    assert np.mean(wrong) <= 1 - confidence + 3 * math.sqrt(0.09 / 1500)
