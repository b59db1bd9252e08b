"""How often one system's answers are preferred to another's by a reward, and how sure that is over the prompts."""

from typing import NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from langchain_mara.exceptions import DataError

RESAMPLES = 9999
"""Bootstrap samples of an interval."""

_AT_ONCE = 2**22  # outcomes drawn at a time, which bounds the memory of long prompt sets


class Preference(NamedTuple):
    """How a system's answers fared against another's, prompt by prompt.

    Attributes:
        wins: Prompts whose answer has the higher reward.
        draws: Prompts with equal rewards.
        losses: Prompts whose answer has the lower reward.
        rate: Wins minus losses over all three, in [-1, 1]; NaN where there are none.
        low: Lower end of the rate's bootstrap percentile interval over prompts.
        high: Upper end.
    """

    wins: int
    draws: int
    losses: int
    rate: float
    low: float
    high: float

    @classmethod
    def between(
        cls, rewards: ArrayLike, baseline: ArrayLike, *, confidence: float = 0.95, random_state: int = 0
    ) -> Self:
        """Compares two systems' rewards of the same prompts.

        The interval is Efron's percentile bootstrap (`scipy.stats.bootstrap`) of pairs, so what makes a prompt hard for
        both systems does not widen it.

        Args:
            rewards: (n,) rewards of a system's answers; NaN where one was not scored.
            baseline: (n,) of the system compared with, to the same prompts in the same order.
            confidence: Level of the interval, in (0, 1).
            random_state: Seed of the resampling.

        Raises:
            DataError: If there are not as many of one as of the other.
        """
        found = outcomes(rewards, baseline)
        wins, draws, losses = (int(np.count_nonzero(found == one)) for one in (1, 0, -1))
        rate = (wins - losses) / len(found) if len(found) else float("nan")
        low, high = _interval(found, rate, confidence, random_state)
        return cls(wins, draws, losses, rate, low, high)


def preference_rate(rewards: ArrayLike, baseline: ArrayLike) -> float:
    """Wins minus losses, over all prompts that both systems have a reward for, draws included.

    Args:
        rewards: (n,) rewards of a system's answers; NaN where one was not scored.
        baseline: (n,) of the system compared with, to the same prompts in the same order.

    Returns:
        A number in [-1, 1]; NaN where no prompt has both rewards.

    Raises:
        DataError: If there are not as many of one as of the other.
    """
    found = outcomes(rewards, baseline)
    return int(found.sum()) / len(found) if len(found) else float("nan")


def outcomes(rewards: ArrayLike, baseline: ArrayLike) -> NDArray[np.int8]:
    """1 for each win, 0 for a draw, -1 for a loss; prompts that lack one of the rewards are left out.

    Raises:
        DataError: If there are not as many of one as of the other.
    """
    own, other = np.asarray(rewards, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    if own.ndim != 1 or own.shape != other.shape:
        raise DataError(f"Rewards of shapes {own.shape} and {other.shape} cannot be compared; give one per prompt.")
    both = ~np.isnan(own) & ~np.isnan(other)
    # Infinite rewards compare like any other, but their difference would be NaN.
    return (own > other)[both].astype(np.int8) - (own < other)[both]


def _interval(found: NDArray[np.int8], rate: float, confidence: float, seed: int) -> tuple[float, float]:
    # Where every prompt went the same way, each resample is the data again; scipy refuses a single prompt or none.
    if len(set(found.tolist())) <= 1:
        return rate, rate
    interval = stats.bootstrap(
        (found,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, _AT_ONCE // len(found)),
        vectorized=True,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)
