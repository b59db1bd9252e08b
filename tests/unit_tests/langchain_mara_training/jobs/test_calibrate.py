"""`mara calibrate` saves an agent that recommends what was found, with its report in card and log."""

import json
from pathlib import Path
from typing import Any

import pytest
from langchain_mara_training import run_folder
from langchain_mara_training.demo.corpus import prompts
from langchain_mara_training.jobs.calibrate import calibrate_agent
from run_folders import events

from langchain_mara.exceptions import CheckpointError, OptionsError, TrainingError
from langchain_mara.loading.models import load_agent

OPTIONS: dict[str, Any] = {
    "target": "changed", "at_most": 0.1, "model": None, "agent": None, "strategy": "guided", "harmful": None,
    "reward": None, "reward_weight": None, "least_reward": None, "confidence": 0.9, "split": "train", "data_name": None,
    "data_revision": None, "limit": 4, "batch_size": 32, "max_new_tokens": 12, "top_k": 12, "top_p": None,
    "device": "cpu", "seed": 0,
}  # fmt: skip


@pytest.fixture
def asked(tmp_path: Path) -> dict[str, Any]:
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": text}) for text in prompts("train", risky=True, count=4)))
    return {**OPTIONS, "data": str(file)}


@pytest.mark.slow
def test_the_dial_is_set_into_a_run_folder(asked: dict[str, Any], tmp_path: Path) -> None:
    values = calibrate_agent(tmp_path / "run", asked)
    agent = load_agent(run_folder.agent_source(str(tmp_path / "run")))
    assert agent is not None
    assert agent.recommended_options == {"top_k": 12, "strategy": "guided", "strength": values["strength"]}
    assert agent.calibration is not None
    assert agent.calibration["measured"] == values["measured"] <= 0.1
    assert events(tmp_path / "run", "calibrate")[-1]["tried"] == agent.calibration["tried"]
    card = (tmp_path / "run" / "agent" / "README.md").read_text()
    assert "| at most | 0.1 |" in card
    assert str(tmp_path) not in card


def test_what_is_missing_or_in_the_way_is_said_before_a_model_is_loaded(asked: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="Give the agent to calibrate: --agent"):
        calibrate_agent(tmp_path / "run", {**asked, "model": "org/model"})
    with pytest.raises(OptionsError, match="--reward needs --least-reward"):
        calibrate_agent(tmp_path / "run", {**asked, "reward": ["my:score"]})
    with pytest.raises(CheckpointError, match="There is no"):
        calibrate_agent(tmp_path / "run", {**asked, "agent": str(tmp_path / "nothing" / "here")})
    run_folder.Run(tmp_path / "other", "label", {}).begin()
    with pytest.raises(TrainingError, match="is a run of mara label. Give another --output"):
        calibrate_agent(tmp_path / "other", asked)
