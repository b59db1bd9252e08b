"""`mara vllm`: what it refuses before vLLM starts, and what it hands on."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import mara, message_of, succeed
from families import tiny_look_ahead

from langchain_mara.serving.vllm_plugin import command as module


@pytest.fixture
def ahead(tmp_path: Path) -> Path:
    tiny_look_ahead().save_pretrained(tmp_path / "ahead")
    return tmp_path / "ahead"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands that would have taken the process over."""
    commands: list[list[str]] = []
    monkeypatch.setattr(module, "find_spec", lambda name: name)
    monkeypatch.setattr(module, "find_distribution", lambda _: True)
    monkeypatch.setattr(os, "execv", lambda _, command: commands.append(command))
    return commands


def config_of(command: list[str]) -> Any:
    return json.loads(command[command.index("--additional-config") + 1])


def test_hands_on_what_is_vllms(started: list[list[str]], ahead: Path) -> None:
    succeed(
        "vllm", "org/model", "--agent", ahead, "--threshold", "0.4", "--port", "8001", "--dtype=float32", "-tp", "2"
    )
    [command] = started
    assert command[:5] == [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", "org/model"]
    assert command[-5:] == ["--port", "8001", "--dtype=float32", "-tp", "2"]
    assert command[command.index("--logits-processors") + 1].endswith("processor:MaraLogitsProcessor")
    assert config_of(command) == {"mara": {"agent": str(ahead), "accept_threshold": 0.4}}


def test_the_package_without_a_gpu_has_another_entry(
    started: list[list[str]], ahead: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "find_distribution", lambda _: False)
    succeed("vllm", "org/model", "--agent", ahead)
    assert started[0][2:5] == ["vllm.entrypoints.launchers.api_server.entry", "--model", "org/model"]


def test_options_of_the_agent(started: list[list[str]], ahead: Path) -> None:
    options = ("--top-k", "9", "--top-p", "0.7", "--strength", "0.8", "--entropy-gate", "2", "--allow-other-model")
    succeed("vllm", "org/model", "--agent", ahead, *options)
    assert config_of(started[0])["mara"] == {
        "agent": str(ahead),
        "top_k": 9,
        "top_p": 0.7,
        "strategy": "guided",
        "strength": 0.8,
        "entropy_gate": 2.0,
        "allow_other_model": True,
    }


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--speculative-config", "--speculative-config cannot be given to `mara vllm`. An agent cannot be asked"),
        ("-sc", "speculative decoding"),
        ("--spec-method=ngram", "speculative decoding"),
        ("--additional_config={}", "--additional-config cannot be given"),
        ("--additional-config.mara.top_k", "It holds the agent"),
        ("--logits-processors", "before or after the agent"),
    ],
)
def test_what_is_not_the_callers_to_set(started: list[list[str]], ahead: Path, option: str, message: str) -> None:
    assert message in message_of(mara("vllm", "org/model", "--agent", ahead, option, "x"))
    assert not started


def test_refusals(started: list[list[str]], ahead: Path, agent_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "mara distill" in message_of(mara("vllm", "org/model", "--agent", agent_folder))
    assert "There is no folder" in message_of(mara("vllm", "org/model", "--agent", "/nowhere/agent"))
    assert "accept_threshold=3" in message_of(mara("vllm", "org/model", "--agent", ahead, "--threshold", "3"))
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    assert "langchain-mara[vllm]" in message_of(mara("vllm", "org/model", "--agent", ahead))
    assert not started
