"""The list of shards: what is listed is what was written, and nothing else is a shard."""

from pathlib import Path

import pytest
import torch
from langchain_mara_training.labeling.shard_list import LIST_NAME, close_list, is_intact, read_list, write_shard

from langchain_mara.exceptions import DataError


def columns(value: float) -> dict[str, torch.Tensor]:
    return {"states": torch.full((2, 3), value)}


def test_shards_are_listed_as_they_are_written(tmp_path: Path) -> None:
    for number in (3, 0, 3):
        write_shard(tmp_path, number, columns(number))
    listed = read_list(tmp_path)
    assert sorted(listed) == [0, 3]
    assert all(is_intact(tmp_path, shard) for shard in listed.values())
    close_list(tmp_path)
    assert list(read_list(tmp_path).items()) == sorted(listed.items())
    assert {file.name for file in tmp_path.iterdir()} == {
        LIST_NAME, "shard-00000.safetensors", "shard-00003.safetensors",
    }  # fmt: skip


def test_size_and_digest_are_checked(tmp_path: Path) -> None:
    write_shard(tmp_path, 0, columns(1))
    shard = read_list(tmp_path)[0]
    file = tmp_path / shard.file
    intact = file.read_bytes()
    for content in (intact[:-1], intact + b"x", intact[:-1] + b"x"):
        file.write_bytes(content)
        assert not is_intact(tmp_path, shard)
    file.unlink()
    assert not is_intact(tmp_path, shard)


def test_half_a_line_is_no_shard_and_a_damaged_line_is_an_error(tmp_path: Path) -> None:
    write_shard(tmp_path, 0, columns(0))
    file = tmp_path / LIST_NAME
    line = file.read_bytes()
    file.write_bytes(line + line[:40])
    assert list(read_list(tmp_path)) == [0]
    write_shard(tmp_path, 1, columns(1))
    assert list(read_list(tmp_path)) == [0, 1]
    file.write_bytes(line.replace(b'"size": ', b'"size": 1'))
    with pytest.raises(DataError, match=r"shards.jsonl, line 1 is damaged.*Delete this file and the shards"):
        read_list(tmp_path)


def test_no_list_no_shards(tmp_path: Path) -> None:
    assert read_list(tmp_path) == {}
