"""Labelling killed at any moment, and by several processes, ends with the same bytes."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = """
import sys
from dataclasses import asdict
from langchain_mara import MaraLLM
from langchain_mara_training.demo.corpus import preference_pairs
from langchain_mara_training import PreferenceLabeler
from langchain_mara_training.storage.distributed import processes
pairs = [asdict(pair) for pair in preference_pairs("train", 0, 1)]
labeler = PreferenceLabeler(MaraLLM.demo(agent=None, device="cpu"), shard_tokens=200)
print("ready", processes().num_processes, flush=True)
labeler.label(pairs, sys.argv[1])
"""
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if not file.name.endswith(".tmp")}


def label(script: Path, output: Path, *launcher: str) -> str:
    command = [sys.executable, *launcher, str(script), str(output)]
    run = subprocess.run(command, env=ONE_THREAD, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout


@pytest.mark.slow
def test_kills_and_processes_change_no_byte(tmp_path: Path) -> None:
    script = tmp_path / "label.py"
    script.write_text(SCRIPT)
    assert label(script, tmp_path / "whole") == "ready 1\n"
    whole = content(tmp_path / "whole")
    assert len(whole) > 10

    said = label(script, tmp_path / "two", "-m", "torch.distributed.run", "--nproc_per_node", "2")
    # Two processes at once: their lines may mingle.
    assert said.count("2") == 2
    assert content(tmp_path / "two") == whole

    draw = random.Random(0)
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, str(script), str(tmp_path / "killed")], env=ONE_THREAD, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(draw.uniform(0.1, 0.8))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert len(content(tmp_path / "killed")) < len(whole)
    label(script, tmp_path / "killed")
    assert content(tmp_path / "killed") == whole
