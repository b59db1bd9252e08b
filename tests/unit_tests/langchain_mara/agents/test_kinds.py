"""An agent of any kind from a folder or the hub; what a file names is looked up in a closed table."""

import json
import sys
from pathlib import Path

import pytest
from families import tiny_look_ahead

from langchain_mara.agents.agent import MaraAgent
from langchain_mara.agents.kinds import AGENT_KINDS, agent_from_pretrained
from langchain_mara.agents.look_ahead import LookAheadAgent
from langchain_mara.exceptions import CheckpointError


@pytest.fixture
def look_ahead_folder(tmp_path: Path) -> Path:
    tiny_look_ahead().save_pretrained(tmp_path / "ahead")
    return tmp_path / "ahead"


def test_the_configuration_names_the_kind(look_ahead_folder: Path, agent_folder: Path) -> None:
    assert isinstance(agent_from_pretrained(look_ahead_folder), LookAheadAgent)
    assert isinstance(agent_from_pretrained(agent_folder), MaraAgent)
    assert {name: kind.judges for name, kind in AGENT_KINDS.items()} == {
        "state": "after",
        "look-ahead": "before",
        "mixture": "after",
    }


def test_agents_of_earlier_versions_name_none(agent_copy: Path) -> None:
    config = json.loads((agent_copy / "config.json").read_text())
    assert config.pop("kind") == "state"
    (agent_copy / "config.json").write_text(json.dumps(config))
    assert isinstance(agent_from_pretrained(agent_copy), MaraAgent)


@pytest.mark.parametrize("kind", ["antigravity", "langchain_mara.agents.kinds", 7, None, ["state"]])
def test_an_unknown_kind_is_refused_and_imports_nothing(agent_copy: Path, kind: object) -> None:
    config = json.loads((agent_copy / "config.json").read_text())
    (agent_copy / "config.json").write_text(json.dumps({**config, "kind": kind}))
    with pytest.raises(CheckpointError, match="holds an agent of kind .* knows state, look-ahead"):
        agent_from_pretrained(agent_copy)
    assert "antigravity" not in sys.modules


def test_from_the_hub(look_ahead_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[tuple[str, str, str | None]] = []

    def download(repo_id: str, filename: str, token: str | None = None, **_: object) -> str:
        fetched.append((repo_id, filename, token))
        return str(look_ahead_folder / filename)

    for module in ("langchain_mara.agents.kinds", "langchain_mara.agents.base", "huggingface_hub.hub_mixin"):
        monkeypatch.setattr(f"{module}.hf_hub_download", download)
    loaded = agent_from_pretrained("someone/ahead", token="secret")
    assert isinstance(loaded, LookAheadAgent)
    assert loaded.fingerprint == tiny_look_ahead().fingerprint
    assert {name for _, name, _ in fetched} == {"config.json", "model.safetensors"}
    assert {token for _, _, token in fetched} == {"secret"}


def test_what_is_nowhere_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no folder"):
        agent_from_pretrained(tmp_path / "missing")
    with pytest.raises(CheckpointError, match="No agent at someone/nothing"):
        agent_from_pretrained("someone/nothing", local_files_only=True)
