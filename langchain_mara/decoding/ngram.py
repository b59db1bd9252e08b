"""Drafts: tokens that are likely to come next, looked up in what came before.

A draft never changes an answer. Its tokens follow the first candidate of a position through the model, one after the
other, and each is emitted only if the accept/reject rule emits it at its own position (`batch.py`). Where an answer
repeats its prompt or itself, one pass then yields several tokens.
"""

from collections.abc import Iterable
from itertools import cycle, islice

LOOKUP_TOKENS = 3
_FIRST_DRAFT = 2


class NgramProposer:
    """Looks up the last tokens of a sequence in its own prompt and answer.

    Drafts grow while they are right: a wrong draft costs a little, a long wrong one more.

    Args:
        token_ids: Tokens of the sequence so far.
    """

    def __init__(self, token_ids: Iterable[int]) -> None:
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        self._longest = _FIRST_DRAFT
        self.extend(token_ids)

    def __len__(self) -> int:
        return len(self._tokens)

    def extend(self, token_ids: Iterable[int]) -> None:
        """Appends further tokens of the sequence."""
        for token in token_ids:
            self._tokens.append(token)
            self._after[self._last(LOOKUP_TOKENS)] = len(self._tokens)

    def draft(self, first: int, most: int) -> list[int]:
        """What followed the last occurrence of the sequence's last tokens and `first`; empty if there is none.

        Args:
            first: Token that comes next if the draft is of any use.
            most: Most drafted tokens.
        """
        start = self._after.get((*self._last(LOOKUP_TOKENS - 1), first))
        if start is None:
            return []
        most = min(most, self._longest)
        # The continuation may reach into the draft itself; then it repeats.
        return list(islice(cycle([*self._tokens[start : start + most], first]), most))

    def _last(self, count: int) -> tuple[int, ...]:
        return tuple(self._tokens[max(0, len(self._tokens) - count) :])

    def record_draft(self, drafted: int, right: int) -> None:
        """Lengthens drafts after one that was right as a whole, shortens them to what was right otherwise."""
        self._longest = max(1, 2 * drafted if right == drafted else right)
