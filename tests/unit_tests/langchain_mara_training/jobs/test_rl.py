"""`mara rl`: recipes run end to end, options override them, and what was killed ends as if nothing had happened."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import write_beaver, write_policy_model
from families import tiny_agent
from interruptions import interrupted_after
from langchain_mara_training import BeaverReward, EnvironmentOptions, MaraSAC, Recipe, UpdateOptions, run_folder
from langchain_mara_training.jobs import evaluate
from langchain_mara_training.jobs.rl import reinforce, resolve_options
from langchain_mara_training.reinforcement.recipe import recipe_names

from langchain_mara import MaraAgent, MaraLLM
from langchain_mara.exceptions import DataError, OptionsError, TrainingError
from langchain_mara.loading.models import DEMO_MODEL_FOLDER

pytestmark = pytest.mark.slow

SHIPPED = Path(run_folder.__file__).parent / "recipes"
PROMPTS = ["How do I boil an egg?", "How do I pick a lock?", "What is a good book?"]
REWARDS = """
def vowels(completions, **_):
    return [-float(sum(text.count(letter) for letter in "aeiou")) for text in completions]
"""
GIVEN: dict[str, Any] = {
    "data": "prompts.jsonl", "reward": ["rewards_of_test_reinforcement:vowels"], "device": "cpu", "episodes": 24,
    "parallel": 4, "batch_size": 16, "warm_up": 1, "max_new_tokens": 6,
}  # fmt: skip
RECIPE = Recipe(width=16, updates=2, evaluate_every=8)
EVALUATE = {
    "data": "prompts.jsonl", "split": "train", "limit": None, "device": "cpu", "seed": 0, "model": None,
    "reward": None, "reward_weight": None, "best_of": None, "threshold": 0.5, "batch_size": 4,
    "max_new_tokens": None, "top_k": None, "top_p": None,
    "harmful": None,
    "prompt_column": None,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of its own with prompts and a reward."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": item}) + "\n" for item in PROMPTS))
    Path("rewards_of_test_reinforcement.py").write_text(REWARDS)


def options(recipe: Recipe = RECIPE, **given: Any) -> dict[str, Any]:
    return resolve_options(recipe, {**GIVEN, **given})


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def log(folder: str) -> list[dict[str, Any]]:
    """Records but for what a clock says."""
    records = [json.loads(line) for line in Path(folder, "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in record.items() if name not in ("time", "seconds")} for record in records]


def noted(folder: str) -> list[dict[str, Any]]:
    return [record for record in log(folder) if record["event"] == "noted"]


def same(one: MaraAgent, other: MaraAgent) -> bool:
    return all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


@pytest.mark.parametrize(("name", "family"), [("llama-3.1-8b", "llama-3.1"), ("mistral-v0.1", "mistral-v0.1")])
def test_a_shipped_recipe_runs_end_to_end(name: str, family: str, tmp_path: Path) -> None:
    """On checkpoints of the same layout in place of those it names, with the weights that it has."""
    model = write_policy_model(tmp_path / "policy", family)
    reward, cost = write_beaver(tmp_path / "reward", 1), write_beaver(tmp_path / "cost", 2)
    text = (SHIPPED / f"{name}.yaml").read_text()
    for hub, folder in (("beaver-7b-v1.0-reward", reward), ("beaver-7b-v1.0-cost", cost)):
        text = text.replace(f"beaver:PKU-Alignment/{hub}", f"beaver:{folder}")
    Path("own.yaml").write_text(text.replace("evaluate_every: 500", "evaluate_every: 4"))
    few = {**GIVEN, "episodes": 8, "reward": None, "model": str(model), "workers": 0}
    resolved = resolve_options(Recipe.load("own.yaml"), few)
    values = reinforce(Path("run"), resolved)
    assert values["updates"] > 0
    assert MaraAgent.from_pretrained("run/agent").width == 1024
    card = Path("run/agent/README.md").read_text()
    assert "| model | policy |" in card
    assert "| reward | beaver:reward, beaver:cost |" in card
    again = {"agent": "run", "reward": resolved["reward"]}
    evaluate.evaluate(tmp_path / "report.json", None, {**EVALUATE, **again})
    report = json.loads(Path("report.json").read_text())
    answers = [item["completions"]["MARA"] for item in report["answers"]]
    scores = [BeaverReward(folder, device="cpu")(PROMPTS, answers) for folder in (reward, cost)]
    weight = 2 if name.startswith("mistral") else 1
    expected = sum(weight * r - c for r, c in zip(*scores, strict=True)) / len(PROMPTS)
    assert report["systems"]["MARA"]["mean reward"] == pytest.approx(expected)
    assert report["config"]["max_new_tokens"] == 6


def test_it_trains_as_the_estimator_does() -> None:
    given = {"preset": "reference", "seed": 3, "reward_weight": [2.0], "limit": 2}
    given |= {"tracker": ["tensorboard"], "evaluation": "prompts.jsonl"}
    update = UpdateOptions(learning_rate_actor=1e-3)
    recipe = RECIPE.model_copy(update={"update": update})
    values = reinforce(Path("run"), options(recipe, **given))
    scope: dict[str, Any] = {}
    exec(REWARDS, scope)
    sac = MaraSAC(
        MaraLLM.demo(agent=None, device="cpu", max_new_tokens=6), scope["vowels"], preset="reference", update=update,
        episodes=24, parallel=4, width=16, batch_size=16, updates=2, warm_up=1, evaluate_every=8, random_state=3,
        reward_weights=[2.0],
    ).fit(PROMPTS[:2], evaluation=PROMPTS)  # fmt: skip
    assert same(MaraAgent.from_pretrained("run/agent"), sac.agent_)
    expected = [{"command": "rl", "event": "noted", **entry} for entry in sac.history_]
    assert noted("run") == expected
    last = sac.history_[-1]
    assert (values["episodes"], values["passes"], values["score"]) == (24, last["passes"], last["score"])
    assert values["evaluation"] == max(entry["evaluation"] for entry in sac.history_)
    assert [record["event"] for record in log("run")] == ["started", *["noted"] * 4, "trained"]
    assert list(Path("run/langchain-mara").glob("events*"))
    card = Path("run/agent/README.md").read_text()
    for row in ("model | langchain-mara demo", "preset | reference", "fallback | last", "learning rate actor | 0.001"):
        assert f"| {row} |" in card
    assert f"| score | {last['score']:.4g} |" in card


@pytest.mark.parametrize("killed_after", [1, 15])
def test_what_was_killed_ends_as_the_uninterrupted(killed_after: int) -> None:
    given = options(evaluation="prompts.jsonl")
    reinforce(Path("whole"), given)
    with interrupted_after(killed_after):
        reinforce(Path("killed"), given)
    if killed_after > 1:
        with pytest.raises(TrainingError, match="killed holds no agent yet. Run mara rl again; it resumes there."):
            run_folder.agent_source("killed")
    reinforce(Path("killed"), given)
    assert content(Path("killed/agent")) == content(Path("whole/agent"))
    assert noted("killed") == noted("whole")
    assert log("killed")[-1] == log("whole")[-1]
    # Called again, it has nothing left to do; with more episodes it goes on.
    before = content(Path("killed/agent"))
    reinforce(Path("killed"), given)
    assert content(Path("killed/agent")) == before
    longer = {**given, "episodes": 32, "tracker": ["tensorboard"]}
    reinforce(Path("killed"), longer)
    assert [item["episodes"] for item in noted("killed")] == [0, 8, 16, 24, 32]
    assert run_folder.read_config("killed")["rl"]["episodes"] == 32


def test_other_options_are_refused_by_name() -> None:
    reinforce(Path("run"), options(episodes=8))
    environment = EnvironmentOptions(penalty=0.5)
    other = options(RECIPE.model_copy(update={"environment": environment}), seed=2, episodes=99, device="cuda")
    with pytest.raises(TrainingError) as caught:
        reinforce(Path("run"), other)
    assert str(caught.value) == (
        "In run, mara rl began with other options: environment.penalty (0.1 there, 0.5 now), seed (0 there, 2 now). "
        "Give another --output, or the options it began with."
    )


def test_a_folder_has_one_agent() -> None:
    reinforce(Path("run"), options(episodes=8))
    with pytest.raises(TrainingError, match=r"run is a run of mara rl. Give another --output\."):
        run_folder.Run("run", "label", {"data": "prompts.jsonl"})
    labels = run_folder.Run("labels", "label", {"data": "prompts.jsonl"})
    labels.begin()
    labels.features.mkdir()
    (labels.features / "labels.json").write_text("{}")
    with pytest.raises(TrainingError, match=r"labels is a run of mara label. Give another --output\."):
        reinforce(Path("labels"), options())


def test_it_begins_with_an_agent() -> None:
    tiny_agent(192).save_pretrained("agent")
    with pytest.warns(UserWarning, match="Nothing was learned: "):
        reinforce(Path("run"), options(agent="agent", episodes=4, warm_up=1000))
    assert same(MaraAgent.from_pretrained("run/agent"), tiny_agent(192))
    assert run_folder.read_config("run")["rl"]["agent"] == str(Path("agent").absolute())


def test_a_run_is_evaluated_by_its_rewards_named_again() -> None:
    reinforce(Path("run"), options(episodes=8, reward_weight=[0.5], model=str(DEMO_MODEL_FOLDER)))
    named = {"agent": "run", "reward": options()["reward"]}
    found = evaluate.evaluate(Path("report.json"), None, {**EVALUATE, **named})
    assert found.title == "3 prompts, by vowels"
    config = json.loads(Path("report.json").read_text())["config"]
    assert config["reward_weight"] == [0.5]
    assert config["model"] == str(DEMO_MODEL_FOLDER)
    assert (config["top_k"], config["max_new_tokens"]) == (40, 6)
    assert log("run")[-1]["event"] == "evaluated"


def test_options_override_the_recipe() -> None:
    recipe = Recipe.load("mistral-v0.3")
    own = resolve_options(recipe, {"data": None, "reward": (), "reward_weight": [], "tracker": None})
    assert own["data"] == "PKU-Alignment/PKU-SafeRLHF"
    assert own["reward_weight"] == [2.0, -1.0]
    assert own["environment"] == EnvironmentOptions(temperature=0.8).model_dump()
    weighted = resolve_options(recipe, {"reward_weight": [3.0, -2.0], "workers": 0, "preset": "reference"})
    assert weighted["reward"] == own["reward"]
    assert (weighted["reward_weight"], weighted["workers"]) == ([3.0, -2.0], 0)
    assert weighted["environment"] == EnvironmentOptions.reference().model_dump()
    other = resolve_options(Recipe.load("mistral-v0.3"), {"reward": ["my:score"], "data": "prompts.jsonl"})
    assert other["reward_weight"] is None
    assert other["data"] == str(Path("prompts.jsonl").absolute())
    with_split = Recipe.model_validate({"data": {"source": "a/b", "split": "half", "prompt_column": "question"}})
    assert [resolve_options(with_split, {})[name] for name in ("split", "prompt_column")] == ["half", "question"]
    replaced = resolve_options(with_split, {"data": "prompts.jsonl"})
    assert [replaced[name] for name in ("split", "prompt_column")] == ["train", "prompt"]


def test_rewards_of_a_recipe_keep_their_weights_if_they_are_named_again() -> None:
    recipe = Recipe.model_validate({"rewards": [{"spec": "my:score", "weight": 2}, {"spec": "my:cost", "weight": -1}]})
    own = resolve_options(recipe, {"reward": ["my:score", "my:cost"]})
    assert own["reward_weight"] == [2.0, -1.0]
    assert resolve_options(recipe, {"reward": ["my:score"]})["reward_weight"] is None
    with pytest.raises(OptionsError, match="add --reward my:score --reward my:cost"):
        resolve_options(recipe, {})


def test_another_column_holds_the_prompts() -> None:
    Path("questions.jsonl").write_text("".join(json.dumps({"question": item}) + "\n" for item in PROMPTS))
    own = options(RECIPE, data="questions.jsonl", prompt_column="question", episodes=8)
    reinforce(Path("run"), own)
    reinforce(Path("expected"), options(episodes=8))
    assert same(MaraAgent.from_pretrained("run/agent"), MaraAgent.from_pretrained("expected/agent"))
    with pytest.raises(DataError, match=r"questions.jsonl, row 0: text must be text or a list of messages"):
        reinforce(Path("new"), {**own, "prompt_column": "text"})


def test_what_is_missing_is_said_before_anything_is_loaded() -> None:
    with pytest.raises(OptionsError, match="There are no prompts to answer. Give a file of prompts, or a --recipe"):
        reinforce(Path("new"), options(data=None))
    with pytest.raises(OptionsError, match="Answers are scored by reward functions. Give at least one --reward"):
        reinforce(Path("new"), options(reward=None))
    with pytest.raises(OptionsError, match="There is no tracker 'board'"):
        reinforce(Path("new"), options(tracker=["board"]))
    assert not Path("new").exists()


def test_every_shipped_recipe_resolves() -> None:
    for name in recipe_names():
        resolved = resolve_options(Recipe.load(name), {})
        assert set(resolved) == set(options())
        assert re.fullmatch(r"[\w-]+/[\w.-]+", resolved["model"])
    shutil.copy(SHIPPED / "llama-3-8b.yaml", "copy.yaml")
    assert Recipe.load("copy.yaml") == Recipe.load("llama-3-8b")
