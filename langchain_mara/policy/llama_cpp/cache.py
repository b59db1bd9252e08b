"""Rows as sequences of llama.cpp: siblings share the cells of their prefix, and the one that is kept becomes the row.

The first candidate of a position goes into the row's own sequence. Where that is accepted, as it mostly is, nothing
has to be copied or removed, and cells are in the same order as in plain decoding.
"""

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from langchain_mara.exceptions import UnsupportedModelError
from langchain_mara.policy.llama_cpp.context import LlamaContext, TokenInPass


@dataclass(eq=False)
class Branch:
    """A sequence of llama.cpp.

    Attributes:
        sequence: Its number.
        length: Number of tokens it holds.
    """

    sequence: int
    length: int = 0


@dataclass(eq=False)
class Candidate:
    """A token that went through the model and is not committed.

    Attributes:
        token_id: The token.
        position: Its position.
        branch: The sequence that holds it; None if it had to make room for others.
    """

    token_id: int
    position: int
    branch: Branch | None


@dataclass(eq=False)
class Row:
    """The sequences of a row.

    Attributes:
        main: The sequence that holds the committed tokens.
        committed: Number of committed tokens.
        candidates: Tokens that are not committed, by slot.
        keys: Position of each token whose logits are kept, and their key.
        moved: Positions of committed tokens by slot, where these differ.
    """

    main: Branch
    committed: int = 0
    candidates: dict[int, Candidate] = field(default_factory=dict)
    keys: list[tuple[int, bytes]] = field(default_factory=list)
    moved: dict[int, int] = field(default_factory=dict)


class SequenceCache:
    """A `RowCache` in a context of llama.cpp.

    Args:
        context: The context.
        keeps_prefixes: Whether what a row holds can be read. Models with sliding windows overwrite what has left them.
    """

    def __init__(self, context: LlamaContext, *, keeps_prefixes: bool) -> None:
        self._context = context
        self._keeps_prefixes = keeps_prefixes
        self._rows: dict[int, Row] = {}
        weakref.finalize(self, _abandon, context, self._rows)

    def reserve(self, rows: int, slots: int) -> None:
        """Does nothing: cells are taken when tokens come."""

    def open_row(self, row: int, start: int) -> Row:
        """A row that is to get further tokens from position `start` on; one that starts at 0 is begun anew."""
        if start == 0:
            self.clear_row(row)
            self._rows[row] = Row(Branch(self._take()))
        opened = self._rows[row]
        self._forget(opened, opened.candidates.copy())
        self._cut(opened, start)
        return opened

    def open_position(self, row: int, position: int, slots: Iterable[int]) -> Row:
        """A row whose slots are to get tokens at a position; what these slots have held is forgotten."""
        opened = self._rows[row]
        self._forget(opened, {slot: opened.candidates[slot] for slot in slots if slot in opened.candidates})
        in_main = [candidate for candidate in opened.candidates.values() if candidate.branch is opened.main]
        # The first candidate of the position may still be chosen; drafted tokens after it may not.
        self._cut(opened, position + any(candidate.position == position for candidate in in_main))
        return opened

    def place(self, row: Row, slot: int, token_id: int, position: int, after: Branch | None) -> Branch | None:
        """Makes a place for a token; the caller puts it through the model.

        Args:
            row: The row.
            slot: Slot of the token.
            token_id: The token.
            position: Its position.
            after: Sequence that it continues; None for a sibling, which continues what is committed.

        Returns:
            The sequence that holds it; None if none is free.
        """
        branch = after
        if branch is None and row.main.length == position:
            branch = row.main
        elif branch is None:
            sequence = self._context.take_sequence()
            if sequence is None:
                return None
            branch = Branch(sequence, position)
            self._context.share(row.main.sequence, sequence, 0, position)
        branch.length = position + 1
        row.candidates[slot] = Candidate(token_id, position, branch)
        return branch

    def make_room(self) -> None:
        """Gives back the sequences of candidates beside the rows' own. One that is chosen later is evaluated again.

        Raises:
            torch.OutOfMemoryError: If there are none.
        """
        room = False
        for row in self._rows.values():
            beside = {slot: each for slot, each in row.candidates.items() if each.branch not in (None, row.main)}
            room = room or bool(beside)
            self._forget(row, beside)
            for slot, candidate in beside.items():
                candidate.branch = None
                row.candidates[slot] = candidate
        if not room:
            raise self._too_many()

    def undo(self, rows: Iterable[Row]) -> None:
        """Forgets the candidates of rows whose pass failed; one that is chosen later is evaluated again."""
        for row in rows:
            candidates = row.candidates.copy()
            self._forget(row, candidates)
            self._cut(row, row.committed)
            for slot, candidate in candidates.items():
                candidate.branch = None
                row.candidates[slot] = candidate

    def commit(self, tokens: Sequence[tuple[int, int, int]]) -> None:
        """Makes tokens visible; see `RowCache.commit`."""
        again = []
        with self._context.lock:
            for number, slot, position in tokens:
                row = self._rows[number]
                candidate = row.candidates.pop(slot)
                if candidate.branch is None:
                    self._cut(row, position)
                    row.main.length = position + 1
                    again.append(TokenInPass(candidate.token_id, position, row.main.sequence))
                elif candidate.branch is not row.main:
                    left, row.main = row.main, candidate.branch
                    row.candidates = {s: each for s, each in row.candidates.items() if each.branch is not left}
                    self._context.give_back(left.sequence)
                row.committed = position + 1
                if slot != position:
                    row.moved[slot] = position
            for number in {number for number, _, _ in tokens}:
                self.settle(self._rows[number])
            if again:
                self._context.fill(again)

    def committed(self, row: Row, length: int) -> None:
        """Counts the first tokens of a row as committed, each in the slot of its position."""
        row.committed = row.main.length = length

    def move_row(self, source: int, target: int, slots: int) -> None:  # noqa: ARG002 - for caches that are tensors
        """Moves a row to another place; see `RowCache.move_row`."""
        self.clear_row(target)
        self._rows[target] = self._rows.pop(source)

    def clear_row(self, row: int) -> None:
        """Forgets a row."""
        with self._context.lock:
            cleared = self._rows.pop(row, None)
            if cleared is not None:
                self._forget(cleared, cleared.candidates.copy())
                self._context.known.release(key for _, key in cleared.keys)
                self._context.give_back(cleared.main.sequence)

    def keep_rows(self, rows: int) -> None:
        """Frees the cells of all rows except the first `rows`."""
        for row in [row for row in self._rows if row >= rows]:
            self.clear_row(row)

    def read(self, row: int, slots: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Copies the keys and values of consecutive tokens; see `RowCache.read`.

        Raises:
            UnsupportedModelError: If the model has a sliding window, so that they may be gone.
        """
        if not self._keeps_prefixes:
            raise UnsupportedModelError("Prefixes of models with a sliding window are not kept.")
        read, context = self._rows[row], self._context
        start, stop = (read.moved.get(slot, slot) for slot in (slots[0], slots[-1]))
        with context.lock:
            sequence = self._take()
            try:
                context.share(read.main.sequence, sequence, start, stop + 1)
                return [(torch.from_numpy(context.read(sequence)), torch.empty(0))]
            finally:
                context.give_back(sequence)

    def write(self, row: int, blocks: Sequence[list[tuple[Tensor, Tensor]]]) -> int:
        """Commits blocks to a free row; see `RowCache.write`."""
        context = self._context
        with context.lock:
            written = self.open_row(row, 0)
            sequence = self._take()
            try:
                for block in blocks:
                    context.write(sequence, np.ascontiguousarray(block[0][0].numpy()))
                    context.share(sequence, written.main.sequence, -1, -1)
            finally:
                context.give_back(sequence)
            self.committed(written, context.length(written.main.sequence))
        return written.committed

    def _take(self) -> int:
        sequence = self._context.take_sequence()
        if sequence is None:
            self.make_room()
            sequence = self._context.take_sequence()
        if sequence is None:
            raise self._too_many()
        return sequence

    def _too_many(self) -> torch.OutOfMemoryError:
        return torch.OutOfMemoryError(f"llama.cpp runs at most {self._context.most_sequences} sequences at a time.")

    def _cut(self, row: Row, length: int) -> None:
        """Shortens a row's own sequence."""
        if row.main.length > length:
            self._context.cut(row.main.sequence, length)
            row.main.length = length
            gone = {
                slot for slot, each in row.candidates.items() if each.branch is row.main and each.position >= length
            }
            for slot in gone:
                del row.candidates[slot]

    def _forget(self, row: Row, candidates: dict[int, Candidate]) -> None:
        """Drops candidates, and gives back the sequences that hold no other one."""
        for slot, candidate in candidates.items():
            del row.candidates[slot]
            branch = candidate.branch
            shared = branch in (None, row.main) or any(each.branch is branch for each in row.candidates.values())
            if branch is not None and not shared:
                self._context.give_back(branch.sequence)

    def settle(self, row: Row) -> None:
        """Drops what the committed tokens have decided."""
        decided = {slot: each for slot, each in row.candidates.items() if each.position < row.committed}
        self._forget(row, decided)
        self._context.known.release(key for position, key in row.keys if position < row.committed)
        row.keys = [(position, key) for position, key in row.keys if position >= row.committed]


def _abandon(context: LlamaContext, rows: dict[int, Row]) -> None:
    """Gives back all of a cache that is gone. The garbage collector may call it in any thread, whatever that does."""
    branches = {row.main.sequence for row in rows.values()}
    branches |= {each.branch.sequence for row in rows.values() for each in row.candidates.values() if each.branch}
    context.give_back_later([*branches], [key for row in rows.values() for _, key in row.keys])
