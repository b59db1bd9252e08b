"""Labeled states of tokens, the result of a labeler: in memory, or in shards on disk if they do not fit."""

import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Self
from uuid import uuid4

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from langchain_mara.exceptions import DataError
from langchain_mara_training.labeling.shard_list import LIST_NAME, is_intact, planned_count, read_list

NO_PAIR = -1
"""Pair of a label that is not of a preference pair."""
_OPEN_SHARDS = 4
_OF_PAIRS = {"pairs", "offsets"}  # shards of earlier versions lack them


class LabeledTokens(NamedTuple):
    """The rows of one shard. Row i of every column belongs to the same token.

    Attributes:
        states: (n, d) float16 states that the tokens produce.
        labels: (n,) int8 labels: 1 accept, 0 reject.
        weights: (n,) float32 sample weights.
        groups: (n,) int64 numbers of the prompts.
        token_ids: (n,) int32 token ids.
        positions: (n,) int32 positions in the sequence of prompt and answer, from 0.
        ranks: (n,) int16 ranks in the candidate set by probability, from 0; -1 outside the set.
        pairs: (n,) int32 numbers of the preference pairs; `NO_PAIR` for other labels.
        offsets: (n,) int32 distances, in tokens, from the first difference of the pair's answers; -1 without a pair.
    """

    states: Tensor
    labels: Tensor
    weights: Tensor
    groups: Tensor
    token_ids: Tensor
    positions: Tensor
    ranks: Tensor
    pairs: Tensor
    offsets: Tensor

    @classmethod
    def join(cls, parts: Sequence["LabeledTokens"]) -> "LabeledTokens":
        """The rows of all parts, in order."""
        return cls(*(torch.cat(columns) for columns in zip(*parts, strict=True)))

    def where(self, index: Tensor) -> "LabeledTokens":
        """The rows that an index or mask selects, in its order."""
        return LabeledTokens(*(column[index] for column in self))


class _Shard(NamedTuple):
    """Location of a shard's states in its file.

    Attributes:
        file: The shard.
        offset: Byte at which the states begin.
        rows: Number of states.
        size: Size d of a state.
        reading: Unique to this reading of the header, so that a file that was replaced is mapped again, even with the
            size and time of the old one.
    """

    file: Path
    offset: int
    rows: int
    size: int
    reading: str


class ShardedStates:
    """States in the shards of a folder, as one float16 array that reads only the rows you index.

    At most four shards are mapped at a time, so the data may be larger than memory.

    Args:
        files: Shards, in order.

    Attributes:
        shape: (rows, d).
        shard_starts: Number of the first row of each shard.

    Raises:
        DataError: If a shard is corrupt, or the shards hold states of different sizes.
    """

    ndim = 2
    dtype = np.dtype(np.float16)

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = list(files)
        self._shards = [_read_header(file) for file in self.files]
        sizes = {shard.size for shard in self._shards}
        if len(sizes) != 1:
            raise DataError(
                f"The shards hold states of different sizes: {sorted(sizes)}. Give shards of one policy model."
            )
        bounds = np.cumsum([0, *(shard.rows for shard in self._shards)])
        self.shard_starts: list[int] = bounds[:-1].tolist()
        self.shape = (int(bounds[-1]), sizes.pop())

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> NDArray[np.float16]:
        rows, *rest = key if isinstance(key, tuple) else (key,)
        states = self._rows(rows)
        result: NDArray[np.float16] = states[(slice(None),) * (states.ndim - 1) + tuple(rest)] if rest else states
        return result

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("States in shards can only be copied into an array. Leave out copy=False.")
        return np.asarray(self._rows(slice(None)), dtype or self.dtype)

    def _rows(self, key: Any) -> Any:
        if isinstance(key, int | np.integer):
            return self._gather(np.array([key]))[0]
        if isinstance(key, slice):
            return self._gather(np.arange(*key.indices(len(self))))
        index = np.asarray(key)
        return self._gather(np.flatnonzero(index) if index.dtype == bool else index)

    def _gather(self, index: NDArray[np.int64]) -> NDArray[np.float16]:
        index = np.where(index < 0, index + len(self), index)
        if index.size and not 0 <= index.min() <= index.max() < len(self):
            raise IndexError(f"An index is out of range: rows run from 0 to {len(self) - 1}.")
        result = np.empty((len(index), self.shape[1]), np.float16)
        shard_of = np.searchsorted(self.shard_starts, index, side="right") - 1
        for number in np.unique(shard_of):
            in_shard = shard_of == number
            result[in_shard] = _mapped(self._shards[number])[index[in_shard] - self.shard_starts[number]]
        return result


@lru_cache(maxsize=_OPEN_SHARDS)
def _mapped(shard: _Shard) -> NDArray[np.float16]:
    return np.memmap(shard.file, np.float16, "r", shard.offset, (shard.rows, shard.size))


def _read_header(file: Path) -> _Shard:
    """Finds the states in a safetensors file: eight bytes of header length, JSON header, data."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            entry = json.loads(stream.read(length))["states"]
        rows, size = entry["shape"]
        is_complete = entry["dtype"] == "F16" and file.stat().st_size >= 8 + length + entry["data_offsets"][1]
    except (OSError, ValueError, KeyError, OverflowError, MemoryError) as error:
        raise DataError(f"{file} is not a shard of states ({error}). Delete it and run the labeler again.") from None
    if not is_complete:
        raise DataError(f"{file} is truncated, or its states are not float16. Delete it and run the labeler again.")
    return _Shard(file, 8 + length + entry["data_offsets"][0], rows, size, uuid4().hex)


@dataclass(frozen=True, eq=False)
class TokenLabels:
    """Labeled tokens, ready for `MaraClassifier.fit`. Iterating yields `X, y, weight, groups`.

    Attributes:
        X: (n, d) float16 states that the tokens produce; a `ShardedStates` if they are on disk.
        y: (n,) int64 labels: 1 accept, 0 reject.
        weight: (n,) float32 sample weights.
        groups: (n,) int64 numbers of the prompts; a split by group never divides a prompt.
        token_ids: (n,) int64 token ids.
        positions: (n,) int64 positions in the sequence of prompt and answer, from 0.
        ranks: (n,) int64 ranks in the candidate set by probability, from 0; -1 outside the set.
        pairs: (n,) int64 numbers of the preference pairs; `NO_PAIR` for other labels.
        offsets: (n,) int64 distances, in tokens, from the first difference of the pair's answers; -1 without a pair.
    """

    X: NDArray[np.float16] | ShardedStates
    y: NDArray[np.int64]
    weight: NDArray[np.float32]
    groups: NDArray[np.int64]
    token_ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    ranks: NDArray[np.int64]
    pairs: NDArray[np.int64]
    offsets: NDArray[np.int64]

    def __iter__(self) -> Iterator[Any]:
        yield from (self.X, self.y, self.weight, self.groups)

    def __len__(self) -> int:
        return len(self.y)

    def __add__(self, other: "TokenLabels") -> "TokenLabels":
        """The labels of both, in order. Groups with equal numbers become one group; pairs stay apart."""
        states: Any
        if isinstance(self.X, ShardedStates) and isinstance(other.X, ShardedStates):
            states = ShardedStates([*self.X.files, *other.X.files])
        else:
            states = np.concatenate([np.asarray(self.X), np.asarray(other.X)])
        names = [column.name for column in fields(self)][1:]
        columns = {name: np.concatenate([getattr(self, name), getattr(other, name)]) for name in names}
        later = np.where(other.pairs == NO_PAIR, NO_PAIR, other.pairs + self.pairs.max() + 1)
        return TokenLabels(states, **{**columns, "pairs": np.concatenate([self.pairs, later])})

    @classmethod
    def of(cls, shards: Sequence[LabeledTokens]) -> Self:
        """Labels in memory, from the columns of shards.

        Raises:
            DataError: If no token has a label.
        """
        joined = LabeledTokens.join(shards)
        return cls._checked(joined.states.numpy(), [column.numpy() for column in joined[1:]])

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Loads the labels that a labeler wrote. The states stay on disk.

        If the labeler was stopped, these are the labels so far, and a warning says so.

        Raises:
            TrainingError: If `labels.json` is damaged.
            DataError: If no shards are listed, one is missing or damaged, or no token has a label.
        """
        place = Path(folder).expanduser()
        shards = [shard for _, shard in sorted(read_list(place).items())]
        if not shards:
            raise DataError(f"{folder} lists no shards in {LIST_NAME}. Give the folder that a labeler wrote.")
        for shard in shards:
            if not is_intact(place, shard):
                raise DataError(
                    f"{place / shard.file} is missing or damaged: it does not match its digest in {LIST_NAME}. Run the "
                    "labeler again; it computes this shard anew."
                )
        planned = planned_count(place)
        if planned is not None and len(shards) < planned:
            warnings.warn(
                f"{folder} holds {len(shards)} of {planned} shards, because its labeling did not end. Run the labeler "
                "again; it resumes there.",
                stacklevel=2,
            )
        return cls.of_files([place / shard.file for shard in shards])

    @classmethod
    def of_files(cls, files: Sequence[Path]) -> Self:
        """Loads shards without checking their digests.

        Raises:
            DataError: If one is no shard, or no token has a label.
        """
        states = ShardedStates(files)
        columns = [_read_columns(file) for file in files]
        return cls._checked(states, [np.concatenate(parts) for parts in zip(*columns, strict=True)])

    @classmethod
    def _checked(cls, states: Any, columns: Sequence[ArrayLike]) -> Self:
        if not len(states):
            raise DataError(
                "No token got a label. If the answers of each pair are equal, give answers that differ. If no token "
                "after their first difference is in the model's candidate set, candidate_filter=False keeps such "
                "tokens. If all candidates scored the same, give another reward function."
            )
        labels, weights, *rest = columns
        return cls(
            states,
            np.asarray(labels, np.int64),
            np.asarray(weights, np.float32),
            *(np.asarray(column, np.int64) for column in rest),
        )


def _read_columns(file: Path) -> list[NDArray[Any]]:
    """All columns of a shard except the states, in the order of `LabeledTokens`."""
    try:
        with safe_open(file, "numpy") as opened:
            stored = set(opened.keys())
            unknown = np.full(len(opened.get_tensor("labels")), NO_PAIR)
            return [
                unknown if name in _OF_PAIRS - stored else opened.get_tensor(name) for name in LabeledTokens._fields[1:]
            ]
    except SafetensorError as error:
        raise DataError(f"{file} is corrupt ({error}). Delete it and run the labeler again.") from None
