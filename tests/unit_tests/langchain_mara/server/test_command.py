"""`mara serve`: what it refuses before it listens, and what it hands on."""

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
