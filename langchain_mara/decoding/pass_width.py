"""How many siblings go into a pass: chosen by what passes cost on this device and how early agents accept.

A wider pass decides more positions and takes longer. Both are measured: the time of passes over 1 to 64 tokens once per
loaded model, and for each agent the number of candidates that its decisions took. Answers do not depend on the width.
"""

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import median
from weakref import WeakKeyDictionary

import torch
from torch import nn

from langchain_mara.decoding.request import Decision
from langchain_mara.decoding.sequence import SequenceState
from langchain_mara.policy.contract import Policy, RowCache
from langchain_mara.policy.verification import policy_of

MOST_WIDTH = 64
_WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 40, 48, MOST_WIDTH)
_MEASURED_TOKENS = (1, 2, 4, 8, 16, 32, 64)
_REPEATS = 3
_PATIENCE_SECONDS = 1.0
_REMEMBERED = 512  # decisions; after that, older ones count less and less
_PRIOR_DECISIONS = 4.0
_PRIOR_SHARE = 0.6  # share of candidates taken to be accepted while nothing is known of an agent


class PassCosts:
    """Time of a pass by its number of tokens; between and beyond measured numbers it is a straight line.

    Args:
        tokens: Measured numbers of tokens, ascending.
        seconds: Time of a pass over each number of tokens; a pass over more tokens is taken to cost no less.
    """

    def __init__(self, tokens: Sequence[int], seconds: Sequence[float]) -> None:
        self.tokens = list(tokens)
        self.seconds = [max(seconds[: i + 1]) for i in range(len(seconds))]

    def of(self, tokens: int) -> float:
        """Seconds of a pass over so many tokens."""
        if len(self.tokens) == 1:
            return self.seconds[0]
        right = min(max(1, bisect_left(self.tokens, tokens)), len(self.tokens) - 1)
        (a, b), (low, high) = self.tokens[right - 1 : right + 1], self.seconds[right - 1 : right + 1]
        return low + (high - low) * (tokens - a) / (b - a)


class AcceptanceCounts:
    """How many candidates an agent's recent decisions took, on top of a prior guess."""

    def __init__(self) -> None:
        self._counts = [0.0] * (MOST_WIDTH + 1)

    def add(self, candidates: int) -> None:
        """Counts a decision that took so many candidates."""
        self._counts[min(candidates, MOST_WIDTH)] += 1
        if sum(self._counts) > _REMEMBERED:
            self._counts = [count / 2 for count in self._counts]

    def decided(self, examined: int, further: int) -> float:
        """Probability that `further` candidates decide a position that the first `examined` did not."""
        # Beyond the counts only the prior guess is left, and its powers underflow after some 800 candidates.
        examined = min(examined, MOST_WIDTH)
        before = self._undecided(examined)
        return 1 - self._undecided(examined + further) / before

    def _undecided(self, examined: int) -> float:
        guess: float = (1 - _PRIOR_SHARE) ** examined
        return sum(self._counts[examined + 1 :]) + _PRIOR_DECISIONS * guess


class PassWidthTuner:
    """Chooses the width of a loaded model's passes. The model is measured when a width is first asked for."""

    def __init__(self) -> None:
        self._acceptance: WeakKeyDictionary[nn.Module, AcceptanceCounts] = WeakKeyDictionary()
        self.costs: PassCosts | None = None

    @staticmethod
    def of(policy: Policy) -> "PassWidthTuner":
        """The tuner of a loaded model; it lives as long as the model."""
        with policy.loaded.lock:
            policy.loaded.width_tuner = policy.loaded.width_tuner or PassWidthTuner()
            return policy.loaded.width_tuner

    def learn(self, decisions: Iterable[Decision]) -> None:
        """Counts how many candidates decisions took."""
        for decision in decisions:
            if decision.request.agent is not None and decision.accept_probabilities:
                self._acceptance_of(decision.request.agent).add(len(decision.accept_probabilities))

    def choose(self, policy: Policy, sequences: Sequence[SequenceState], counts: Sequence[int], most: int) -> int:
        """The width from which the most decisions per second can be expected in the next pass.

        Args:
            policy: The policy model.
            sequences: The running sequences.
            counts: Size of each sequence's candidate set.
            most: Upper limit of the width.
        """
        costs = self.costs = self.costs or measure_costs(policy)
        states = Counter(
            (sequence.request.agent, len(sequence.probabilities), sequence.siblings_wanted(count))
            for sequence, count in zip(sequences, counts, strict=True)
        )
        groups = [
            (number, None if agent is None else self._acceptance_of(agent), examined, wanted)
            for (agent, examined, wanted), number in states.items()
        ]

        def rate(width: int) -> float:
            decisions = 0.0
            for number, acceptance, examined, wanted in groups:
                sure = acceptance is None or wanted <= width
                decisions += number if sure else number * acceptance.decided(examined, width)  # type: ignore[union-attr]
            return decisions / costs.of(width * len(sequences))

        return max([width for width in _WIDTHS if width < most] + [most], key=rate)

    def _acceptance_of(self, agent: nn.Module) -> AcceptanceCounts:
        acceptance = self._acceptance.get(agent)
        if acceptance is None:
            acceptance = self._acceptance[agent] = AcceptanceCounts()
        return acceptance


def measure_costs(policy: Policy) -> PassCosts:
    """Times passes over siblings of one sequence: medians of three, or one each where that takes too long.

    Args:
        policy: The policy model.
    """
    times: dict[int, list[float]] = {}
    start = time.perf_counter()
    # These passes count for nobody, and none is compiled, which would take minutes.
    policy = policy_of(policy.model)
    cache = policy.new_cache()
    try:
        length = max(1, min(16, (policy.context or 17) - 1))
        policy.prefill(cache, 0, [[0] * length])
        _seconds(policy, cache, length, 1)
        for repeat in range(_REPEATS):
            for tokens in _MEASURED_TOKENS:
                if repeat == 0 or time.perf_counter() - start < _PATIENCE_SECONDS:
                    seconds = _seconds(policy, cache, length, tokens)
                    times.setdefault(tokens, []).append(seconds)
    except Exception:  # noqa: BLE001, S110
        # What was measured so far is enough. Whatever is wrong with the model shows in the requests' own passes.
        pass
    return PassCosts(list(times) or [1], [median(seconds) for seconds in times.values()] or [1.0])


def _seconds(policy: Policy, cache: RowCache, length: int, tokens: int) -> float:
    cache.reserve(1, length + tokens)
    slots = range(length, length + tokens)
    token_ids = torch.tensor([slots], device=policy.device) % policy.vocabulary_size
    start = time.perf_counter()
    states = policy.siblings(cache, token_ids, [slots], [length], length + tokens)
    states.sum().item()  # waits for the device
    return time.perf_counter() - start
