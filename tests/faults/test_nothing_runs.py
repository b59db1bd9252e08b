"""Nothing that a folder, a recipe or a model names is imported, run or fetched; the error says what and why."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from command_line import mara, message_of
from families import tiny_agent
from langchain_mara_training.jobs import evaluate, rl
from langchain_mara_training.paper.settings import TableSettings
from langchain_mara_training.reinforcement.recipe import Recipe
from run_folders import EVALUATE, write

from langchain_mara.exceptions import OptionsError

TRAP = """
from pathlib import Path
Path({ran!r}).write_text("")

def score(completions, **_):
    return [0.0] * len(completions)
"""
PROMPTS = [{"prompt": "How do I boil an egg?"}]
REWARDS = "rewards: [{spec: trap:score, weight: 2}]\n"


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that exists as soon as a module `trap` of the current folder was imported."""
    ran = tmp_path / "ran"
    (tmp_path / "trap.py").write_text(TRAP.format(ran=str(ran)))
    monkeypatch.chdir(tmp_path)
    return ran


def downloaded_run(folder: Path, command: str, **options: Any) -> Path:
    """A run folder as someone else made it."""
    tiny_agent(192).save_pretrained(folder / "agent")
    first_result = {"label": "features/manifest.json", "rl": "fitting.pt"}[command]
    (folder / first_result).parent.mkdir(exist_ok=True)
    (folder / first_result).touch()
    (folder / "config.json").write_text(json.dumps({command: options}))
    return folder


@pytest.mark.parametrize("command", ["label", "rl"])
@pytest.mark.parametrize("given", [None, ["other:score"], ["trap:score", "trap:score"]])
def test_the_reward_of_a_run_folder_is_not_imported(trap: Path, command: str, given: list[str] | None) -> None:
    run = downloaded_run(Path("run"), command, labeler="rollout", reward=["trap:score"], reward_weight=[0.5])
    options = {**EVALUATE, "data": write(Path("p.jsonl"), PROMPTS), "agent": str(run), "reward": given}
    with pytest.raises(OptionsError, match="name it again: add --reward trap:score. To score .* --agent run/agent"):
        evaluate.evaluate(None, None, options)
    assert not trap.exists()


def test_the_reward_that_is_named_again_scores_with_the_recorded_weight(trap: Path) -> None:
    run = downloaded_run(Path("run"), "rl", reward=["trap:score"], reward_weight=[0.5])
    options = {**EVALUATE, "data": write(Path("p.jsonl"), PROMPTS), "agent": str(run), "reward": ["trap:score"]}
    found = evaluate.evaluate(None, None, {**options, "max_new_tokens": 1})
    assert trap.exists()
    assert found.comparison.config["rewards"] == {"score": 0.5}


@pytest.mark.parametrize("spec", ["beaver:evil/model", "evil/model", "pairs:evil/data", "/tmp/evil"])
def test_reward_models_and_data_that_a_run_folder_names_are_not_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str
) -> None:
    fetched: list[str] = []
    monkeypatch.setattr(evaluate, "reward_function", lambda spec, _: fetched.append(spec))
    run = downloaded_run(tmp_path / "run", "rl", reward=[spec])
    with pytest.raises(OptionsError, match="name it again"):
        evaluate.evaluate(None, None, {**EVALUATE, "data": "nowhere", "agent": str(run)})
    assert fetched == []


def test_the_command_says_which_reward_to_name(trap: Path) -> None:
    run = downloaded_run(Path("run"), "rl", reward=["trap:score; echo"])
    message = message_of(mara("evaluate", write(Path("p.jsonl"), PROMPTS), "--agent", run))
    assert "add --reward 'trap:score; echo'" in message
    assert not trap.exists()


def test_a_recipe_runs_no_code(trap: Path) -> None:
    Path("own.yaml").write_text(REWARDS)
    message = message_of(mara("rl", write(Path("p.jsonl"), PROMPTS), "--output", "run", "--recipe", "own.yaml"))
    assert message == (
        "The recipe names a function to import. A file runs no code, so name it yourself: add --reward trap:score."
    )
    assert not trap.exists()
    assert rl.resolve_options(Recipe.load("own.yaml"), {"reward": ["trap:score"]})["reward_weight"] == [2.0]


def test_settings_of_tables_run_no_code(trap: Path) -> None:
    settings = TableSettings.load().model_copy(update={"rewards": {"reward": "trap:score", "cost": "beaver:a/b"}})
    with pytest.raises(OptionsError, match="name it yourself: add --rewards reward=trap:score"):
        settings.with_sources()
    Path("own.yaml").write_text(settings.model_dump_json())
    assert "add --rewards reward=trap:score" in message_of(mara("table", "1", "--output", "t", "--recipe", "own.yaml"))
    assert not trap.exists()
    assert settings.with_sources(rewards=["reward=trap:score"]).rewards["reward"] == "trap:score"


def test_a_resumed_reinforcement_takes_no_reward_from_its_folder(trap: Path) -> None:
    run = downloaded_run(Path("run"), "rl", reward=["trap:score"])
    shutil.rmtree(run / "agent")
    message = message_of(mara("rl", write(Path("p.jsonl"), PROMPTS), "--output", run))
    assert "Give at least one --reward" in message
    assert not trap.exists()
