"""Two jobs in one folder: the second is refused with the first's process, and the dead hold no lock."""

import os
import platform
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from small_jobs import JOBS, SCORED, compare_systems, label_pairs, vowels

from langchain_mara import MaraLLM
from langchain_mara.exceptions import TrainingError

pytestmark = pytest.mark.slow

HOLD = """
import sys
from langchain_mara_training.storage.lock import job_lock

with job_lock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process that works in a folder."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], env=environment, stdin=-1, stdout=-1, text=True
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_another_process_is_refused_until_the_first_is_dead(llm: MaraLLM, tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        for name, job in JOBS.items():
            with pytest.raises(TrainingError) as caught:
                job(tmp_path, llm)
            said = (
                rf"{tmp_path} is in use by process {process.pid} on {re.escape(platform.node())}, since "
                r"20\d\d-\d\d-\d\dT[\d:]+\+00:00. Wait until that job has ended, or give another folder."
            )
            assert re.fullmatch(said, str(caught.value)), name
        assert {file.name for file in tmp_path.iterdir()} == {".lock", ".lock.json"}
        process.send_signal(signal.SIGKILL)
        process.wait()
        label_pairs(tmp_path, llm)
    assert not (tmp_path / ".lock.json").exists()


@pytest.mark.parametrize("name", SCORED)
def test_a_second_thread_is_refused_while_the_first_works(name: str, llm: MaraLLM, tmp_path: Path) -> None:
    refused: list[str] = []

    def second() -> None:
        try:
            JOBS[name](tmp_path, llm, vowels)
        except TrainingError as error:
            refused.append(str(error))

    def reward(completions: list[str], **_: Any) -> list[float]:
        if not refused:
            thread = threading.Thread(target=second)
            thread.start()
            thread.join()
        return vowels(completions)

    reward.version = "1"  # type: ignore[attr-defined]
    JOBS[name](tmp_path, llm, reward)
    assert re.search(f"in use by process {os.getpid()} on", refused[0])


def test_a_job_may_start_another_in_its_folder(llm: MaraLLM, tmp_path: Path) -> None:
    inner: list[Any] = []

    def reward(completions: list[str], **_: Any) -> list[float]:
        if not inner:
            inner.append(None)
            inner.append(label_pairs(tmp_path, llm))
        return vowels(completions)

    reward.version = "1"  # type: ignore[attr-defined]
    compare_systems(tmp_path, llm, reward)
    assert len(inner[1])
    assert not (tmp_path / ".lock.json").exists()


@pytest.mark.parametrize("name", JOBS)
def test_a_job_leaves_no_lock_and_no_temporary_file(name: str, llm: MaraLLM, tmp_path: Path) -> None:
    def failing(**_: Any) -> list[float]:
        raise KeyboardInterrupt

    tmp_path.joinpath(".labels.json.somewhere-else.12345.tmp").write_text("half a fi")
    tmp_path.joinpath(".notes.tmp").write_text("of somebody")
    if name in SCORED:
        failing.version = "1"  # type: ignore[attr-defined]
        with pytest.raises(KeyboardInterrupt):
            JOBS[name](tmp_path, llm, failing)
    else:
        JOBS[name](tmp_path, llm)
    hidden = {file.name for file in tmp_path.iterdir() if file.name.startswith(".")}
    assert hidden == {".lock", ".notes.tmp"}
