"""States in shards are indexed like one array."""

import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from langchain_mara_training.labeling.shard_list import SHARD_NAME, write_shard
from langchain_mara_training.labeling.token_labels import LabeledTokens, ShardedStates, TokenLabels

from langchain_mara.exceptions import DataError

ROWS = [3, 0, 4, 1, 2, 5]
STATES = np.arange(15 * 4, dtype=np.float16).reshape(15, 4)


def shard(states: Any, first: int = 0) -> LabeledTokens:
    count = len(states)
    rows = torch.arange(first, first + count)
    return LabeledTokens(
        torch.from_numpy(np.ascontiguousarray(states)),
        (rows % 2).to(torch.int8),
        rows / 10,
        (rows // 2).int(),
        (rows + 100).int(),
        rows.int(),
        (rows % 3).short(),
        (rows // 4).int(),
        (rows % 4).int(),
    )


def write(folder: Path, states: Any = STATES, rows: list[int] = ROWS) -> Path:
    folder.mkdir()
    bounds = np.cumsum([0, *rows]).tolist()
    for number, (start, end) in enumerate(pairwise(bounds)):
        write_shard(folder, number, shard(states[start:end], start)._asdict())
    return folder


@pytest.fixture
def sharded(tmp_path: Path) -> ShardedStates:
    labels = TokenLabels.load(write(tmp_path / "labels"))
    assert isinstance(labels.X, ShardedStates)
    return labels.X


@pytest.mark.parametrize(
    "key",
    [
        0,
        -1,
        np.int64(7),
        slice(None),
        slice(2, 12, 3),
        slice(None, None, -2),
        slice(5, 5),
        [14, 0, 0, 7],
        np.array([-1, 3]),
        np.arange(15) % 4 == 1,
        (3, 2),
        ([1, 8], slice(1, 3)),
        (slice(2, 9), 0),
    ],
    ids=str,
)
def test_indexing_is_numpys(sharded: ShardedStates, key: Any) -> None:
    found = sharded[key]
    np.testing.assert_array_equal(found, STATES[key])
    assert found.dtype == np.float16


def test_a_replaced_shard_is_read_again_although_its_time_is_the_same(tmp_path: Path) -> None:
    """It was once read from the mapping of the old file."""
    folder = write(tmp_path / "labels")
    np.testing.assert_array_equal(np.asarray(TokenLabels.load(folder).X), STATES)
    file = folder / SHARD_NAME.format(2)
    times = file.stat()
    file.unlink()
    write_shard(folder, 2, shard(STATES[3:7] + 1, 3)._asdict())
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    np.testing.assert_array_equal(np.asarray(TokenLabels.load(folder).X[3:7]), STATES[3:7] + 1)


def test_as_an_array(sharded: ShardedStates) -> None:
    np.testing.assert_array_equal(np.asarray(sharded), STATES)
    assert np.asarray(sharded, np.float32).dtype == np.float32
    assert (sharded.shape, len(sharded), sharded.ndim, sharded.dtype) == ((15, 4), 15, 2, np.float16)
    assert sharded.shard_starts == [0, 3, 3, 7, 8, 10]
    with pytest.raises(ValueError, match="only be copied"):
        np.array(sharded, copy=False)


@pytest.mark.parametrize("key", [15, -16, [0, 15]])
def test_rows_that_are_not_there(sharded: ShardedStates, key: Any) -> None:
    with pytest.raises(IndexError, match="0 to 14"):
        sharded[key]


def test_columns_of_labels(tmp_path: Path) -> None:
    labels = TokenLabels.load(write(tmp_path / "labels"))
    X, y, weight, groups = labels  # noqa: N806
    assert X is labels.X
    rows = np.arange(15)
    for found, expected in (
        (y, rows % 2),
        (groups, rows // 2),
        (labels.token_ids, rows + 100),
        (labels.positions, rows),
        (labels.ranks, rows % 3),
    ):
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == np.int64
    np.testing.assert_allclose(weight, rows / 10, rtol=1e-6)
    assert weight.dtype == np.float32
    assert len(labels) == 15


def test_union(tmp_path: Path) -> None:
    on_disk = TokenLabels.load(write(tmp_path / "one")), TokenLabels.load(write(tmp_path / "two", STATES + 1))
    in_memory = TokenLabels.of([shard(STATES + 1)])
    for other in (on_disk[1], in_memory):
        both = on_disk[0] + other
        np.testing.assert_array_equal(np.asarray(both.X), np.concatenate([STATES, STATES + 1]))
        assert both.positions.tolist() == [*range(15)] * 2
        assert both.pairs.tolist() == [row // 4 for row in range(15)] + [4 + row // 4 for row in range(15)]
        assert isinstance(both.X, ShardedStates) is (other is not in_memory)


@pytest.mark.parametrize("length", [0, 5, 100, -3])
def test_truncated_shards(tmp_path: Path, length: int) -> None:
    file = write(tmp_path / "labels") / SHARD_NAME.format(2)
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(DataError, match=r"shard-00002.* is missing or damaged.*Run the labeler again"):
        TokenLabels.load(tmp_path / "labels")
    with pytest.raises(DataError, match=r"shard-00002.*Delete it and run the labeler again"):
        TokenLabels.of_files([file])


def test_other_refusals(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="lists no shards in shards.jsonl"):
        TokenLabels.load(tmp_path)
    folder = write(tmp_path / "float32", STATES.astype(np.float32))
    with pytest.raises(DataError, match="not float16"):
        TokenLabels.load(folder)
    write_shard(write(tmp_path / "mixed"), 6, shard(STATES[:, :3])._asdict())
    with pytest.raises(DataError, match=r"sizes: \[3, 4\]"):
        TokenLabels.load(tmp_path / "mixed")
    with pytest.raises(DataError, match="No token got a label"):
        TokenLabels.of([shard(STATES[:0])])
