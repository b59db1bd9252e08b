"""`mara distill` makes a look-ahead agent in a run folder, with its report in card and log."""

import json
from pathlib import Path
from typing import Any

import pytest
from langchain_mara_training import run_folder
from langchain_mara_training.demo.corpus import prompts
from langchain_mara_training.jobs.distill import distill_agent
from run_folders import events

from langchain_mara import LookAheadAgent
from langchain_mara.exceptions import TrainingError
from langchain_mara.loading.models import load_agent

OPTIONS: dict[str, Any] = {
    "model": None, "agent": None, "reward": None, "reward_weight": None, "answers": 1, "rounds": 2, "held_out": 0.3,
    "width": 16, "rank": 4, "top_k": 12, "top_p": 0.9, "max_new_tokens": 16, "split": "train", "data_name": None,
    "data_revision": None, "limit": 6, "device": "cpu", "seed": 0,
}  # fmt: skip


@pytest.fixture
def asked(tmp_path: Path) -> dict[str, Any]:
    file = tmp_path / "prompts.jsonl"
    rows = [json.dumps({"prompt": prompt}) for prompt in prompts("train", risky=True, count=6)]
    file.write_text("\n".join(rows), encoding="utf-8")
    return {**OPTIONS, "data": str(file)}


@pytest.mark.slow
def test_an_agent_is_distilled_into_a_run_folder(asked: dict[str, Any], tmp_path: Path) -> None:
    values = distill_agent(tmp_path / "run", asked)
    agent = load_agent(run_folder.agent_source(str(tmp_path / "run")))
    assert isinstance(agent, LookAheadAgent)
    assert (agent.width, agent.rank, agent.policy_model) == (16, 4, "langchain-mara demo")
    assert events(tmp_path / "run", "distill")[-1]["same choice"] == values["same choice"]
    card = (tmp_path / "run" / "agent" / "README.md").read_text()
    assert "| same choice |" in card
    assert "| data | prompts.jsonl |" in card
    assert str(tmp_path) not in card


def test_what_is_missing_or_in_the_way_is_said_before_a_model_is_loaded(asked: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="Give the agent to distill: --agent"):
        distill_agent(tmp_path / "run", {**asked, "model": "org/model"})
    run_folder.Run(tmp_path / "other", "label", {}).begin()
    with pytest.raises(TrainingError, match="is a run of mara label. Give another --output"):
        distill_agent(tmp_path / "other", asked)
