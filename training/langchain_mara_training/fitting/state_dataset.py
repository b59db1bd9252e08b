"""Reads states in batches from memory, from a memory map, or from shards on disk."""

import mmap
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from langchain_mara.exceptions import DataError

Rows = NDArray[np.int64]
Target = tuple[Tensor, Tensor]
Batch = tuple[Tensor, Target]
_BLOCK_BYTES = 2**27  # size of the blocks in which a memory map is shuffled; a smaller map is a single block


def generator_for(seed: int, *path: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A separate generator for each draw of a job, so a resumed job replays nothing.

    Args:
        seed: Seed of the job.
        *path: Numbers that identify the draw, such as (purpose, epoch).
        device: Device to draw on.
    """
    state = np.random.SeedSequence([seed, *path]).generate_state(1, np.uint64)[0]
    # PyTorch's generator takes a signed number.
    return torch.Generator(device).manual_seed(int(state >> np.uint64(1)))


def as_array_like(X: Any) -> Any:  # noqa: N803 - scikit-learn's name
    """Turns a tensor on the CPU into a numpy view, except bfloat16. Everything else is returned unchanged, uncopied."""
    if not isinstance(X, Tensor):
        return X
    X = X.detach()  # noqa: N806
    return X if X.device.type != "cpu" or X.dtype is torch.bfloat16 else X.numpy()


def is_read_by_rows(X: Any) -> bool:  # noqa: N803
    """Whether scikit-learn's checks would copy X or load all of it, so that it must be read in batches of rows."""
    return isinstance(X, Tensor) or hasattr(X, "shard_starts")


class States:
    """Rows of states, converted and checked batch by batch.

    Args:
        array: (n, d) numpy array, memory map, tensor, or sharded states (an object with `shape`, `dtype`,
            `shard_starts`, and indexing by an array of row numbers).

    Raises:
        DataError: If it does not have two dimensions, or is empty.
    """

    def __init__(self, array: Any) -> None:
        if len(array.shape) != 2 or 0 in array.shape:  # noqa: PLR2004
            raise DataError(f"X must be a table of states (n, d) with at least one row, not {tuple(array.shape)}.")
        self.array = array
        self.shape: tuple[int, int] = (int(array.shape[0]), int(array.shape[1]))

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def dtype(self) -> str:
        """Name of the states' dtype, such as float16."""
        return str(self.array.dtype).removeprefix("torch.")

    @property
    def block_starts(self) -> list[int]:
        """Number of the first row of each block; blocks are shuffled one at a time. States in memory are one block."""
        if hasattr(self.array, "shard_starts"):
            return list(self.array.shard_starts)
        if not _is_memory_map(self.array):
            return [0]
        return list(range(0, len(self), max(1, _BLOCK_BYTES // (self.shape[1] * self.array.dtype.itemsize))))

    def take(self, rows: Rows) -> Tensor:
        """Copies the states of some rows.

        Args:
            rows: (k,) row numbers.

        Returns:
            (k, d) float16, bfloat16 or float32, on the device of the source.

        Raises:
            DataError: If a row holds NaN, infinite values, or values outside float32's range.
        """
        if isinstance(self.array, Tensor):
            batch = self.array[torch.from_numpy(rows).to(self.array.device)]
        else:
            batch = torch.from_numpy(_in_float(np.asarray(self.array[rows])))
        # The sum nearly always decides, in a tenth of the time. It can overflow although every number is finite.
        if not batch.sum(dtype=torch.float32).isfinite() and not (finite := batch.isfinite()).all():
            row = rows[int((~finite).any(dim=1).nonzero()[0, 0])]
            raise DataError(
                f"Row {row} of X holds NaN or infinite values, or values beyond float32. Drop such rows; if the states "
                "come from a policy model in float16, compute them in bfloat16 or float32."
            )
        return batch

    def chunks(self, rows: int) -> Iterator[Tensor]:
        """All states in order, `rows` at a time."""
        for start in range(0, len(self), rows):
            yield self.take(np.arange(start, min(start + rows, len(self)), dtype=np.int64))


class LabeledStates(torch.utils.data.Dataset[Batch]):
    """A subset of states with their labels and weights, read one whole batch at a time.

    Args:
        states: (n, d), all states.
        labels: (n,) int64, 0 or 1.
        weights: (n,) float32.
        rows: (m,) int64 numbers of the rows in this subset, ascending.
    """

    def __init__(self, states: States, labels: Rows, weights: NDArray[np.float32], rows: Rows) -> None:
        self.states = states
        self.labels = labels
        self.weights = weights
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Batch:
        return self.__getitems__(np.array([row]))

    def __getitems__(self, rows: Rows) -> Batch:
        """States (k, d), with their labels (k,) and weights (k,)."""
        target = torch.from_numpy(self.labels[rows]), torch.from_numpy(self.weights[rows])
        return self.states.take(rows), target

    def shuffled(self, batch_size: int, generator: torch.Generator) -> list[Rows]:
        """Row numbers of one epoch's batches: the blocks in random order, and the rows of each block in random order.

        A batch reads only one or two blocks, so data larger than memory stays on disk. With a single block, all rows
        are in random order.

        Args:
            batch_size: Rows per batch.
            generator: Source of randomness.
        """
        blocks = np.split(self.rows, np.searchsorted(self.rows, self.states.block_starts[1:]))
        order = torch.randperm(len(blocks), generator=generator).tolist()
        shuffled = [blocks[i][torch.randperm(len(blocks[i]), generator=generator).numpy()] for i in order]
        return _cut(np.concatenate(shuffled), batch_size)

    def in_order(self, batch_size: int) -> list[Rows]:
        """Row numbers of batches in the order of the data."""
        return _cut(self.rows, batch_size)

    def chunks(self, rows: int) -> Iterator[Tensor]:
        """All states of the subset in order, `rows` at a time."""
        for numbers in self.in_order(rows):
            yield self.states.take(numbers)


def _cut(rows: Rows, size: int) -> list[Rows]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _in_float(batch: NDArray[Any]) -> NDArray[Any]:
    if batch.dtype in (np.float16, np.float32):
        return batch
    with np.errstate(over="ignore"):  # values out of range become infinite; `take` reports their row
        return batch.astype(np.float32)


def _is_memory_map(array: Any) -> bool:
    while array is not None:
        if isinstance(array, np.memmap | mmap.mmap):
            return True
        array = getattr(array, "base", None)
    return False
