"""The cost of answers: tokens, forward passes of policy models, and time."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from transformers import PreTrainedModel

from langchain_mara.policy.verification import policy_of
from langchain_mara_training.generation.generate import GeneratedAnswer
from langchain_mara_training.rewards.calling import RewardFunction


class CostedAnswer(NamedTuple):
    """An answer and its cost.

    Attributes:
        answer: The final answer.
        tokens: Number of tokens decoded for it, including discarded answers and the end of sequence.
        passes: Forward passes of policy models, including prefill: its share of the passes of the batch.
        seconds: Time in seconds: its share of the time of the batch.
        score: Score by which it was chosen, NaN if the rewards did not score it; None if no rewards chose it.
        scores: Reward functions that chose it, each with its reward. An answer that is scored again by the same
            function keeps this reward, because a reward model may round differently in another batch.
    """

    answer: GeneratedAnswer
    tokens: int
    passes: float
    seconds: float
    score: float | None = None
    scores: tuple[tuple[RewardFunction, float], ...] = ()


@dataclass
class PassCount:
    """Forward passes counted so far.

    Attributes:
        passes: Number of passes.
    """

    passes: int = 0

    def __call__(self, *_: object) -> None:
        """Counts one pass, as a forward hook."""
        self.passes += 1


@contextmanager
def count_passes(model: PreTrainedModel) -> Iterator[PassCount]:
    """Counts the forward passes of a policy model's backbone while the context is open.

    Calls by other threads on the same model count too.

    Args:
        model: The `model` of a `MaraLLM`.

    Yields:
        The count, which grows while the context is open.
    """
    # Find the backbone before adding the hook: the first use of a model makes passes of its own.
    backbone = policy_of(model).backbone
    count = PassCount()
    handle = backbone.register_forward_hook(count)
    try:
        yield count
    finally:
        handle.remove()


@dataclass
class Cost:
    """Cost of a piece of work.

    Attributes:
        passes: Forward passes of policy models.
        seconds: Time in seconds.
    """

    passes: int = 0
    seconds: float = 0.0

    def share(self, count: int) -> tuple[float, float]:
        """Passes and seconds of each of `count` answers."""
        return self.passes / count, self.seconds / count


@contextmanager
def measure_cost(cost: Cost, model: PreTrainedModel) -> Iterator[None]:
    """Adds a policy model's passes and the time to a cost while the context is open.

    Args:
        cost: Cost to add to.
        model: The `model` of a `MaraLLM`.
    """
    with count_passes(model) as count:
        started = time.perf_counter()
        yield
        cost.seconds += time.perf_counter() - started
        cost.passes += count.passes
