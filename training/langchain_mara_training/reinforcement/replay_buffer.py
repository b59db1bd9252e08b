"""The replay buffer: a ring of states on disk, each stored once, from which transitions are drawn.

Episodes are written whole, so the next state of a row is the row after it. At the end of an episode nothing is read.

Disk blocks are reserved before rows are written to them: a full disk is an error with a message, where writing to a
memory map without blocks would end the process. Each row has a checksum in memory, and a checkpoint holds a digest of
the checksums of the rows it needs. So a file that was lost, cut, exchanged or damaged is noticed when training resumes.
"""

import hashlib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from langchain_mara.exceptions import CheckpointError, OptionsError, TrainingError
from langchain_mara_training.reinforcement.actor_critic import Transitions
from langchain_mara_training.storage.atomic import explained

_COLUMNS = {"actions": np.int8, "rewards": np.float32, "done": np.bool_}
_LARGEST = float(np.finfo(np.float16).max)
_RESERVED_BYTES = 2**24  # reserved at a time, so that small episodes do not ask for blocks one by one
_CHECKED_ROWS = 4096  # checked at a time when training resumes


class ReplayBuffer:
    """The latest transitions of training, in memory-mapped files of a folder; states are float16.

    A checkpoint consists of `state_dict()` alone; the rows stay in their files. After a checkpoint, up to `slack` rows
    can be added without overwriting a row it needs, so training resumes from it exactly.

    Args:
        folder: Folder of the files. It is created if missing; a buffer it already holds is reused.
        hidden_size: Size d of a state. A row takes 2 d + 6 bytes.
        capacity: Largest number of transitions to draw from; the oldest are overwritten.
        slack: Largest number of rows added between two checkpoints; at least the rows of one episode.

    Raises:
        OptionsError: If a size is below 1.
        TrainingError: If the folder holds a buffer of other sizes.
        CheckpointError: If a file is corrupt.
    """

    def __init__(self, folder: str | Path, hidden_size: int, capacity: int, slack: int) -> None:
        if min(hidden_size, capacity, slack) < 1:
            raise OptionsError(
                f"hidden_size={hidden_size}, capacity={capacity} and slack={slack} must all be at least 1."
            )
        self.folder = Path(folder).expanduser()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.capacity, self.slack = capacity, slack
        self._rows = capacity + slack
        self._new_files: list[Path] = []
        self._reserved: dict[str, int] = {}
        self._states: NDArray[np.float16] = self._map("states", np.float16, (self._rows, hidden_size))
        self._columns = {name: self._map(name, dtype, (self._rows,)) for name, dtype in _COLUMNS.items()}
        self._checksums = np.zeros(self._rows, np.uint64)
        self._factors = _odd_numbers(-(-2 * hidden_size // 8))
        self._written = self._kept = 0

    def __len__(self) -> int:
        """Number of transitions that can be drawn."""
        return min(self._written, self.capacity)

    @property
    def room(self) -> int:
        """Number of rows that can still be added before the next checkpoint."""
        return self.slack - (self._written - self._kept)

    def add_episode(self, states: Tensor, actions: Tensor, rewards: Tensor) -> None:
        """Adds a whole episode; its last transition ends it.

        Args:
            states: (n, d) float, finite; values outside float16's range are clamped to it.
            actions: (n,), 0 or 1.
            rewards: (n,) float, finite.

        Raises:
            TrainingError: If there is no room before the next checkpoint, a number is not finite, or the disk is full.
        """
        count = len(actions)
        if count == 0:
            return
        if count > self.room:
            raise TrainingError(
                f"An episode of {count} transitions does not fit into the {self.room} rows left before the next "
                f"checkpoint. Take a checkpoint first, or set slack above {self.slack}."
            )
        if not (states.isfinite().all() and rewards.isfinite().all()):
            raise TrainingError("An episode holds numbers that are not finite. Skip this episode.")
        numbers = self._written + np.arange(count)
        rows = numbers % self._rows
        for array in (self._states, *self._columns.values()):
            self._reserve(array, int(rows.max()) + 1)
        self._states[rows] = states.float().clamp(-_LARGEST, _LARGEST).to("cpu", torch.float16).numpy()
        self._columns["actions"][rows] = actions.cpu().numpy()
        self._columns["rewards"][rows] = rewards.float().cpu().numpy()
        self._columns["done"][rows] = np.arange(count) == count - 1
        self._checksums[rows] = self._checksums_of(numbers)
        self._written += count

    def copy(self, folder: str | Path) -> "ReplayBuffer":
        """A buffer with the same transitions in files of another folder; only the rows that can be drawn are copied.

        Args:
            folder: Folder of the copy; it must not hold a buffer.
        """
        other = ReplayBuffer(folder, self._states.shape[1], self.capacity, self.slack)
        for start in range(0, len(self), _CHECKED_ROWS):
            rows = self._needed()[start : start + _CHECKED_ROWS] % self._rows
            sources = (self._states, *self._columns.values())
            for source, target in zip(sources, (other._states, *other._columns.values()), strict=True):
                other._reserve(target, int(rows.max()) + 1)
                target[rows] = source[rows]
        other._checksums[:] = self._checksums
        other._written = other._kept = self._written
        return other

    def sample(self, count: int, generator: np.random.Generator) -> Transitions:
        """Draws transitions with replacement, all equally likely.

        Args:
            count: Number of transitions.
            generator: Source of randomness.

        Returns:
            Tensors on the CPU, states in float16; the next state is zero where an episode ends.

        Raises:
            TrainingError: If the buffer is empty.
        """
        if not len(self):
            raise TrainingError("The replay buffer is empty. Add an episode first.")
        rows = (self._written - len(self) + generator.integers(len(self), size=count)) % self._rows
        done = self._columns["done"][rows]
        next_states = self._states[(rows + 1) % self._rows]
        # The row after the latest episode is outdated or was never written.
        next_states[done] = 0
        return Transitions(
            torch.from_numpy(self._states[rows]),
            torch.from_numpy(self._columns["actions"][rows].astype(np.int64)),
            torch.from_numpy(self._columns["rewards"][rows]),
            torch.from_numpy(next_states),
            torch.from_numpy(done),
        )

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint: the number of rows written so far, and a digest of those it needs.

        The rows it needs are on disk when this returns.
        """
        for array in (self._states, *self._columns.values()):
            if isinstance(array, np.memmap):
                array.flush()
        self._kept = self._written
        return {"written": self._written, "digest": self._digest(self._needed())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Returns to a checkpoint after which at most `slack` rows were added.

        Raises:
            CheckpointError: If a file is missing, or does not hold the rows of the checkpoint.
        """
        written, before = int(state["written"]), self._written
        if written and self._new_files:
            for file in self._new_files:
                file.unlink(missing_ok=True)
            self._refuse(f"{self._new_files[0]} is missing")
        self._written = written
        needed = self._needed()
        for start in range(0, written and len(needed), _CHECKED_ROWS):
            numbers = needed[start : start + _CHECKED_ROWS]
            self._checksums[numbers % self._rows] = self._checksums_of(numbers)
        if self._digest(needed) != state.get("digest"):
            self._written = before
            self._refuse(f"The files in {self.folder} do not hold the transitions of the checkpoint")
        self._kept = written

    def _needed(self) -> NDArray[np.int64]:
        """Numbers of the rows that can be drawn, counted from the first row ever written."""
        return np.arange(self._written - len(self), self._written)

    def _digest(self, numbers: NDArray[np.int64]) -> str:
        return hashlib.sha256(self._checksums[numbers % self._rows].tobytes()).hexdigest()

    def _checksums_of(self, numbers: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Checksums of rows; with odd factors, any single damaged byte changes its row's checksum."""
        rows = numbers % self._rows
        words = np.zeros((len(rows), len(self._factors)), np.uint64)
        states = np.ascontiguousarray(self._states[rows])
        words.view(np.uint8).reshape(len(rows), -1)[:, : states.shape[1] * 2] = states.view(np.uint8)
        actions, done = (self._columns[name][rows].view(np.uint8).astype(np.uint64) for name in ("actions", "done"))
        others = self._columns["rewards"][rows].view(np.uint32).astype(np.uint64) << 16 | actions << 8 | done
        # Unsigned sums wrap around. The row's number tells it from an older row in the same place.
        sums: NDArray[np.uint64] = (words * self._factors).sum(1, dtype=np.uint64)
        sums += others * _odd_numbers(2)[0] + (numbers.astype(np.uint64) + 1) * _odd_numbers(2)[1]
        return sums

    def _refuse(self, what: str) -> NoReturn:
        raise CheckpointError(
            f"{what}, so training cannot resume. Put the files back, or delete the checkpoint and the buffer to start "
            "over."
        )

    def _create(self, file: Path, dtype: Any, shape: tuple[int, ...]) -> None:
        """Creates a file of zeros, completely or not at all."""
        temporary = file.with_suffix(".tmp")
        try:
            with explained(file, math.prod(shape) * np.dtype(dtype).itemsize):
                np.lib.format.open_memmap(temporary, "w+", dtype, shape)
                temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)

    def _reserve(self, array: NDArray[Any], rows: int) -> None:
        """Makes sure that the first rows of a file have blocks on the disk."""
        if not isinstance(array, np.memmap) or not hasattr(os, "posix_fallocate"):
            return
        file = Path(str(array.filename))
        end = array.offset + rows * array.strides[0]
        start = self._reserved.get(file.name, 0)
        if end <= start:
            return
        size = min(end + _RESERVED_BYTES, array.offset + array.nbytes) - start
        with explained(file, size), file.open("r+b") as stream:
            os.posix_fallocate(stream.fileno(), start, size)
        self._reserved[file.name] = start + size

    def _map(self, name: str, dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
        file = self.folder / f"{name}.npy"
        if not file.exists():
            self._new_files.append(file)
            self._create(file, dtype, shape)
        try:
            # numpy would fill up a file that was cut, with zeros.
            array: NDArray[Any] = np.lib.format.open_memmap(file, "r")
            array = np.lib.format.open_memmap(file, "r+")
        except (ValueError, OSError) as error:
            raise CheckpointError(
                f"{file} is corrupt ({error}). Delete the folder {self.folder} to start over."
            ) from None
        if array.shape != shape or array.dtype != dtype:
            raise TrainingError(
                f"{file} holds {array.shape} {array.dtype}, not {shape} {np.dtype(dtype)}: it belongs to a buffer of "
                "other sizes. Use another folder, or the original sizes."
            )
        return array


def _odd_numbers(count: int) -> NDArray[np.uint64]:
    """The same random odd numbers in every process."""
    drawn = np.random.default_rng(0).integers(2**64, size=count, dtype=np.uint64)
    odd: NDArray[np.uint64] = drawn | np.uint64(1)
    return odd
