"""The lock of a folder: one process, one thread, and as many jobs in one another as it likes."""

import json
import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from langchain_mara_training.storage.lock import job_lock

from langchain_mara.exceptions import TrainingError


def refusal(folder: Path) -> str | None:
    """What another thread is told."""
    said: list[str] = []

    def enter() -> None:
        try:
            with job_lock(folder):
                pass
        except TrainingError as error:
            said.append(str(error))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    return said[0] if said else None


def test_jobs_in_one_another_hold_one_lock(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    with job_lock(folder), job_lock(tmp_path / "other" / ".." / "new"):
        with job_lock(folder):
            owner = json.loads((folder / ".lock.json").read_text())
            assert owner["process"] == os.getpid()
        assert f"in use by process {os.getpid()} on {owner['host']}, since {owner['time']}" in str(refusal(folder))
    assert refusal(folder) is None
    assert [file.name for file in folder.iterdir()] == [".lock"]


def test_an_error_frees_the_folder(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), job_lock(tmp_path):
        _ = 1 / 0
    assert refusal(tmp_path) is None


def test_an_owner_that_cannot_be_read_is_still_an_owner(tmp_path: Path) -> None:
    with job_lock(tmp_path):
        (tmp_path / ".lock.json").write_text("{")
        assert "in use by another process. Wait" in str(refusal(tmp_path))


def test_no_folder_no_lock() -> None:
    with job_lock(None):
        pass


@pytest.mark.parametrize(("is_main", "locked"), [(True, True), (False, False)])
def test_of_processes_that_share_a_job_the_main_one_locks(is_main: bool, locked: bool, tmp_path: Path) -> None:
    state: Any = SimpleNamespace(is_main_process=is_main, num_processes=2)
    with job_lock(tmp_path, state):
        assert (refusal(tmp_path) is not None) is locked


def test_a_file_system_without_locks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def acquire(_: Any) -> None:
        raise NotImplementedError

    monkeypatch.setattr("filelock.FileLock.acquire", acquire)
    with pytest.warns(UserWarning, match="has no locks. Start no second job there."), job_lock(tmp_path):
        pass
