"""How often a reward prefers one system's answers to another's, with an interval over the prompts."""

from typing import NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from langchain_mara.exceptions import DataError

CONFIDENCE = 0.95
"""Default level of intervals."""
RESAMPLES = 9999
"""Number of bootstrap samples per interval."""

_AT_ONCE = 2**22  # outcomes drawn at a time; bounds the memory for long prompt sets


class Preference(NamedTuple):
    """A system's answers compared with another's, prompt by prompt.

    Attributes:
        wins: Number of prompts where the system's answer has the higher reward.
        draws: Number of prompts with equal rewards.
        losses: Number of prompts where the system's answer has the lower reward.
        rate: Wins minus losses, divided by the number of prompts compared, in [-1, 1]; NaN if there are none.
        low: Lower end of the rate's bootstrap percentile interval over prompts.
        high: Upper end of that interval.
    """

    wins: int
    draws: int
    losses: int
    rate: float
    low: float
    high: float

    @classmethod
    def between(
        cls, rewards: ArrayLike, baseline: ArrayLike, *, confidence: float = CONFIDENCE, random_state: int = 0
    ) -> Self:
        """Compares two systems' rewards on the same prompts.

        The interval is Efron's percentile bootstrap (`scipy.stats.bootstrap`) over pairs of rewards, so a prompt that
        is hard for both systems does not widen it.

        Args:
            rewards: (n,) rewards of a system's answers; NaN where one was not scored.
            baseline: (n,) rewards of the other system's answers to the same prompts in the same order.
            confidence: Level of the interval, in (0, 1).
            random_state: Seed of the resampling.

        Raises:
            DataError: If the two have different numbers of rewards.
        """
        results = outcomes(rewards, baseline)
        wins, draws, losses = (int(np.count_nonzero(results == result)) for result in (1, 0, -1))
        rate = (wins - losses) / len(results) if len(results) else float("nan")
        low, high = _interval(results, rate, confidence, random_state)
        return cls(wins, draws, losses, rate, low, high)


def preference_rate(rewards: ArrayLike, baseline: ArrayLike) -> float:
    """Wins minus losses, divided by the number of prompts for which both systems have a reward.

    Args:
        rewards: (n,) rewards of a system's answers; NaN where one was not scored.
        baseline: (n,) rewards of the other system's answers to the same prompts in the same order.

    Returns:
        A number in [-1, 1]; NaN if no prompt has both rewards.

    Raises:
        DataError: If the two have different numbers of rewards.
    """
    results = outcomes(rewards, baseline)
    return int(results.sum()) / len(results) if len(results) else float("nan")


def outcomes(rewards: ArrayLike, baseline: ArrayLike) -> NDArray[np.int8]:
    """Outcome of each prompt: 1 for a win, 0 for a draw, -1 for a loss.

    Args:
        rewards: (n,) rewards of a system's answers; NaN where one was not scored.
        baseline: (n,) rewards of the other system's answers to the same prompts in the same order.

    Returns:
        (m,) int8, without the prompts that lack one of the two rewards.

    Raises:
        DataError: If the two have different numbers of rewards.
    """
    first, second = np.asarray(rewards, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape:
        raise DataError(f"Rewards of shapes {first.shape} and {second.shape} cannot be compared; give one per prompt.")
    scored = ~np.isnan(first) & ~np.isnan(second)
    # Comparisons, because the difference of two infinite rewards would be NaN.
    return (first > second)[scored].astype(np.int8) - (first < second)[scored]


def _interval(results: NDArray[np.int8], rate: float, confidence: float, seed: int) -> tuple[float, float]:
    # With equal outcomes on all prompts, every resample has the same rate. Also, scipy refuses fewer than two prompts.
    if len(set(results.tolist())) <= 1:
        return rate, rate
    interval = stats.bootstrap(
        (results,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, _AT_ONCE // len(results)),
        vectorized=True,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)
