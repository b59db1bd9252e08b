"""`mara serve`: what it refuses before it listens, and what it hands on."""

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import mara, message_of, succeed

from langchain_mara.server import process
from langchain_mara.server.command import _named


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """States of the apps that would have been served."""
    states: list[Any] = []
    monkeypatch.setattr(process, "serve", lambda app: states.append(app.state.server))
    return states


def test_the_bundled_model(served: list[Any]) -> None:
    succeed("serve", "--max-tokens", "7", "--batch-size", "3", "--timeout", "5")
    [state] = served
    assert [model.name for model in state.models] == ["mara-demo", "mara-demo+harmless"]
    llm = state.models.default.llm
    assert (llm.max_new_tokens, llm.batch_size, llm.timeout) == (7, 3, 5)
    assert (state.settings.host, state.settings.port) == ("127.0.0.1", 8000)


def test_a_model_and_agents(served: list[Any], model_folder: Path, agent_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("k\n")
    arguments = ["--agent", agent_folder, "--agent", f"other={agent_folder}", "--api-key-file", tmp_path / "keys"]
    succeed("serve", model_folder, *arguments, "--host", "0.0.0.0", "--device", "cpu")
    [state] = served
    assert [model.name for model in state.models] == ["model", "model+agent", "model+other"]
    assert state.settings.api_keys == ("k",)


def test_refusals(tmp_path: Path) -> None:
    assert "--no-auth" in message_of(mara("serve", "--host", "0.0.0.0"))
    assert "There is no folder" in message_of(mara("serve", "/nowhere/model"))
    assert "is no name" in message_of(mara("serve", "--agent", "0.7*a+0.3*b"))
    assert "keys" in message_of(mara("serve", "--api-key-file", tmp_path / "keys"))


@pytest.mark.parametrize(
    ("given", "name", "source"),
    [
        ("builtin:smollm2-135m-harmless", "smollm2-135m-harmless", "builtin:smollm2-135m-harmless"),
        ("mix=0.7*a+0.3*b", "mix", "0.7*a+0.3*b"),
        ("org/agents:mistral.pth", "mistral", "org/agents:mistral.pth"),
        ("./runs/agent/", "agent", "./runs/agent/"),
    ],
)
def test_names_of_agents(given: str, name: str, source: str) -> None:
    assert _named(given) == (name, source)


def test_the_container_copies_what_there_is_and_runs_our_command(served: list[Any]) -> None:
    root = Path(__file__).parents[4]
    lines = (root / "docs/deploy/Dockerfile").read_text().splitlines()
    copies = [line.split()[1:] for line in lines if line.startswith("COPY ")]
    copied = [word for words in copies if not words[0].startswith("--from") for word in words[:-1]]
    ignored = (root / "docs/deploy/Dockerfile.dockerignore").read_text().splitlines()
    assert copied
    assert all((root / name).exists() and f"!{name}" in ignored for name in copied)
    stages = [line.split()[-1] for line in lines if line.startswith("FROM ")]
    assert {"cpu", "cuda"} <= set(stages)
    assert all(words[0].removeprefix("--from=") in stages for words in copies if words[0].startswith("--from"))
    [command] = [json.loads(line.removeprefix("ENTRYPOINT ")) for line in lines if line.startswith("ENTRYPOINT ")]
    assert command[:2] == ["mara", "serve"]
    assert "--no-auth" in message_of(mara(*command[1:]))
    succeed(*command[1:], "--no-auth")
    assert (served[0].settings.host, served[0].settings.port) == ("0.0.0.0", 8000)
