"""MaraAgent refuses a folder or hub id that is no agent: damaged, foreign, or out of reach, each with its cause."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from langchain_mara.agents.agent import MaraAgent
from langchain_mara.exceptions import CheckpointError


def spoil_half(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def test_truncated_weights_are_refused(agent_copy: Path) -> None:
    spoil_half(agent_copy / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is truncated or corrupt.*again"):
        MaraAgent.from_pretrained(agent_copy)


def test_missing_weights_are_refused(agent_copy: Path) -> None:
    (agent_copy / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing.*save_pretrained"):
        MaraAgent.from_pretrained(agent_copy)


@pytest.mark.parametrize("content", [b'{"hidden_size": 3', b"\xff\xfe\x80", b""])
def test_broken_config_is_refused(agent_copy: Path, content: bytes) -> None:
    (agent_copy / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json is not valid JSON"):
        MaraAgent.from_pretrained(agent_copy)


@pytest.mark.parametrize("content", ["[]", "null", '"agent"'])
def test_config_that_is_no_object_is_refused(agent_copy: Path, content: str) -> None:
    (agent_copy / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        MaraAgent.from_pretrained(agent_copy)


@pytest.mark.parametrize(("name", "value"), [("hidden_size", 64), ("width", 20)])
def test_config_that_contradicts_the_weights_is_refused(agent_copy: Path, name: str, value: int) -> None:
    config = {"hidden_size": 32, "width": 16, name: value}
    (agent_copy / "config.json").write_text(json.dumps(config))
    message = f"hidden size {config['hidden_size']} and width {config['width']}, but the weights have 32 and 16"
    with pytest.raises(CheckpointError, match=message):
        MaraAgent.from_pretrained(agent_copy)


def test_folder_of_a_language_model_is_no_agent(model_folder: Path) -> None:
    with pytest.raises(CheckpointError, match="not a MARA agent: missing keys"):
        MaraAgent.from_pretrained(model_folder)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"no folder {tmp_path / 'nowhere'}. Give a folder, or a hub id"):
        MaraAgent.from_pretrained(tmp_path / "nowhere")


def test_file_given_for_a_folder_is_refused_with_the_right_call(save_pth: Callable[..., Path]) -> None:
    with pytest.raises(CheckpointError, match=r"is a file.*MaraAgent\.from_reference"):
        MaraAgent.from_pretrained(save_pth())


@pytest.mark.parametrize("name", ["org/nothing", "no such id!"])
def test_unreachable_hub_id_is_refused_with_the_ways_out(name: str) -> None:
    with pytest.raises(CheckpointError, match=f"No agent at {name}.*path or id, the network, and your access"):
        MaraAgent.from_pretrained(name)


def test_home_directory_is_expanded(agent_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(agent_copy.parent))
    assert MaraAgent.from_pretrained("~/agent").hidden_size == 32
