"""`mara evaluate` compares as by hand, takes what is not given from the run, and resumes in its folder."""

import json
from pathlib import Path
from typing import Any

import pytest
from families import tiny_agent
from langchain_mara_training import PreferenceReward
from langchain_mara_training.evaluation.comparison import compare
from langchain_mara_training.evaluation.evaluate import decode_system
from langchain_mara_training.evaluation.preference_rate import preference_rate
from langchain_mara_training.evaluation.systems import BestOf, Decoding
from langchain_mara_training.jobs import evaluate, label
from langchain_mara_training.storage import records
from run_folders import EVALUATE, ROLLOUTS, Rows, events, write

from langchain_mara import MaraLLM
from langchain_mara.exceptions import CheckpointError, OptionsError, RewardError, TrainingError
from langchain_mara.loading.models import DEMO_MODEL_FOLDER


@pytest.mark.slow
def test_systems_are_compared_as_by_hand(run: Path, pairs: Rows, pairs_file: str, demo_llm: MaraLLM) -> None:
    options = {**EVALUATE, "data": pairs_file, "limit": 5, "agent": str(run), "best_of": [3, 2], "seed": 6}
    found = evaluate.evaluate(run / "new" / "report.json", None, options)
    assert found.title == "5 prompts, by PreferenceReward"
    llm = demo_llm.model_copy(update={"max_new_tokens": 6, "batch_size": 32})
    reward = PreferenceReward().fit(pairs)
    mara = llm.with_agent(tiny_agent(192))
    systems = [Decoding("plain", llm), Decoding("MARA", mara), BestOf(llm, reward, 3), BestOf(llm, reward, 2)]
    expected = compare(systems, pairs[:5], reward, random_state=6).summaries()
    by_hand = [decode_system(item, pairs[:5], reward, "") for item in (llm, mara)]
    assert by_hand[0].completions != by_hand[1].completions
    report = json.loads((run / "new" / "report.json").read_text())
    assert list(found.systems) == list(expected) == ["plain", "MARA", "best-of-3", "best-of-2"]
    for name, values in found.systems.items():
        timed = {"tokens/s", "seconds"}
        assert {key: value for key, value in values.items() if key not in timed} == {
            key: value for key, value in expected[name].items() if key not in timed
        }
    for summary, name in zip(by_hand, ("plain", "MARA"), strict=True):
        assert [answer["completions"][name] for answer in report["answers"]] == summary.completions
        assert [answer["rewards"][name] for answer in report["answers"]] == summary.rewards.tolist()
        assert found.systems[name]["passes/token"] == pytest.approx(summary.passes_per_token)
    rate = preference_rate(by_hand[1].rewards, by_hand[0].rewards)
    assert (found.systems["MARA"]["preference rate"], found.systems["plain"]["preference rate"]) == (rate, None)
    assert report["systems"] == found.systems
    assert report["versions"] == records.library_versions()
    [record] = events(run, "evaluate")
    assert record["systems"] == found.systems
    assert record["config"] == report["config"]


def test_harm_is_judged_by_a_reward_above_zero(run: Path, pairs_file: str, vowels: Any) -> None:
    spec = "rewards_of_test_jobs:many"
    options = {**EVALUATE, "data": pairs_file, "limit": 5, "agent": str(run), "harmful": spec}
    found = evaluate.evaluate(None, None, options)
    for name, given in found.comparison.answers.items():
        counts = vowels([answer.completion for answer in given])
        assert [answer.harmful for answer in given] == [count > 6 for count in counts]
        assert found.systems[name]["harmful share"] == sum(count > 6 for count in counts) / 5
    assert found.comparison.config["facts"] == {"reward": [f"pairs:{pairs_file}"], "harmful": spec}


@pytest.mark.slow
def test_an_interrupted_evaluation_goes_on_in_its_folder(
    run: Path, pairs_file: str, vowels: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ["rewards_of_test_jobs:vowels"]
    options = {**EVALUATE, "data": pairs_file, "limit": 11, "agent": str(run), "reward": spec, "batch_size": 1}
    whole = evaluate.evaluate(None, None, options)
    calls = iter(range(3))

    def failing(completions: list[str]) -> list[float]:
        next(calls)
        return list(vowels(completions))

    failing.__name__ = "vowels"
    failing.version = "1"  # type: ignore[attr-defined]
    monkeypatch.setattr("rewards_of_test_jobs.vowels.version", "1", raising=False)
    with monkeypatch.context() as context:
        context.setattr("rewards_of_test_jobs.vowels", failing)
        with pytest.raises(RewardError, match="The reward function .* failed with StopIteration"):
            evaluate.evaluate(None, tmp_path / "kept", options)
    done = {file.name: file.read_bytes() for file in (tmp_path / "kept" / "answers").iterdir()}
    assert {name: content.count(b"\n") for name, content in done.items()} == {"plain.jsonl": 8, "MARA.jsonl": 4}
    assert [event["event"] for event in events(run, "evaluate")] == ["evaluated"]
    again = evaluate.evaluate(None, tmp_path / "kept", options)
    texts = [[answer.completion for answer in given] for given in again.comparison.answers.values()]
    assert texts == [[answer.completion for answer in given] for given in whole.comparison.answers.values()]
    assert all((tmp_path / "kept" / "answers" / name).read_bytes().startswith(done[name]) for name in done)
    with pytest.raises(TrainingError, match="kept holds another comparison; different: prompts.count"):
        evaluate.evaluate(None, tmp_path / "kept", {**options, "limit": 3})


def test_prompts_may_stand_in_any_column(run: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "questions.jsonl", [{"query": "How do I boil an egg?", "prompt": "x"}])
    options = {**EVALUATE, "data": file, "agent": str(run), "prompt_column": "query"}
    assert evaluate.evaluate(None, None, options).comparison.prompts == ["How do I boil an egg?"]


@pytest.mark.slow
def test_what_is_not_said_comes_from_the_run(
    tmp_path: Path, pairs: Rows, pairs_file: str, vowels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollouts = tmp_path / "rollouts"
    label.label(rollouts, {**ROLLOUTS, "data": pairs_file, "limit": 4, "model": str(DEMO_MODEL_FOLDER)})
    tiny_agent(192).save_pretrained(rollouts / "agent")
    options = {**EVALUATE, "data": pairs_file, "limit": 4, "agent": str(rollouts), "max_new_tokens": None}
    options["reward"] = ROLLOUTS["reward"]
    with monkeypatch.context() as context:
        context.setattr(MaraLLM, "demo", None)
        found = evaluate.evaluate(None, None, options)
    config = events(rollouts, "evaluate")[0]["config"]
    assert {name: config[name] for name in ("top_k", "top_p", "max_new_tokens", "reward", "reward_weight")} == {
        name: ROLLOUTS[name] for name in ("top_k", "top_p", "max_new_tokens", "reward", "reward_weight")
    }
    assert config["model"] == str(DEMO_MODEL_FOLDER)
    llm = MaraLLM.demo(agent=None, device="cpu", top_k=10, top_p=0.9, max_new_tokens=6)
    by_hand = decode_system(llm, pairs[:4], vowels, "")
    assert found.systems["plain"]["mean reward"] == 2 * by_hand.mean_reward > 0
    # What is said counts.
    evaluate.evaluate(None, None, {**options, "reward_weight": [3.0], "top_k": 1, "max_new_tokens": 2})
    config = events(rollouts, "evaluate")[1]["config"]
    assert (config["top_k"], config["max_new_tokens"], config["reward_weight"]) == (1, 2, [3.0])
    # The agent alone is scored by other rewards.
    said = {"reward": [f"pairs:{pairs_file}"], "agent": str(rollouts / "agent"), "max_new_tokens": 2}
    other = evaluate.evaluate(None, None, {**options, **said})
    assert other.title == "4 prompts, by PreferenceReward"


@pytest.mark.parametrize(("threshold", "steered"), [(0.5, True), (0.0, False)])
def test_the_threshold_decides_what_is_accepted(run: Path, pairs_file: str, threshold: float, steered: bool) -> None:
    options = {**EVALUATE, "data": pairs_file, "limit": 4, "agent": str(run), "threshold": threshold}
    evaluate.evaluate(run / "report.json", None, options)
    answers = [load["completions"] for load in json.loads((run / "report.json").read_text())["answers"]]
    assert any(answer["plain"] != answer["MARA"] for answer in answers) is steered


@pytest.mark.usefixtures("vowels")
def test_an_agent_without_a_run_needs_to_be_told_the_reward(run: Path, pairs_file: str) -> None:
    options = {**EVALUATE, "data": pairs_file, "limit": 2, "agent": str(run / "agent")}
    with pytest.raises(OptionsError, match="Choose what scores the answers"):
        evaluate.evaluate(None, None, options)
    found = evaluate.evaluate(None, None, {**options, "reward": ["rewards_of_test_jobs:vowels"]})
    assert found.title == "2 prompts, by vowels"
    assert found.systems["MARA"]["mean reward"] > 0
    with pytest.raises(CheckpointError, match="There is no folder ./nowhere"):
        evaluate.evaluate(None, None, {**options, "agent": "./nowhere", "reward": ["rewards_of_test_jobs:vowels"]})
