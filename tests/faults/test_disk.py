"""A full disk: an error that names the file and the bytes, the last good state, and no temporary files."""

import errno
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from langchain_mara_training.reinforcement.replay_buffer import ReplayBuffer
from langchain_mara_training.storage.atomic import write_atomically
from langchain_mara_training.storage.model_card import save_agent
from langchain_mara_training.storage.records import append_record
from small_jobs import JOBS, contents

from langchain_mara import MaraAgent, MaraLLM
from langchain_mara.exceptions import CheckpointError, MaraError, TrainingError

NEEDED = r"cannot be written: .*It needs [\d,]+ bytes, and [\d,]+ are free there. Make room"


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file may grow beyond a size: what a full disk does, without one. pytest's own files are smaller."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def leftovers(folder: Path) -> list[str]:
    return [file.name for file in folder.rglob("*") if file.name.endswith((".tmp", ".new", ".old", ".lock.json"))]


def test_a_file_is_replaced_or_stays(tmp_path: Path) -> None:
    file = tmp_path / "file"
    write_atomically(file, b"old")
    with full_disk(2000), pytest.raises(TrainingError, match=f"{file} {NEEDED}") as caught:
        write_atomically(file, b"new" * 1000)
    assert "needs 3,000 bytes" in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    assert file.read_bytes() == b"old"


def test_a_log_grows_by_whole_lines_or_stays(tmp_path: Path) -> None:
    append_record(tmp_path, "test", "fits")
    before = (tmp_path / "log.jsonl").read_bytes()
    with full_disk(2000), pytest.raises(TrainingError, match=f"log.jsonl {NEEDED}"):
        append_record(tmp_path, "test", "is long", note="x" * 4000)
    assert (tmp_path / "log.jsonl").read_bytes() == before
    append_record(tmp_path, "test", "fits")
    assert (tmp_path / "log.jsonl").read_bytes().startswith(before)


def no_space(*_: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_buffer_reserves_its_blocks_before_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = ReplayBuffer(tmp_path, 64, capacity=200, slack=100)
    episode = torch.ones(4, 64), torch.ones(4), torch.ones(4)
    with monkeypatch.context() as context:
        context.setattr("os.posix_fallocate", no_space)
        with pytest.raises(TrainingError, match=f"states.npy {NEEDED}"):
            buffer.add_episode(*episode)
    assert len(buffer) == 0
    buffer.add_episode(*episode)
    assert len(buffer) == 4
    # No block of the reserved rows is missing.
    assert (tmp_path / "states.npy").stat().st_blocks * 512 >= 4 * 128


def test_an_agent_is_replaced_or_stays(tmp_path: Path) -> None:
    save_agent(MaraAgent(32, width=8), tmp_path / "agent", {})
    before = contents(tmp_path / "agent")
    other = MaraAgent(32, width=512)
    with full_disk(20_000), pytest.raises((TrainingError, CheckpointError), match=NEEDED):
        save_agent(other, tmp_path / "agent", {})
    assert contents(tmp_path / "agent") == before
    with full_disk(20_000), pytest.raises(CheckpointError, match=f"model.safetensors {NEEDED}"):
        other.save_pretrained(tmp_path / "agent")
    assert contents(tmp_path / "agent")["model.safetensors"] == before["model.safetensors"]
    assert leftovers(tmp_path) == []


LIMITS = {
    "label_pairs": 3_000, "label_rollouts": 1_500, "fit": 4_000, "align": 5_000, "reinforce": 30_000, "compare": 700,
}  # fmt: skip


@pytest.mark.parametrize("name", JOBS)
def test_every_job_stops_with_a_message_and_resumes_to_the_same_result(
    name: str, llm: MaraLLM, finished: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "job"
    with full_disk(LIMITS[name]), pytest.raises(MaraError, match=NEEDED):
        JOBS[name](folder, llm)
    assert leftovers(folder) == []
    JOBS[name](folder, llm)
    timed = ("history.json", ".jsonl", "config.json", "fitting.pt", "README.md")
    whole = contents(finished[name])
    for file, content in contents(folder).items():
        if not file.endswith(timed) or file.endswith("shards.jsonl"):
            assert content == whole[file], file


ON_A_SMALL_DISK = """
import sys
import torch
from langchain_mara.exceptions import MaraError
from langchain_mara_training.reinforcement.replay_buffer import ReplayBuffer

try:
    buffer = ReplayBuffer(sys.argv[1], 1024, capacity=2000, slack=2000)
    for _ in range(1000):
        buffer.add_episode(torch.ones(16, 1024), torch.ones(16), torch.ones(16))
        buffer.state_dict()
except MaraError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_full_disk_does_not_kill_a_process_that_writes_to_memory(tmp_path: Path) -> None:
    mounted = (
        shutil.which("mount")
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], check=False, capture_output=True
        ).returncode
    )
    if not mounted:
        pytest.skip("only root can mount a small disk")
    try:
        run = subprocess.run(
            [sys.executable, "-c", ON_A_SMALL_DISK, tmp_path / "buffer"],
            env={"PYTHONPATH": ":".join(filter(None, sys.path))},
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    assert run.returncode == 0, run.stderr  # -7 would be SIGBUS
    assert "states.npy cannot be written: No space left on device. It needs" in run.stdout
