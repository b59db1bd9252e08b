"""Answers to label, read once and kept on disk: a data set may be larger than memory, or be a stream that ends.

All rows are read and judged before the first token is labeled. So a bad row shows in minutes and not after hours, and
the order and the shards are those of a list of the same rows.
"""

import hashlib
import tempfile
from array import array
from collections.abc import Sequence
from typing import IO

import numpy as np

from langchain_mara_training.labeling.answer_tokens import LabeledAnswer

_MOST_IN_MEMORY = 64 * 2**20


class AnswerStore(Sequence[LabeledAnswer]):
    """Answers in the order in which they were added; a few numbers for each of them stay in memory.

    The token ids are in a temporary file once they have more than 64 MiB. It goes with this object.
    """

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=_MOST_IN_MEMORY)  # noqa: SIM115
        self._offsets, self._lengths, self._starts = array("q"), array("q"), array("q")
        self._groups, self._owned, self._pairs = array("q"), array("q"), array("q")
        self._labels, self._weights = array("b"), array("d")
        self._digest = hashlib.sha256(b"[")

    def add(self, answer: LabeledAnswer) -> None:
        """Adds an answer at the end."""
        # As plain tuples, so that renaming the class does not change the digest.
        self._digest.update(f"{', ' if len(self) else ''}{tuple(answer)!r}".encode())
        self._offsets.append(self._file.seek(0, 2))
        for column, value in (
            (self._lengths, len(answer.token_ids)),
            (self._starts, answer.start),
            (self._groups, answer.group),
            (self._owned, sum(answer.is_own)),
            (self._labels, answer.label),
            (self._pairs, answer.pair),
        ):
            column.append(value)
        self._weights.append(answer.weight)
        self._file.write(np.array(answer.token_ids, np.int32).tobytes() + np.array(answer.is_own, bool).tobytes())

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, number: int) -> LabeledAnswer:  # type: ignore[override]
        length, start = self._lengths[number], self._starts[number]
        self._file.seek(self._offsets[number])
        token_ids = np.frombuffer(self._file.read(4 * length), np.int32).tolist()
        is_own = np.frombuffer(self._file.read(length - start), bool).tolist()
        label, weight, group = self._labels[number], self._weights[number], self._groups[number]
        return LabeledAnswer(token_ids, start, is_own, label, weight, group, self._pairs[number])

    def length(self, number: int) -> int:
        """Number of tokens of an answer and its prompt."""
        return self._lengths[number]

    def owned(self, number: int) -> int:
        """Number of tokens of an answer that get a label."""
        return self._owned[number]

    def digest(self) -> str:
        """A digest of all answers in their order."""
        whole = self._digest.copy()
        whole.update(b"]")
        return whole.hexdigest()[:16]
