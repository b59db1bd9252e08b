"""The replay buffer: a ring of states on disk, each stored once, from which transitions are drawn.

Episodes are written whole, so the next state of a row is the row after it. At the end of an episode nothing is read.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from langchain_mara.exceptions import CheckpointError, OptionsError, TrainingError
from langchain_mara_training.reinforcement.actor_critic import Transitions

_COLUMNS = {"actions": np.int8, "rewards": np.float32, "done": np.bool_}
_LARGEST = float(np.finfo(np.float16).max)


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
        self._states: NDArray[np.float16] = self._map("states", np.float16, (self._rows, hidden_size))
        self._columns = {name: self._map(name, dtype, (self._rows,)) for name, dtype in _COLUMNS.items()}
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
            TrainingError: If there is no room before the next checkpoint, or a number is not finite.
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
        rows = (self._written + np.arange(count)) % self._rows
        self._states[rows] = states.float().clamp(-_LARGEST, _LARGEST).to("cpu", torch.float16).numpy()
        self._columns["actions"][rows] = actions.cpu().numpy()
        self._columns["rewards"][rows] = rewards.float().cpu().numpy()
        self._columns["done"][rows] = np.arange(count) == count - 1
        self._written += count

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

    def state_dict(self) -> dict[str, int]:
        """State for a checkpoint. The rows it needs are on disk when this returns."""
        for array in (self._states, *self._columns.values()):
            if isinstance(array, np.memmap):
                array.flush()
        self._kept = self._written
        return {"written": self._written}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Returns to a checkpoint after which at most `slack` rows were added."""
        self._written = self._kept = int(state["written"])

    def _map(self, name: str, dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
        file = self.folder / f"{name}.npy"
        if not file.exists():
            return np.lib.format.open_memmap(file, "w+", dtype, shape)
        try:
            array: NDArray[Any] = np.lib.format.open_memmap(file, "r+")
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
