"""WeightedRewards: the weighted sum of reward functions in TRL's signature, synchronous or asynchronous."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from langchain_mara.exceptions import RewardError
from langchain_mara_training.data.readers import Prompt
from langchain_mara_training.rewards.calling import RewardFunction, call, name_of, scores_of


class WeightedRewards:
    """The weighted sum of reward functions, as a reward function.

    Functions have TRL's signature and are called by keyword: `prompts`, `completions`, `completion_ids` and the
    columns of the data set, each a list. Prompts and completions are texts or lists of messages. A function without
    `**kwargs` gets only the arguments it names. It returns one number per completion, None for a completion it does
    not score (NaN counts as None, with a warning), or an awaitable of such a list.

    Asynchronous functions run concurrently, on an event loop that this process keeps in a thread of its own. So you
    can use them under a running loop, such as a notebook's. An asynchronous function must not itself call a
    `WeightedRewards` that has asynchronous functions.

    Args:
        functions: One or several reward functions.
        weights: Weight of each function; by default 1.

    Raises:
        RewardError: If there is no function, one cannot be called, or the weights do not fit.

    Example:
        >>> rewards = WeightedRewards(lambda completions: [len(text) for text in completions], [0.5])
        >>> rewards(prompts=["Hi."], completions=["Hello"])
        array([2.5])
    """

    def __init__(
        self, functions: RewardFunction | Sequence[RewardFunction], weights: Sequence[float] | None = None
    ) -> None:
        self.functions = [functions] if callable(functions) else list(functions)
        if not self.functions or not all(callable(function) for function in self.functions):
            raise RewardError("Give one reward function or several, called as f(prompts=…, completions=…).")
        self.weights = np.ones(len(self.functions)) if weights is None else np.asarray(weights, dtype=np.float64)
        if self.weights.shape != (len(self.functions),) or not np.isfinite(self.weights).all():
            raise RewardError(
                f"{len(self.functions)} reward functions need as many finite weights, not {weights}. "
                "Give one weight for each, or none for a plain sum."
            )

    @property
    def names(self) -> list[str]:
        """A distinct name for each function: its `name`, `__name__` or class, with a number if it is taken."""
        names: list[str] = []
        for function in self.functions:
            name = name_of(function)
            numbered = (f"{name}_{number}" for number in range(2, len(self.functions) + 2))
            names.append(name if name not in names else next(free for free in numbered if free not in names))
        return names

    def __call__(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Prompt],
        completion_ids: Sequence[Sequence[int]] | None = None,
        **columns: Any,
    ) -> NDArray[np.float64]:
        """Rewards (n,) of n completions: the weighted sum over the functions that scored, NaN if none did.

        Args:
            prompts: n texts or lists of messages.
            completions: n texts, or lists of messages if the prompts are such lists.
            completion_ids: Token ids of each completion, for functions that name them.
            columns: Columns of the data set, each a list of n values.

        Raises:
            RewardError: If a function fails, or does not return a finite number or None for each completion.
        """
        return weighted_sum(self.each(prompts, completions, completion_ids=completion_ids, **columns), self.weights)

    def each(
        self, prompts: Sequence[Prompt], completions: Sequence[Prompt], **columns: Any
    ) -> dict[str, NDArray[np.float64]]:
        """The unweighted rewards (n,) of each function, by its name; NaN for completions it did not score.

        Takes the arguments of a call.

        Raises:
            RewardError: As for a call.
        """
        if len(prompts) != len(completions):
            raise RewardError(f"{len(prompts)} prompts but {len(completions)} completions; give one prompt for each.")
        if not len(completions):
            return {name: np.zeros(0) for name in self.names}
        arguments = {"prompts": prompts, "completions": completions, "completion_ids": None, **columns}
        results = [
            # Among weighted rewards, NaN is the way to say that nothing scored.
            [None if math.isnan(score) else score for score in result]
            if isinstance(function, WeightedRewards)
            else result
            for function, result in zip(self.functions, call(self.functions, self.names, arguments), strict=True)
        ]
        return {
            name: scores_of(result, name, len(completions)) for name, result in zip(self.names, results, strict=True)
        }


def weighted_sum(scores: Mapping[str, NDArray[np.float64]], weights: ArrayLike) -> NDArray[np.float64]:
    """The weighted sum (n,) of rewards over the functions that scored; NaN where none did.

    Args:
        scores: Rewards (n,) of each function by its name, as `WeightedRewards.each` returns them.
        weights: Weight of each function, in the same order.
    """
    table, factors = np.stack(list(scores.values())), np.asarray(weights, dtype=np.float64)
    is_scored = ~np.isnan(table)
    total = np.where(is_scored, table * factors[:, None], 0.0).sum(axis=0)
    rewards: NDArray[np.float64] = np.where(is_scored.any(axis=0), total, np.nan)
    return rewards
