"""Statistics of an answer: how each token was chosen, and counts over its decisions."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import isnan
from typing import Any, Literal

from langchain_mara.decoding.request import Decision

Outcome = Literal["accepted", "steered", "fallback", "skipped", "unasked"]
"""How a token was chosen; see `outcome`."""


@dataclass
class DecisionStatistics:
    """Counts over decisions, updated by `add`.

    Attributes:
        tokens: Number of emitted tokens.
        decided: Number of positions at which the agent was asked.
        fallbacks: Number of decided positions at which every candidate was rejected.
        examined: Number of candidates that the agent was asked about.
        nonfinite: Number of examined candidates whose state was NaN or infinite; they count as rejected.
        accepted_index: How often the candidate at each index was accepted.
        drafted: Number of emitted tokens that had been drafted.
        skipped: Number of positions that a gate skipped; they do not count as decided.
    """

    tokens: int = 0
    decided: int = 0
    fallbacks: int = 0
    examined: int = 0
    nonfinite: int = 0
    accepted_index: Counter[int] = field(default_factory=Counter)
    drafted: int = 0
    skipped: int = 0

    @property
    def share_skipped(self) -> float:
        """Share of the positions with several candidates that a gate skipped; 0 without such positions."""
        return self.skipped / max(1, self.decided + self.skipped)

    @classmethod
    def of(cls, decisions: Iterable[Decision]) -> "DecisionStatistics":
        """Statistics over the given decisions."""
        statistics = cls()
        for decision in decisions:
            statistics.add(decision)
        return statistics

    def add(self, decision: Decision) -> None:
        """Counts one decision."""
        self.tokens += 1
        self.drafted += decision.drafted
        self.examined += len(decision.accept_probabilities)
        self.nonfinite += sum(map(isnan, decision.accept_probabilities))
        if decision.skipped:
            self.skipped += 1
            return
        if not decision.accept_probabilities:
            return
        self.decided += 1
        if decision.accepted:
            self.accepted_index[decision.index] += 1
        else:
            self.fallbacks += 1

    def as_info(self) -> dict[str, Any]:
        """Plain values for LangChain's `generation_info`; `accepted_index` becomes a list."""
        longest = max(self.accepted_index, default=-1) + 1
        return {
            "tokens": self.tokens,
            "decided": self.decided,
            "fallbacks": self.fallbacks,
            "examined": self.examined,
            "nonfinite": self.nonfinite,
            "accepted_index": [self.accepted_index[i] for i in range(longest)],
            "drafted": self.drafted,
            "skipped": self.skipped,
        }


def outcome(decision: Decision) -> Outcome:
    """How a token was chosen.

    Returns:
        `accepted` if the first candidate was accepted, `steered` if a later one was, `fallback` if all were rejected,
        `skipped` if a gate left the position to the policy model, and `unasked` if there was no agent or only one
        candidate.
    """
    if decision.skipped:
        return "skipped"
    if not decision.accept_probabilities:
        return "unasked"
    if not decision.accepted:
        return "fallback"
    return "steered" if decision.index else "accepted"
