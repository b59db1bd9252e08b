"""Runs with labels and agents that the tests of the jobs share."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from families import tiny_agent
from langchain_mara_training.jobs import fit, label
from run_folders import FIT, PAIRS, REWARDS, Rows, write


@pytest.fixture(scope="session")
def pairs(demo_pairs: Rows) -> Rows:
    return demo_pairs[:12]


@pytest.fixture(scope="session")
def pairs_file(pairs: Rows, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("data") / "pairs.jsonl", pairs)


@pytest.fixture(scope="session")
def fitted(pairs_file: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with labels and an agent; copy it before you change it."""
    folder = tmp_path_factory.mktemp("run_folder") / "run"
    label.label(folder, {**PAIRS, "data": pairs_file, "all_tokens": True})
    fit.fit(folder, None, FIT)
    return folder


@pytest.fixture
def run(fitted: Path, tmp_path: Path) -> Path:
    """A copy of the run whose agent steers."""
    folder = Path(shutil.copytree(fitted, tmp_path / "run"))
    tiny_agent(192).save_pretrained(folder / "agent")
    return folder


@pytest.fixture
def vowels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The user's reward function, importable from the current folder."""
    (tmp_path / "rewards_of_test_jobs.py").write_text(REWARDS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    scope: dict[str, Any] = {}
    exec(REWARDS, scope)
    return scope["vowels"]
