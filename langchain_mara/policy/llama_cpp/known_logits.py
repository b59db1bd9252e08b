"""Logits of states: llama.cpp computes both in one pass, so they are looked up by the state itself."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass
class _Entry:
    """Logits of a state, and for how many tokens they are kept."""

    logits: "np.ndarray[tuple[int], np.dtype[np.float32]]"
    users: int = 0


class KnownLogits:
    """Logits that passes have computed, by the bytes of the state after the final norm, of which they are a function.

    They are kept until the position that they decide is decided. Mostly this is so before the next pass. So logits stay
    where llama.cpp has written them until `keep` copies those that are still needed. Use it with the context locked.
    """

    def __init__(self) -> None:
        self._entries: dict[bytes, _Entry] = {}
        self._borrowed: list[_Entry] = []

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, states: "np.ndarray", logits: "np.ndarray") -> list[bytes]:
        """Keeps the logits of some states.

        Args:
            states: (n, d) float32.
            logits: (n, vocabulary) float32, which nobody else changes before `keep` is called.

        Returns:
            Key of each state, for `release`.
        """
        keys = [state.tobytes() for state in states]
        for key, row in zip(keys, logits, strict=True):
            entry = self._entries.get(key)
            if entry is None:
                entry = self._entries[key] = _Entry(row)
                self._borrowed.append(entry)
            entry.users += 1
        return keys

    def keep(self) -> None:
        """Copies what is still needed, before a pass overwrites it."""
        for entry in self._borrowed:
            if entry.users:
                entry.logits = entry.logits.copy()
        self._borrowed = []

    def release(self, keys: Iterable[bytes]) -> None:
        """Forgets the logits that nobody else has kept."""
        for key in keys:
            entry = self._entries[key]
            entry.users -= 1
            if not entry.users:
                del self._entries[key]

    def of(self, states: Tensor) -> Tensor | None:
        """(n, vocabulary) float32 logits of (n, d) float32 states, as a copy; None if one of them is not known."""
        entries = [self._entries.get(state.tobytes()) for state in states.numpy()]
        rows = [entry.logits for entry in entries if entry is not None]
        if len(rows) < len(entries):
            return None
        copied = np.empty((len(rows), len(rows[0])), np.float32)
        for target, row in zip(copied, rows, strict=True):
            target[:] = row
        return torch.from_numpy(copied)
