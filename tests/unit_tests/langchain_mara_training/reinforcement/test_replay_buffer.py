"""The replay buffer: what is drawn is what was added, through seams, ends, and kills."""

from pathlib import Path

import numpy as np
import pytest
import torch
from langchain_mara_training.reinforcement.replay_buffer import ReplayBuffer
from torch import Tensor

from langchain_mara.exceptions import CheckpointError, OptionsError, TrainingError

Episode = tuple[Tensor, Tensor, Tensor]


def episode(number: int, count: int) -> Episode:
    """States (number, step), so that every row says where it comes from."""
    states = torch.stack([torch.full((count,), float(number)), torch.arange(float(count))], 1)
    return states, torch.arange(count) % 2, number + torch.arange(float(count)) / 100


def expected(episodes: dict[int, Episode], capacity: int) -> set[tuple[float, ...]]:
    """The last transitions: state, action, reward, next state or zero, done."""
    rows = []
    for states, actions, rewards in episodes.values():
        for i in range(len(actions)):
            done = i == len(actions) - 1
            following = torch.zeros(2) if done else states[i + 1]
            rows.append((*states[i].tolist(), int(actions[i]), float(rewards[i]), *following.tolist(), done))
    return set(rows[-capacity:])


def drawn(buffer: ReplayBuffer, seed: int = 0) -> set[tuple[float, ...]]:
    batch = buffer.sample(4000, np.random.default_rng(seed))
    columns = [batch.states.tolist(), batch.actions.tolist(), batch.rewards.tolist(), batch.next_states.tolist()]
    return {(*s, a, r, *n, d) for s, a, r, n, d in zip(*columns, batch.done.tolist(), strict=True)}


def test_what_is_drawn_is_what_was_added_last(tmp_path: Path) -> None:
    buffer, episodes = ReplayBuffer(tmp_path, 2, capacity=20, slack=9), {}
    lengths = [3, 1, 7, 5, 9, 2, 8, 4, 9, 9, 6, 1, 5]
    for number, count in enumerate(lengths):
        episodes[number] = episode(number, count)
        if count > buffer.room:
            buffer.state_dict()
        buffer.add_episode(*episodes[number])
        assert len(buffer) == min(20, sum(lengths[: number + 1]))
        assert drawn(buffer) == expected(episodes, 20)
    batch = buffer.sample(50, np.random.default_rng(1))
    assert batch.states.dtype is batch.next_states.dtype is torch.float16
    again = buffer.sample(50, np.random.default_rng(1))
    assert all(torch.equal(left, right) for left, right in zip(batch, again, strict=True))


def test_all_transitions_are_equally_likely(tmp_path: Path) -> None:
    buffer = ReplayBuffer(tmp_path, 2, capacity=10, slack=10)
    for number in range(3):
        buffer.add_episode(*episode(number, 5))
        buffer.state_dict()
    batch = buffer.sample(20000, np.random.default_rng(0))
    _, counts = np.unique((batch.states[:, 0] * 10 + batch.states[:, 1]).numpy(), return_counts=True)
    assert len(counts) == 10
    # Five standard deviations of 2000 expected.
    assert abs(counts - 2000).max() < 5 * np.sqrt(20000 * 0.1 * 0.9)


def test_going_back_to_a_checkpoint_is_exact_though_rows_were_added(tmp_path: Path) -> None:
    buffer, episodes = ReplayBuffer(tmp_path, 2, capacity=12, slack=8), {}
    for number in range(5):
        episodes[number] = episode(number, 4)
        kept = buffer.state_dict()
        buffer.add_episode(*episodes[number])
    kept, known = buffer.state_dict(), drawn(buffer)
    for number in (77, 78):
        buffer.add_episode(*episode(number, 4))
    assert drawn(buffer) != known
    # Another process finds the same files.
    reopened = ReplayBuffer(tmp_path, 2, capacity=12, slack=8)
    reopened.load_state_dict(kept)
    assert drawn(reopened) == known == expected(episodes, 12)
    assert reopened.room == 8


def test_room_ends_at_the_slack(tmp_path: Path) -> None:
    buffer = ReplayBuffer(tmp_path, 2, capacity=4, slack=6)
    buffer.add_episode(*episode(0, 4))
    assert buffer.room == 2
    with pytest.raises(TrainingError, match="3 transitions does not fit into the 2 rows.*Take a checkpoint"):
        buffer.add_episode(*episode(1, 3))
    assert drawn(buffer) == expected({0: episode(0, 4)}, 4)
    buffer.add_episode(*episode(2, 0))
    assert len(buffer) == 4


def test_large_states_are_cut_and_broken_ones_refused(tmp_path: Path) -> None:
    buffer = ReplayBuffer(tmp_path, 2, capacity=4, slack=4)
    states, actions, rewards = episode(0, 1)
    buffer.add_episode(torch.tensor([[1e6, -1e6]]), actions, rewards)
    assert buffer.sample(1, np.random.default_rng(0)).states.tolist() == [[65504.0, -65504.0]]
    for broken in ((states * torch.nan, actions, rewards), (states, actions, rewards - torch.inf)):
        with pytest.raises(TrainingError, match="not finite"):
            buffer.add_episode(*broken)


def test_other_sizes_and_corrupt_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionsError, match="capacity=0"):
        ReplayBuffer(tmp_path / "none", 2, 0, 1)
    with pytest.raises(TrainingError, match="is empty"):
        ReplayBuffer(tmp_path, 2, 3, 1).sample(1, np.random.default_rng(0))
    with pytest.raises(TrainingError, match=r"holds \(4, 2\) float16, not \(9, 2\)"):
        ReplayBuffer(tmp_path, 2, 8, 1)
    (tmp_path / "done.npy").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="done.npy is corrupt"):
        ReplayBuffer(tmp_path, 2, 3, 1)
