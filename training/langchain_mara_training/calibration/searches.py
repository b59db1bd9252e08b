"""Which values of a dial to measure, and which one to take: bisection, and fixed-sequence testing of a risk."""

import math
from collections.abc import Callable, Generator, Sequence

from scipy import stats

Search = Generator[float, bool, None]
"""Yields values of a dial, and is sent whether each is allowed. The last allowed one is the result."""


def bisection(ladder: Sequence[float], halvings: int) -> Search:
    """Looks for the largest allowed value, first among the given ones, then between two of them.

    What is measured should grow with the dial, in expectation. Where it does not, the result is still an allowed value
    that was measured, with a forbidden one right above it.

    Args:
        ladder: (n,) values to begin with, ascending.
        halvings: How often the interval between two of them is halved.
    """
    low, high = 0, len(ladder) - 1
    if not (yield ladder[low]) or low == high or (yield ladder[high]):
        return
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if (yield ladder[middle]) else (low, middle)
    below, above = ladder[low], ladder[high]
    for _ in range(halvings):
        between = (below + above) / 2
        below, above = (between, above) if (yield between) else (below, between)


def most_measurements(ladder: Sequence[float], halvings: int) -> int:
    """Most values that `bisection` yields."""
    return 2 + max(0, math.ceil(math.log2(max(1, len(ladder) - 1)))) + halvings


def fixed_sequence(ladder: Sequence[float]) -> Search:
    """Goes from the safest value on, and stops at the first one that is not allowed.

    If every value is tested at level δ, the result has an untrue bound with a probability of at most δ, however many
    there are and whatever the risk does between them (fixed-sequence testing; Angelopoulos, Bates, Candès, Jordan and
    Lei, "Learn then Test", arXiv 2110.01052). The values and their order must be chosen before looking at the data.

    Args:
        ladder: Values from the one that is expected to be safest to the one that interferes least.
    """
    for value in ladder:
        if not (yield value):
            return


def last_allowed(search: Search, allowed: Callable[[float], tuple[bool, bool]]) -> float | None:
    """Runs a search.

    Args:
        search: The search.
        allowed: Measures a value; says whether it is allowed, and whether to stop.

    Returns:
        The last allowed value; None if none is.
    """
    best = None
    value = next(search, None)
    while value is not None:
        fits, stop = allowed(value)
        best = value if fits else best
        if stop:
            break
        try:
            value = search.send(fits)
        except StopIteration:
            break
    return best


def risk_bound(failures: int, trials: int, confidence: float) -> float:
    """Upper bound of a probability (Clopper and Pearson, Biometrika 1934; one-sided).

    In a share `confidence` of all samples of independent trials, at least, the bound is above the probability.

    Args:
        failures: Number of trials that failed.
        trials: Number of trials.
        confidence: In (0, 1).
    """
    interval = stats.binomtest(failures, trials, alternative="less").proportion_ci(confidence, method="exact")
    return float(interval.high)


def fewest_trials(at_most: float, confidence: float) -> int:
    """Fewest trials, none of which fails, whose `risk_bound` is at most `at_most`."""
    return math.ceil(math.log1p(-confidence) / math.log1p(-at_most))
