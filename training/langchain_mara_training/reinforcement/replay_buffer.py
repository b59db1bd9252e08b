"""The replay buffer: a ring of states on disk, each stored once, from which transitions are drawn.

A state's successor is the row behind it, since episodes are written whole; where one ends nothing is looked up.
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
    """The last transitions of training, in memory maps of a folder; states in float16.

    A checkpoint is `state_dict()` alone: the rows stay where they are. Behind it `slack` rows can be added before
    the next one without overwriting what it counts on, so that going on from a checkpoint is exact.

    Args:
        folder: Made if it is missing; a buffer that is there is used further.
        hidden_size: d of a state. A row takes 2 d + 6 bytes.
        capacity: Most transitions to draw from; the oldest give way.
        slack: Most rows to add between two checkpoints, at least those of one episode.

    Raises:
        OptionsError: If a size is below 1.
        TrainingError: If the folder holds a buffer of other sizes.
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
        self._columns = {name: self._map(name, kind, (self._rows,)) for name, kind in _COLUMNS.items()}
        self._written = self._kept = 0

    def __len__(self) -> int:
        """Transitions that can be drawn."""
        return min(self._written, self.capacity)

    @property
    def room(self) -> int:
        """Rows that may still be added before the next checkpoint."""
        return self.slack - (self._written - self._kept)

    def add_episode(self, states: Tensor, actions: Tensor, rewards: Tensor) -> None:
        """Adds a whole episode; its last transition is its end.

        Args:
            states: (n, d) float, finite; beyond float16 they are cut to its largest number.
            actions: (n,) 0 or 1.
            rewards: (n,) float.

        Raises:
            TrainingError: If there is no room before the next checkpoint, or a number is not finite.
        """
        count = len(actions)
        if count == 0:
            return
        if count > self.room:
            raise TrainingError(
                f"An episode of {count} transitions does not fit into the {self.room} rows that are left until the "
                f"next checkpoint. Take a checkpoint first, or give a slack above {self.slack}."
            )
        if not (states.isfinite().all() and rewards.isfinite().all()):
            raise TrainingError("An episode holds numbers that are not finite. Leave it out.")
        rows = (self._written + np.arange(count)) % self._rows
        self._states[rows] = states.float().clamp(-_LARGEST, _LARGEST).to("cpu", torch.float16).numpy()
        self._columns["actions"][rows] = actions.cpu().numpy()
        self._columns["rewards"][rows] = rewards.float().cpu().numpy()
        self._columns["done"][rows] = np.arange(count) == count - 1
        self._written += count

    def sample(self, count: int, draw: np.random.Generator) -> Transitions:
        """Draws transitions with replacement, all equally likely.

        Args:
            count: How many.
            draw: Source of randomness.

        Returns:
            Tensors on the CPU, states in float16; where an episode ends, the next state is zero.

        Raises:
            TrainingError: If the buffer is empty.
        """
        if not len(self):
            raise TrainingError("The replay buffer is empty. Add an episode first.")
        rows = (self._written - len(self) + draw.integers(len(self), size=count)) % self._rows
        done = self._columns["done"][rows]
        following = self._states[(rows + 1) % self._rows]
        # Behind the last episode stand rows of long ago, or none.
        following[done] = 0
        return Transitions(
            torch.from_numpy(self._states[rows]),
            torch.from_numpy(self._columns["actions"][rows].astype(np.int64)),
            torch.from_numpy(self._columns["rewards"][rows]),
            torch.from_numpy(following),
            torch.from_numpy(done),
        )

    def state_dict(self) -> dict[str, int]:
        """What a checkpoint keeps; the rows it counts on are on disk when it returns."""
        for array in (self._states, *self._columns.values()):
            if isinstance(array, np.memmap):
                array.flush()
        self._kept = self._written
        return {"written": self._written}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes back to a checkpoint, from which no more than `slack` rows were added since."""
        self._written = self._kept = int(state["written"])

    def _map(self, name: str, kind: Any, shape: tuple[int, ...]) -> NDArray[Any]:
        file = self.folder / f"{name}.npy"
        if not file.exists():
            return np.lib.format.open_memmap(file, "w+", kind, shape)
        try:
            array: NDArray[Any] = np.lib.format.open_memmap(file, "r+")
        except (ValueError, OSError) as error:
            raise CheckpointError(
                f"{file} is corrupt ({error}). Delete the folder {self.folder} to start anew."
            ) from None
        if array.shape != shape or array.dtype != kind:
            raise TrainingError(
                f"{file} holds {array.shape} {array.dtype}, not {shape} {np.dtype(kind)}: a buffer of other sizes. "
                "Give another folder, or the sizes it began with."
            )
        return array
