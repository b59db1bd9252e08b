"""What answers cost: tokens, forward passes of policy models, and time."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from transformers import PreTrainedModel

from langchain_mara.policy.model import PolicyModel
from langchain_mara_training.generation.generate import GeneratedAnswer


class CostedAnswer(NamedTuple):
    """An answer and what it cost.

    Attributes:
        answer: The one given.
        tokens: All that were decoded for it, of answers thrown away too; end of sequence included.
        passes: Forward passes of policy models, prefill included: its share of what was decoded together.
        seconds: Of what it took to answer: its share of what was decoded together.
        score: Of the rewards it was chosen by, NaN where they said nothing; None where there are none.
    """

    answer: GeneratedAnswer
    tokens: int
    passes: float
    seconds: float
    score: float | None = None


@dataclass
class PassCount:
    """Forward passes counted so far."""

    passes: int = 0

    def __call__(self, *_: object) -> None:
        """Counts one, as a forward hook."""
        self.passes += 1


@contextmanager
def count_passes(model: PreTrainedModel) -> Iterator[PassCount]:
    """Counts the forward passes of a policy model's backbone while the context is open.

    Whoever makes them: calls of other threads on the same model count, too.

    Args:
        model: The `model` of a `MaraLLM`.

    Yields:
        The count, which grows.
    """
    # Made before the hook is there: its first use of a model makes passes of its own.
    backbone = PolicyModel(model).backbone
    count = PassCount()
    handle = backbone.register_forward_hook(count)
    try:
        yield count
    finally:
        handle.remove()


@dataclass
class Cost:
    """Passes and seconds of some work."""

    passes: int = 0
    seconds: float = 0.0

    def share(self, count: int) -> tuple[float, float]:
        """Passes and seconds of each of `count` answers."""
        return self.passes / count, self.seconds / count


@contextmanager
def measure_cost(cost: Cost, model: PreTrainedModel) -> Iterator[None]:
    """Adds to a cost the passes of a policy model and the seconds while the context is open.

    Args:
        cost: What is added to.
        model: The `model` of a `MaraLLM`.
    """
    with count_passes(model) as count:
        started = time.perf_counter()
        yield
        cost.seconds += time.perf_counter() - started
        cost.passes += count.passes
