"""Shards are computed once, whole or not at all, and the same by whoever computes them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from langchain_mara_training.engines.blocks import InProcess
from langchain_mara_training.labeling.shard_list import MANIFEST_NAME
from langchain_mara_training.labeling.shards import label_shards
from langchain_mara_training.labeling.token_labels import LabeledTokens, TokenLabels
from langchain_mara_training.storage.atomic import write_atomically
from langchain_mara_training.storage.callbacks import JobCallback, JobProgress

from langchain_mara.exceptions import OptionsError, TrainingError

JOBS = [5, 0, 7, 3]


def compute(job: int) -> LabeledTokens:
    rows = torch.arange(job)
    states = rows[:, None].half() * torch.ones(2, dtype=torch.float16)
    others = (rows.to(torch.int8) % 2, rows.float(), *[rows.int()] * 3, rows.short(), *[rows.int()] * 2)
    return LabeledTokens(states, *others)


def run(
    output: Path | None, function: Any = compute, seed: int = 0, callbacks: Any = (), **identity: Any
) -> TokenLabels:
    given = {"labeler": "test", **identity}
    return label_shards(
        JOBS,
        int,
        InProcess(SimpleNamespace(compute=function)),
        sizes=JOBS,
        identity=lambda: given,
        output=output,
        seed=seed,
        description="testing",
        callbacks=callbacks,
    )


class Watch(JobCallback):
    """Notes events, and stops the job after a number of shards."""

    def __init__(self, last: int = -1) -> None:
        self.told: list[str] = []
        self.last = last
        self.shares: list[float] = []

    def on_start(self, progress: JobProgress) -> None:
        self.told.append(f"start {progress.job} {progress.done}/{progress.total} {progress.unit}")

    def on_step(self, progress: JobProgress) -> None:
        self.told.append(f"step {progress.done} {progress.values['labels']}")
        self.shares.append(progress.values["accept_share"])
        if progress.done == self.last:
            progress.stop()

    def on_checkpoint(self, progress: JobProgress) -> None:
        self.told.append(f"checkpoint {progress.done}")

    def on_end(self, progress: JobProgress) -> None:
        self.told.append(f"end {progress.done} {progress.error!r}")


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


def test_callbacks_are_told_of_every_shard_and_checkpoint(tmp_path: Path) -> None:
    in_memory, on_disk, again = Watch(), Watch(), Watch()
    run(None, callbacks=in_memory)
    run(tmp_path, callbacks=[on_disk])
    run(tmp_path, callbacks=again)
    steps = ["start label 0/4 shards", "step 1 5", "step 2 0", "step 3 7", "step 4 3", "end 4 None"]
    assert in_memory.told == steps
    assert [event for event in on_disk.told if "checkpoint" not in event] == steps
    assert on_disk.told[2::2] == [f"checkpoint {number}" for number in (1, 2, 3, 4)]
    assert in_memory.shares == pytest.approx([2 / 5, float("nan"), 3 / 7, 1 / 3], nan_ok=True)
    assert again.told == ["start label 4/4 shards", "end 4 None"]


def test_a_stop_gives_the_shards_so_far_and_the_folder_resumes(tmp_path: Path) -> None:
    assert run(None, callbacks=Watch(3)).groups.tolist() == run(None).groups[:12].tolist()
    stopped = run(tmp_path / "stopped", callbacks=Watch(3))
    assert stopped.groups.tolist() == run(None).groups[:12].tolist()
    later = Watch()
    assert len(run(tmp_path / "stopped", callbacks=later)) == sum(JOBS)
    assert later.told[:2] == ["start label 3/4 shards", "step 4 3"]
    run(tmp_path / "whole")
    assert content_of(tmp_path / "stopped") == content_of(tmp_path / "whole")


def test_what_ends_labeling_reaches_callbacks(tmp_path: Path) -> None:
    def failing(job: int) -> LabeledTokens:
        if job == 7:
            raise ConnectionError
        return compute(job)

    for output in (None, tmp_path):
        watch = Watch()
        with pytest.raises(ConnectionError):
            run(output, failing, callbacks=watch)
        assert watch.told[-1] == "end 2 ConnectionError()"


def test_one_of_several_processes_cannot_be_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = SimpleNamespace(num_processes=2, process_index=0, is_main_process=True, wait_for_everyone=lambda: None)
    monkeypatch.setattr("langchain_mara_training.labeling.shards.processes", lambda: state)
    with pytest.raises(TrainingError, match=r"one of several processes, and the others would wait.*raise an exception"):
        run(tmp_path, callbacks=Watch(1))


def test_what_is_no_callback_is_refused_before_the_work(tmp_path: Path) -> None:
    for output in (None, tmp_path / "none"):
        with pytest.raises(OptionsError, match="inherits from JobCallback"):
            run(output, callbacks=Watch)
    assert not (tmp_path / "none").exists()


def test_loading_what_a_stopped_labeling_left_warns(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    run(tmp_path, callbacks=Watch(3))
    with pytest.warns(
        UserWarning, match="holds 3 of 4 shards, because its labeling did not end. Run the labeler again"
    ):
        assert len(TokenLabels.load(tmp_path)) == 12
    run(tmp_path)
    recwarn.clear()
    assert len(TokenLabels.load(tmp_path)) == 15
    assert not recwarn.list
