"""Reward functions in TRL's signature: called by name, awaited where they are asynchronous, weighted and summed."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from langchain_mara.exceptions import RewardError
from langchain_mara_training.data.readers import Prompt
from langchain_mara_training.rewards.calling import RewardFunction, call, name_of, scores_of


class WeightedRewards:
    """The weighted sum of reward functions, as a reward function.

    Functions have TRL's signature and are called by keyword: `prompts`, `completions`, `completion_ids` and the
    columns of the dataset, a list each. Prompts and completions are texts or lists of messages. A function that takes
    no `**kwargs` gets only what it names. It returns one number for each completion, None (or NaN) for one that it
    does not score, or an awaitable of that. Asynchronous functions run concurrently, on an event loop that this
    process keeps in a thread of its own, so a running loop (a notebook's) is no obstacle. An asynchronous function
    must not call a `WeightedRewards` with asynchronous functions itself.

    Args:
        functions: One reward function, or several.
        weights: One for each function; by default 1.

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
        if not self.functions or not all(callable(one) for one in self.functions):
            raise RewardError("Give one reward function or several, called as f(prompts=…, completions=…).")
        self.weights = np.ones(len(self.functions)) if weights is None else np.asarray(weights, dtype=np.float64)
        if self.weights.shape != (len(self.functions),) or not np.isfinite(self.weights).all():
            raise RewardError(
                f"{len(self.functions)} reward functions need as many finite weights, not {weights}. "
                "Give one weight for each, or none for a plain sum."
            )

    @property
    def names(self) -> list[str]:
        """A name for each function: its `name` or `__name__`, or its class; those met again are numbered."""
        names: list[str] = []
        for function in self.functions:
            own = name_of(function)
            again = (f"{own}_{number}" for number in range(2, len(self.functions) + 2))
            names.append(own if own not in names else next(name for name in again if name not in names))
        return names

    def __call__(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Prompt],
        completion_ids: Sequence[Sequence[int]] | None = None,
        **columns: Any,
    ) -> NDArray[np.float64]:
        """Rewards (n,) of n completions: the weighted sum over the functions that scored, NaN where none did.

        Args:
            prompts: n texts or lists of messages.
            completions: n texts, or lists of messages where the prompts are.
            completion_ids: Tokens of each completion, for functions that ask for them.
            columns: Of the dataset; a list of n values each.

        Raises:
            RewardError: If a function fails, or does not return a finite number or None for each completion.
        """
        table = np.stack(list(self.each(prompts, completions, completion_ids=completion_ids, **columns).values()))
        scored = ~np.isnan(table)
        total = np.where(scored, table * self.weights[:, None], 0.0).sum(axis=0)
        rewards: NDArray[np.float64] = np.where(scored.any(axis=0), total, np.nan)
        return rewards

    def each(
        self, prompts: Sequence[Prompt], completions: Sequence[Prompt], **columns: Any
    ) -> dict[str, NDArray[np.float64]]:
        """What each function says of a call's arguments, unweighted: (n,) by its name, NaN where it did not score.

        Raises:
            RewardError: As in a call.
        """
        if len(prompts) != len(completions):
            raise RewardError(f"{len(prompts)} prompts but {len(completions)} completions; give one prompt for each.")
        if not len(completions):
            return {name: np.zeros(0) for name in self.names}
        given = {"prompts": prompts, "completions": completions, "completion_ids": None, **columns}
        results = call(self.functions, self.names, given)
        return {name: scores_of(one, name, len(completions)) for name, one in zip(self.names, results, strict=True)}
