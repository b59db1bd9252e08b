"""Shards are computed once, whole or not at all, and the same by whoever computes them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from langchain_mara_training.labeling.shards import MANIFEST_NAME, label_shards
from langchain_mara_training.labeling.token_labels import LabeledTokens, TokenLabels
from langchain_mara_training.storage.atomic import write_atomically

from langchain_mara.exceptions import TrainingError

JOBS = [5, 0, 7, 3]


def compute(job: int) -> LabeledTokens:
    rows = torch.arange(job)
    states = rows[:, None].half() * torch.ones(2, dtype=torch.float16)
    others = (rows.to(torch.int8) % 2, rows.float(), *[rows.int()] * 3, rows.short(), *[rows.int()] * 2)
    return LabeledTokens(states, *others)


def run(output: Path | None, function: Any = compute, seed: int = 0, **identity: Any) -> TokenLabels:
    given = {"labeler": "test", **identity}
    return label_shards(
        JOBS, function, sizes=JOBS, identity=lambda: given, output=output, seed=seed, description="testing"
    )


def content_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_on_disk_as_in_memory(tmp_path: Path) -> None:
    on_disk, in_memory = run(tmp_path), run(None)
    np.testing.assert_array_equal(np.asarray(on_disk.X), in_memory.X)
    assert on_disk.groups.tolist() == in_memory.groups.tolist()
    assert sorted(in_memory.groups[:5].tolist()) == [0, 1, 2, 3, 4]
    assert len(on_disk) == sum(JOBS)


def test_rows_are_shuffled_by_the_seed() -> None:
    one, same, other = run(None), run(None), run(None, seed=1)
    assert one.groups.tolist() == same.groups.tolist() != other.groups.tolist()
    assert one.groups.tolist() != [row for job in JOBS for row in range(job)]
    # A row stays together.
    assert one.X[:, 0].tolist() == one.groups.tolist() == one.weight.tolist()


def test_goes_on_at_the_next_missing_shard(tmp_path: Path) -> None:
    run(tmp_path / "whole")
    done: list[int] = []

    def killed(job: int) -> LabeledTokens:
        if job == 7 and done.count(7) == 0:
            done.append(job)
            raise KeyboardInterrupt
        done.append(job)
        return compute(job)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "resumed", killed)
    run(tmp_path / "resumed", killed)
    assert done == [5, 0, 7, 7, 3]
    assert content_of(tmp_path / "resumed") == content_of(tmp_path / "whole")


def test_other_labels_are_refused(tmp_path: Path) -> None:
    run(tmp_path)
    before = content_of(tmp_path)
    with pytest.raises(
        TrainingError,
        match=r'another job; different: labeler \("test" there, "other" now\), seed \(0 there, 1 now\). Give another',
    ):
        run(tmp_path, seed=1, labeler="other")
    assert content_of(tmp_path) == before


@pytest.mark.parametrize(
    ("content", "said"), [("{", "labels.json is missing or damaged"), (None, "holds results, but")]
)
def test_shards_without_a_whole_manifest_are_refused(tmp_path: Path, content: str | None, said: str) -> None:
    run(tmp_path)
    (tmp_path / MANIFEST_NAME).unlink()
    if content is not None:
        (tmp_path / MANIFEST_NAME).write_text(content)
    before = content_of(tmp_path)
    with pytest.raises(TrainingError, match=f"{said}.* [Gg]ive another folder"):
        run(tmp_path)
    assert content_of(tmp_path) == before


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    write_atomically(file, b"old")

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(file, b"new")
    assert file.read_bytes() == b"old"


def test_processes_that_do_not_know_of_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainingError, match="2 processes were started, but accelerate knows of 1. On a CPU"):
        run(None)
