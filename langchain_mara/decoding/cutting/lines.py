"""Candidate sets side by side, one a line: on the device, and as they are read to the host."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from langchain_mara.decoding.candidates import CandidateSets
from langchain_mara.policy.cache import enlarged


class Lines(NamedTuple):
    """Candidate sets, one a line.

    Attributes:
        token_ids: (lines, columns) int64 candidates in order of examination; columns beyond a line's count hold
            anything.
        scores: (lines, columns) float32 scores by which candidates are ordered; see `CandidateSets`.
        counts: (lines,) int64, size of the set in each line.
        accept: (lines, columns) float32 accept probabilities by agents that judge before; 0 for all others. None if
            there are no such agents.
        asks: (lines,) bool, whether the agent is asked; False where an entropy gate skips the position. None if no
            position has such a gate.
    """

    token_ids: Tensor
    scores: Tensor
    counts: Tensor
    accept: Tensor | None = None
    asks: Tensor | None = None

    def first(self, count: int) -> "Lines":
        """The first lines."""
        return Lines(*(None if each is None else each[:count] for each in self))  # type: ignore[arg-type]

    def replaced(self, numbers: Sequence[int], others: "Lines") -> "Lines":
        """These lines with some others in their places, or added.

        Args:
            numbers: Places of the others; where they are all there is, nothing is copied.
            others: The others, in this order.
        """
        count = max(self.counts.shape[0], max(numbers) + 1)
        if [*numbers] == [*range(count)]:
            return others
        places = torch.tensor(numbers).to(self.counts.device)
        fields = zip(self, others, (0, 0, 0, 0, 1), strict=True)
        return Lines(*(_replaced(old, new, places, count, fill) for old, new, fill in fields))  # type: ignore[arg-type]

    def copy_line(self, source: int, target: int) -> None:
        """Copies a line over another one."""
        for each in self:
            if each is not None:
                each[target] = each[source]


class ReadLines(NamedTuple):
    """`Lines` on the host. What nobody reads, and what is None there, is empty."""

    token_ids: list[list[int]]
    scores: list[list[float]]
    counts: list[int]
    accept: list[list[float]]
    asks: list[bool]

    def candidates(self, line: int) -> list[int]:
        """The candidate set of a line."""
        return self.token_ids[line][: self.counts[line]]

    def scores_of(self, line: int) -> list[float]:
        """Scores of the candidates of a line; none if nobody reads them."""
        return self.scores[line][: self.counts[line]] if self.scores else []

    def accept_of(self, line: int) -> list[float]:
        """Accept probabilities of the candidates of a line by an agent that judges before."""
        return self.accept[line][: self.counts[line]] if self.accept else []

    def skips(self, line: int) -> bool:
        """Whether an entropy gate skips the position of a line."""
        return bool(self.asks) and not self.asks[line] and self.counts[line] > 1

    def first(self, count: int) -> "ReadLines":
        """The first lines."""
        return ReadLines(*(column[:count] for column in self))  # type: ignore[arg-type]

    def copy_line(self, source: int, target: int) -> None:
        """Copies a line over another one."""
        column: Any
        for column in self:
            if column:
                column[target] = column[source]


def joined(parts: Sequence[CandidateSets], rows: Sequence[Sequence[int]]) -> CandidateSets:
    """Sets that were cut in several parts as one.

    Args:
        parts: The parts.
        rows: Rows of the whole that each part has.
    """
    if len(parts) == 1:
        return parts[0]
    empty = CandidateSets(*(each[:0] for each in parts[0]))
    lines = Lines(*empty)
    for own, part in zip(rows, parts, strict=True):
        lines = lines.replaced(own, Lines(*part))
    return CandidateSets(*lines[:3])


def _replaced(old: Tensor | None, new: Tensor | None, places: Tensor, count: int, fill: int) -> Tensor | None:
    if old is None:
        if new is None:
            return None
        old = new.new_full((0, *new.shape[1:]), fill)
    shape = (count,) if new is None else (count, *new.shape[1:])
    grown = enlarged(old, shape, fill)
    if new is None:
        grown[places] = fill
    elif new.ndim > 1:
        grown[places, : new.shape[1]] = new
    else:
        grown[places] = new
    return grown
