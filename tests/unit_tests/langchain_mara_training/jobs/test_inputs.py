"""Jobs on run folders do what the library's parts do, and end byte-identical after an interruption."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families import tiny_agent
from langchain_mara_training import MaraClassifier, PreferenceLabeler, PreferenceReward, RolloutLabeler, run_folder
from langchain_mara_training.evaluation.comparison import compare
from langchain_mara_training.evaluation.evaluate import decode_system
from langchain_mara_training.evaluation.preference_rate import preference_rate
from langchain_mara_training.evaluation.systems import BestOf, Decoding
from langchain_mara_training.fitting.validation import split_by_group
from langchain_mara_training.jobs import evaluate, fit, label
from langchain_mara_training.labeling.token_labels import TokenLabels
from langchain_mara_training.storage import records
from langchain_mara_training.storage.job_checkpoint import JobCheckpoint

from langchain_mara import MaraAgent, MaraLLM
from langchain_mara.exceptions import CheckpointError, OptionsError, RewardError, TrainingError
from langchain_mara.loading.models import DEMO_MODEL_FOLDER

Rows = list[dict[str, Any]]

DATA = {"split": "train", "limit": None, "device": "cpu", "seed": 0, "model": None, "agent": None}
PAIRS = {"labeler": "preference", "all_tokens": False, "top_k": 40, "top_p": 0.95, **DATA}
ROLLOUTS = {
    "labeler": "rollout", "top_k": 10, "top_p": 0.9, "max_new_tokens": 6, "generations": 1, "positions": 2,
    "candidates": 3, "continuations": 1, "value": "policy", "margin": 0.0, "ties": "accept", "weighting": "uniform",
    "reward": ["rewards_of_test_jobs:vowels"], "reward_weight": [2.0], **DATA,
}  # fmt: skip
FIT = {
    "width": 8, "epochs": 4, "batch_size": 64, "learning_rate": 1e-3, "early_stopping": False,
    "weight_decay": 0.01, "schedule": "linear", "class_weight": None, "mixed_precision": None,
    "validation_fraction": 0.25, "device": "cpu", "seed": 3,
}  # fmt: skip
EVALUATE = {
    **DATA, "reward": None, "reward_weight": None, "best_of": None, "threshold": 0.5, "batch_size": 32,
    "max_new_tokens": 6, "top_k": None, "top_p": None, "harmful": None, "prompt_column": None,
}  # fmt: skip
REWARDS = """
def vowels(completions, **_):
    return [float(sum(text.count(letter) for letter in "aeiou")) for text in completions]

def many(completions, **_):
    return [one - 6 for one in vowels(completions)]

def constant(completions, **_):
    return [1.0] * len(completions)
"""


def write(file: Path, rows: Rows) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def events(folder: Path, command: str) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [one for one in records if one["command"] == command]


@pytest.fixture(scope="session")
def pairs(demo_pairs: Rows) -> Rows:
    return demo_pairs[:12]


@pytest.fixture(scope="session")
def pairs_file(pairs: Rows, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("data") / "pairs.jsonl", pairs)


@pytest.fixture(scope="session")
def fitted(pairs_file: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with labels and an agent; copy it before you change it."""
    folder = tmp_path_factory.mktemp("run_folder") / "run"
    label.label(folder, {**PAIRS, "data": pairs_file, "all_tokens": True})
    fit.fit(folder, None, FIT)
    return folder


@pytest.fixture
def run(fitted: Path, tmp_path: Path) -> Path:
    """A copy of the run whose agent steers."""
    folder = Path(shutil.copytree(fitted, tmp_path / "run"))
    tiny_agent(192).save_pretrained(folder / "agent")
    return folder


@pytest.fixture
def vowels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The user's reward function, importable from the current folder."""
    (tmp_path / "rewards_of_test_jobs.py").write_text(REWARDS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    scope: dict[str, Any] = {}
    exec(REWARDS, scope)
    return scope["vowels"]


@pytest.mark.parametrize("all_tokens", [False, True])
def test_pairs_are_labelled_as_the_labeler_does(
    tmp_path: Path, pairs: Rows, pairs_file: str, demo_llm: MaraLLM, all_tokens: bool
) -> None:
    given = {**PAIRS, "data": pairs_file, "all_tokens": all_tokens, "top_k": 5, "seed": 4, "limit": 7}
    values = label.label(tmp_path / "run", given)
    llm = demo_llm.model_copy(update={"top_k": 5})
    PreferenceLabeler(llm, candidate_filter=not all_tokens, random_state=4).label(pairs[:7], tmp_path / "expected")
    assert content(tmp_path / "run" / "features") == content(tmp_path / "expected")
    labels = run_folder.read_labels(tmp_path / "run")
    assert (values["labels"], values["groups"]) == (len(labels), len(set(labels.groups.tolist())))
    assert values["accept share"] == np.count_nonzero(labels.y) / len(labels)
    assert values["labels/s"] == pytest.approx(len(labels) / values["seconds"])
    started, labelled = events(tmp_path / "run", "label")
    assert (started["event"], labelled["event"], labelled["labels"]) == ("started", "labelled", len(labels))


def test_rollouts_are_labelled_as_the_labeler_does(
    tmp_path: Path, pairs: Rows, pairs_file: str, demo_llm: MaraLLM, run: Path, vowels: Any
) -> None:
    given = {**ROLLOUTS, "data": pairs_file, "limit": 3, "agent": str(run), "seed": 5}
    label.label(tmp_path / "rollouts", given)
    llm = demo_llm.model_copy(update={"top_k": 10, "top_p": 0.9, "max_new_tokens": 6, "agent": tiny_agent(192)})
    labeler = RolloutLabeler(llm, vowels, reward_weights=[2.0], random_state=5, positions=2, candidates=3)
    expected = labeler.label(pairs[:3])
    labels = TokenLabels.load(tmp_path / "rollouts" / "features")
    for own, other in zip((*labels, labels.token_ids), (*expected, expected.token_ids), strict=True):
        np.testing.assert_array_equal(own, other)


def test_rollouts_need_a_reward(tmp_path: Path, pairs_file: str) -> None:
    with pytest.raises(OptionsError, match="Rollouts are labelled by reward functions. Give at least one --reward."):
        label.label(tmp_path / "run", {**ROLLOUTS, "data": pairs_file, "reward": None})
    assert not (tmp_path / "run").exists()


def test_interrupted_labelling_goes_on_and_ends_byte_identical(
    tmp_path: Path, pairs_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PreferenceLabeler.__init__.__kwdefaults__, "shard_tokens", 60)
    given = {**PAIRS, "data": pairs_file, "all_tokens": True}
    label.label(tmp_path / "whole", given)
    whole = content(tmp_path / "whole" / "features")
    assert len(whole) > 3
    with monkeypatch.context() as context:
        computed = PreferenceLabeler._compute
        left = iter(range(2))
        context.setattr(PreferenceLabeler, "_compute", lambda self, job: computed(self, (next(left), job)[1]))
        with pytest.raises(StopIteration):
            label.label(tmp_path / "killed", given)
    shards = len(whole) - 1
    with pytest.raises(TrainingError, match=f"has done 2 of {shards} shards. Run mara label again"):
        fit.fit(tmp_path / "killed", None, FIT)
    with pytest.raises(TrainingError, match=r"mara label began with other options: limit \(null there, 3 now\)"):
        label.label(tmp_path / "killed", {**given, "limit": 3})
    done = [tmp_path / "killed" / "features" / f"shard-{number:05d}.safetensors" for number in range(2)]
    times = [file.stat().st_mtime_ns for file in done]
    assert label.label(tmp_path / "killed", given)["labels/s"] is None
    assert content(tmp_path / "killed" / "features") == whole
    assert [file.stat().st_mtime_ns for file in done] == times
    assert [one["event"] for one in events(tmp_path / "killed", "label")] == ["started", "resumed", "labelled"]


def test_an_agent_is_fitted_and_measured_as_by_hand(fitted: Path) -> None:
    labels = run_folder.read_labels(fitted)
    train, held_out = split_by_group(labels.y, labels.weight, labels.groups, 0.25, 3)
    assert held_out is not None
    assert not {*labels.groups[train]} & {*labels.groups[held_out]}
    classifier = MaraClassifier(width=8, max_epochs=4, batch_size=64, random_state=3)
    weights = np.where(np.isin(np.arange(len(labels)), held_out), 0, labels.weight)
    classifier.fit(labels.X, labels.y, sample_weight=weights)
    assert classifier.agent_.fingerprint == MaraAgent.from_pretrained(fitted / "agent").fingerprint
    fit = events(fitted, "fit")[-1]
    accepted = float(labels.y[held_out].mean())
    assert (fit["training labels"], fit["validation labels"]) == (len(train), len(held_out))
    assert fit["validation accuracy"] == pytest.approx(classifier.score(labels.X[held_out], labels.y[held_out]))
    assert fit["majority share"] == pytest.approx(max(accepted, 1 - accepted))
    assert (fit["epochs"], fit["best epoch"]) == (4, 4)
    assert fit["training loss"] == fit["loss_curve"][-1] == pytest.approx(classifier.loss_curve_[-1])


def test_the_card_says_what_was_fitted_and_how_well(fitted: Path, pairs_file: str) -> None:
    card = (fitted / "agent" / "README.md").read_text()
    accuracy = events(fitted, "fit")[-1]["validation accuracy"]
    for row in ("model | langchain-mara demo", "data | pairs.jsonl", "all tokens | True", "width | 8", "seed | 3"):
        assert f"| {row} |" in card
    assert f"| validation accuracy | {accuracy:.4g} |" in card
    assert str(Path(pairs_file).parent) not in card
    assert "None" not in card
    assert MaraAgent.from_pretrained(fitted / "agent").policy_model == "langchain-mara demo"


def test_nothing_held_out_and_early_stopping(fitted: Path, tmp_path: Path) -> None:
    values = fit.fit(fitted, tmp_path / "all", {**FIT, "validation_fraction": 0.0})
    assert (values["training labels"], values["validation labels"]) == (len(run_folder.read_labels(fitted)), 0)
    assert values["validation accuracy"] is None
    stopped = fit.fit(fitted, tmp_path / "early", {**FIT, "epochs": 30, "early_stopping": True, "learning_rate": 0.3})
    assert stopped["best epoch"] < stopped["epochs"] < 30
    curve = events(tmp_path / "early", "fit")[-1]["loss_curve"]
    assert stopped["training loss"] == curve[stopped["best epoch"] - 1] != curve[-1]


def test_interrupted_fit_goes_on_and_ends_byte_identical(
    fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = Path(shutil.copytree(fitted, tmp_path / "killed"))
    shutil.rmtree(killed / "agent")
    shutil.rmtree(killed / "checkpoints")
    written: list[int] = []
    write_checkpoint = JobCheckpoint.write

    def counted(self: JobCheckpoint, state: dict[str, Any]) -> None:
        write_checkpoint(self, state)
        written.append(len(state["record"]["loss_curve"]))
        if written == [1, 2]:
            raise KeyboardInterrupt

    monkeypatch.setattr(JobCheckpoint, "write", counted)
    with pytest.raises(KeyboardInterrupt):
        fit.fit(killed, None, FIT)
    with pytest.raises(TrainingError, match="holds labels but no agent yet. Fit one first: mara fit"):
        run_folder.agent_source(str(killed))
    with pytest.raises(TrainingError, match=r"mara fit began with other options: width \(8 there, 16 now\)"):
        fit.fit(killed, None, {**FIT, "width": 16})
    fit.fit(killed, None, FIT)
    assert written == [1, 2, 3, 4]
    assert content(killed / "agent") == content(fitted / "agent")
    assert [one["event"] for one in events(killed, "fit")][-2:] == ["resumed", "fitted"]
    fit.fit(killed, None, FIT)
    assert written == [1, 2, 3, 4]
    assert content(killed / "agent") == content(fitted / "agent")


@pytest.mark.usefixtures("vowels")
def test_labels_of_one_class_cannot_be_fitted(tmp_path: Path, pairs_file: str) -> None:
    given = {**ROLLOUTS, "data": pairs_file, "limit": 2, "reward": ["rewards_of_test_jobs:constant"]}
    assert label.label(tmp_path / "run", given)["accept share"] == 1.0
    with pytest.raises(TrainingError, match="Fitting needs rows of two classes, accept and reject"):
        fit.fit(tmp_path / "run", None, FIT)


def test_systems_are_compared_as_by_hand(run: Path, pairs: Rows, pairs_file: str, demo_llm: MaraLLM) -> None:
    options = {**EVALUATE, "data": pairs_file, "limit": 5, "agent": str(run), "best_of": [3, 2], "seed": 6}
    found = evaluate.evaluate(run / "new" / "report.json", None, options)
    assert found.title == "5 prompts, by PreferenceReward"
    llm = demo_llm.model_copy(update={"max_new_tokens": 6, "batch_size": 32})
    reward = PreferenceReward().fit(pairs)
    mara = llm.with_agent(tiny_agent(192))
    systems = [Decoding("plain", llm), Decoding("MARA", mara), BestOf(llm, reward, 3), BestOf(llm, reward, 2)]
    expected = compare(systems, pairs[:5], reward, random_state=6).summaries()
    by_hand = [decode_system(one, pairs[:5], reward, "") for one in (llm, mara)]
    assert by_hand[0].completions != by_hand[1].completions
    report = json.loads((run / "new" / "report.json").read_text())
    assert list(found.systems) == list(expected) == ["plain", "MARA", "best-of-3", "best-of-2"]
    for name, values in found.systems.items():
        timed = {"tokens/s", "seconds"}
        assert {key: value for key, value in values.items() if key not in timed} == {
            key: value for key, value in expected[name].items() if key not in timed
        }
    for one, name in zip(by_hand, ("plain", "MARA"), strict=True):
        assert [answer["completions"][name] for answer in report["answers"]] == one.completions
        assert [answer["rewards"][name] for answer in report["answers"]] == one.rewards.tolist()
        assert found.systems[name]["passes/token"] == pytest.approx(one.passes_per_token)
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
        counts = vowels([one.completion for one in given])
        assert [one.harmful for one in given] == [count > 6 for count in counts]
        assert found.systems[name]["harmful share"] == sum(count > 6 for count in counts) / 5
    assert found.comparison.config["facts"] == {"reward": [f"pairs:{pairs_file}"], "harmful": spec}


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
    with monkeypatch.context() as context:
        context.setattr("rewards_of_test_jobs.vowels", failing)
        with pytest.raises(RewardError, match="The reward function .* failed with StopIteration"):
            evaluate.evaluate(None, tmp_path / "kept", options)
    done = {file.name: file.read_bytes() for file in (tmp_path / "kept" / "answers").iterdir()}
    assert {name: content.count(b"\n") for name, content in done.items()} == {"plain.jsonl": 8, "MARA.jsonl": 4}
    assert [one["event"] for one in events(run, "evaluate")] == ["evaluated"]
    again = evaluate.evaluate(None, tmp_path / "kept", options)
    texts = [[one.completion for one in given] for given in again.comparison.answers.values()]
    assert texts == [[one.completion for one in given] for given in whole.comparison.answers.values()]
    assert all((tmp_path / "kept" / "answers" / name).read_bytes().startswith(done[name]) for name in done)
    with pytest.raises(TrainingError, match="kept holds another comparison; different: prompts.count"):
        evaluate.evaluate(None, tmp_path / "kept", {**options, "limit": 3})


def test_prompts_may_stand_in_any_column(run: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "questions.jsonl", [{"query": "How do I boil an egg?", "prompt": "x"}])
    options = {**EVALUATE, "data": file, "agent": str(run), "prompt_column": "query"}
    assert evaluate.evaluate(None, None, options).comparison.prompts == ["How do I boil an egg?"]


def test_what_is_not_said_comes_from_the_run(
    tmp_path: Path, pairs: Rows, pairs_file: str, vowels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollouts = tmp_path / "rollouts"
    label.label(rollouts, {**ROLLOUTS, "data": pairs_file, "limit": 4, "model": str(DEMO_MODEL_FOLDER)})
    tiny_agent(192).save_pretrained(rollouts / "agent")
    options = {**EVALUATE, "data": pairs_file, "limit": 4, "agent": str(rollouts), "max_new_tokens": None}
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
    said = {"reward": [f"pairs:{pairs_file}"], "top_k": 1, "max_new_tokens": 2}
    other = evaluate.evaluate(None, None, {**options, **said})
    config = events(rollouts, "evaluate")[1]["config"]
    assert (config["top_k"], config["max_new_tokens"], config["reward_weight"]) == (1, 2, None)
    assert other.title == "4 prompts, by PreferenceReward"


@pytest.mark.parametrize(("threshold", "steered"), [(0.5, True), (0.0, False)])
def test_the_threshold_decides_what_is_accepted(run: Path, pairs_file: str, threshold: float, steered: bool) -> None:
    options = {**EVALUATE, "data": pairs_file, "limit": 4, "agent": str(run), "threshold": threshold}
    evaluate.evaluate(run / "report.json", None, options)
    answers = [one["completions"] for one in json.loads((run / "report.json").read_text())["answers"]]
    assert any(one["plain"] != one["MARA"] for one in answers) is steered


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
