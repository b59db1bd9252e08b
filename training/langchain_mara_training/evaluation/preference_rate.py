"""How often a reward prefers one system's answers to another's, with an interval over the prompts."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

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
        draws: Number of prompts with equal rewards, up to the tolerance.
        losses: Number of prompts where the system's answer has the lower reward.
        rate: Wins minus losses, divided by the number of prompts compared, in [-1, 1]; NaN if there are none.
        low: Lower end of the rate's interval; see `between`. NaN if no prompts were compared.
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
        cls,
        rewards: ArrayLike,
        baseline: ArrayLike,
        *,
        confidence: float = CONFIDENCE,
        random_state: int = 0,
        tolerance: float = 0.0,
    ) -> Self:
        """Compares two systems' rewards on the same prompts.

        The interval is Efron's percentile bootstrap (`scipy.stats.bootstrap`) over pairs of rewards, so a prompt that
        is hard for both systems does not widen it. A bootstrap never draws an outcome that no prompt had. So if there
        were no wins or no losses, the interval also holds every rate that the exact binomial bound allows for them.

        Args:
            rewards: (n,) rewards of a system's answers; NaN where one was not scored.
            baseline: (n,) rewards of the other system's answers to the same prompts in the same order.
            confidence: Level of the interval, in (0, 1).
            random_state: Seed of the resampling.
            tolerance: Largest difference in reward that counts as a draw.

        Raises:
            DataError: If the two have different numbers of rewards.
        """
        results = _compared(rewards, baseline, tolerance)
        wins, draws, losses = (int(np.count_nonzero(results == result)) for result in (1, 0, -1))
        if not len(results):
            return cls(wins, draws, losses, *[float("nan")] * 3)
        rate = (wins - losses) / len(results)
        low, high = _bootstrap(results, rate, confidence, random_state)
        # The largest share of an outcome that none of the prompts had (Clopper and Pearson, Biometrika 1934).
        unseen = 1 - ((1 - confidence) / 2) ** (1 / len(results))
        if not losses:
            low = min(low, rate * (1 - unseen) - unseen)
        if not wins:
            high = max(high, rate * (1 - unseen) + unseen)
        return cls(wins, draws, losses, rate, low, high)


def preference_rate(rewards: ArrayLike, baseline: ArrayLike, tolerance: float = 0.0) -> float:
    """Wins minus losses, divided by the number of prompts for which both systems have a reward.

    Args:
        rewards: (n,) rewards of a system's answers; NaN where one was not scored.
        baseline: (n,) rewards of the other system's answers to the same prompts in the same order.
        tolerance: Largest difference in reward that counts as a draw.

    Returns:
        A number in [-1, 1]; NaN if no prompt has both rewards.

    Raises:
        DataError: If the two have different numbers of rewards.
    """
    results = _compared(rewards, baseline, tolerance)
    return int(results.sum()) / len(results) if len(results) else float("nan")


def outcomes(rewards: ArrayLike, baseline: ArrayLike, tolerance: float = 0.0) -> NDArray[np.float64]:
    """Outcome of each prompt: 1 for a win, 0 for a draw, -1 for a loss.

    Args:
        rewards: (n,) rewards of a system's answers; NaN where one was not scored.
        baseline: (n,) rewards of the other system's answers to the same prompts in the same order.
        tolerance: Largest difference in reward that counts as a draw.

    Returns:
        (n,) float64; NaN for the prompts that lack one of the two rewards.

    Raises:
        DataError: If the two have different numbers of rewards.
    """
    first, second = np.asarray(rewards, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape:
        raise DataError(f"Rewards of shapes {first.shape} and {second.shape} cannot be compared; give one per prompt.")
    with np.errstate(invalid="ignore"):
        # The difference of two infinite rewards is NaN, so equality is asked separately.
        is_draw = (first == second) | (np.abs(first - second) <= tolerance)
    results = np.where(is_draw, 0.0, np.where(first > second, 1.0, -1.0))
    return np.where(np.isnan(first) | np.isnan(second), np.nan, results)


def _compared(rewards: ArrayLike, baseline: ArrayLike, tolerance: float) -> NDArray[np.int8]:
    """The outcomes (m,) of the prompts for which both systems have a reward."""
    results = outcomes(rewards, baseline, tolerance)
    return results[~np.isnan(results)].astype(np.int8)


def _bootstrap(results: NDArray[np.int8], rate: float, confidence: float, seed: int) -> tuple[float, float]:
    # With equal outcomes on all prompts, every resample has the same rate. Also, scipy refuses fewer than two prompts.
    if len(set(results.tolist())) == 1:
        return rate, rate
    return bootstrap_interval((results,), np.mean, confidence, seed)


def bootstrap_interval(
    samples: Sequence[NDArray[Any]], statistic: Callable[..., Any], confidence: float, seed: int
) -> tuple[float, float]:
    """Efron's percentile bootstrap over prompts.

    Args:
        samples: Arrays (n,) with a value for each of n prompts, drawn together.
        statistic: Takes the samples and an `axis`.
        confidence: Level of the interval, in (0, 1).
        seed: Seed of the draws.

    Returns:
        Lower and upper end.
    """
    interval = stats.bootstrap(
        tuple(samples),
        statistic,
        n_resamples=RESAMPLES,
        batch=max(1, _AT_ONCE // len(samples[0])),
        paired=len(samples) > 1,
        vectorized=True,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)
