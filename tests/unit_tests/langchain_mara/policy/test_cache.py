"""The ragged cache: what is committed is visible, and nothing else ever is."""

import torch

from langchain_mara.policy.cache import GROWTH_SLOTS, RaggedCache


def states(batch: int, tokens: int, value: float) -> torch.Tensor:
    return torch.full((batch, 2, tokens, 3), value)


def write(cache: RaggedCache, row: int, slots: list[int], value: float) -> tuple[torch.Tensor, torch.Tensor]:
    rows, columns = torch.tensor([row] * len(slots)), torch.tensor(slots)
    cache.reserve(row + 1, max(slots) + 1)
    cache.begin_pass(cache.flat(rows, columns), (row, row + 1, max(slots) + 1))
    return cache.update(states(1, len(slots), value), states(1, len(slots), -value), 0)


def make() -> RaggedCache:
    return RaggedCache(layers=1, device=torch.device("cpu"))


def test_reads_back_what_was_written() -> None:
    cache = make()
    write(cache, 0, [0, 1], 1.0)
    keys, values = write(cache, 0, [2], 2.0)
    assert keys[0, 0, :, 0].tolist() == [1.0, 1.0, 2.0]
    assert values[0, 1, :, 2].tolist() == [-1.0, -1.0, -2.0]


def test_slots_are_invisible_until_committed() -> None:
    cache = make()
    write(cache, 0, [0, 1, 2], 1.0)
    assert cache.positions[0, :3].tolist() == [-1, -1, -1]
    cache.commit([(0, 2, 0)])
    assert cache.positions[0, :3].tolist() == [-1, -1, 0]


def test_growth_keeps_the_contents_and_is_in_blocks() -> None:
    cache = make()
    write(cache, 0, [0], 1.0)
    capacity = cache.positions.shape[1]
    assert capacity == 1 + GROWTH_SLOTS
    keys, _ = write(cache, 0, [capacity], 2.0)
    assert cache.positions.shape[1] == capacity + 1 + GROWTH_SLOTS
    assert keys[0, 0, [0, capacity], 0].tolist() == [1.0, 2.0]


def test_moving_a_row_takes_keys_values_and_positions() -> None:
    cache = make()
    write(cache, 0, [0], 1.0)
    write(cache, 1, [0, 1], 2.0)
    cache.commit([(1, 0, 0), (1, 1, 1)])
    cache.move_row(1, 0, 2)
    keys, values = write(cache, 0, [2], 3.0)
    assert keys[0, 0, :, 0].tolist() == [2.0, 2.0, 3.0]
    assert values[0, 0, :, 0].tolist() == [-2.0, -2.0, -3.0]
    assert cache.positions[0, :3].tolist() == [0, 1, -1]
    assert (cache.positions[1] == -1).all()


def test_nonfinite_states_are_not_stored() -> None:
    cache = make()
    keys, values = write(cache, 0, [0], float("nan"))
    assert keys.isfinite().all()
    assert values.isfinite().all()
    assert write(cache, 0, [1], float("inf"))[0].isfinite().all()
