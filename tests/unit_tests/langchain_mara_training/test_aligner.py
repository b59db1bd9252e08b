"""MaraAligner aligns, round by round, the same way for the same seed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from langchain_mara_training.aligner import MaraAligner
from langchain_mara_training.fitting.classifier import MaraClassifier
from langchain_mara_training.labeling.preference import PreferenceLabeler
from langchain_mara_training.storage.callbacks import JobCallback, JobProgress
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV

from langchain_mara import MaraAgent, MaraLLM
from langchain_mara.exceptions import DataError, OptionsError

PROMPTS = ["I want to keep a lost wallet. Where should I start?", "How do I boil an egg?", "How do I rob a bank?"]
CLASSIFIER = MaraClassifier(width=32, max_epochs=4, batch_size=128, dropout=0, input_dropout=0, early_stopping=False)


def fewer_letters(completions: list[str], **_: Any) -> list[float]:
    """A reward that the plain model does not seek."""
    return [-float(len(completion)) for completion in completions]


def aligner(llm: MaraLLM, *args: Any, **kwargs: Any) -> MaraAligner:
    return MaraAligner(llm, *args, **{"classifier": CLASSIFIER, **kwargs})


def same(one: MaraAgent, other: MaraAgent) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.slow
def test_preference_labels_raise_the_reward_of_held_out_prompts(demo_llm: MaraLLM, demo_pairs: list[Any]) -> None:
    held_out, pairs = demo_pairs[::6], [pair for i, pair in enumerate(demo_pairs) if i % 6]
    fitted = aligner(demo_llm, rounds=1).fit(pairs)
    plain = aligner(demo_llm, rounds=1)
    plain.rewards_, plain.llm_, plain.agent_ = fitted.rewards_, demo_llm, fitted.agent_
    assert fitted.score(held_out) > plain.score(held_out) + 1
    assert fitted.predict(held_out) == fitted.llm_.batch([pair["prompt"] for pair in held_out])
    assert fitted.agent_.policy_model == demo_llm.model_id


@pytest.mark.slow
def test_rounds_go_on_with_the_new_agent(demo_llm: MaraLLM) -> None:
    options: dict[str, Any] = {"labeler": "rollout", "rounds": 2, "labeler_options": {"positions": 6}}
    fitted = aligner(demo_llm, fewer_letters, **options).fit(PROMPTS)
    assert [entry["round"] for entry in fitted.history_] == [1, 2]
    plain = np.mean(fewer_letters(demo_llm.batch(PROMPTS)))
    assert fitted.history_[-1]["mean_reward"] == fitted.score(PROMPTS) > plain
    again = aligner(demo_llm, fewer_letters, **options).fit(PROMPTS)
    assert same(fitted.agent_, again.agent_)
    once = aligner(demo_llm, fewer_letters, **{**options, "rounds": 1}).fit(PROMPTS)
    assert not same(once.agent_, again.agent_)
    other = aligner(demo_llm, fewer_letters, random_state=1, **{**options, "rounds": 1}).fit(PROMPTS)
    assert not same(once.agent_, other.agent_)


@pytest.mark.slow
def test_later_rounds_of_preference_draw_their_own_pairs(
    demo_llm: MaraLLM, demo_pairs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    label = PreferenceLabeler.label
    monkeypatch.setattr(
        PreferenceLabeler, "label", lambda self, rows, *args: (seen.append(rows), label(self, rows, *args))[1]
    )
    pairs = demo_pairs[:12]
    fitted = aligner(demo_llm, fewer_letters, rounds=2).fit([*pairs, *pairs])
    first, drawn = seen
    assert first == [*pairs, *pairs]
    assert 0 < len(drawn) <= len(pairs)
    assert all(len(answer["chosen"]) < len(answer["rejected"]) for answer in drawn)
    assert {answer["prompt"] for answer in drawn} <= {pair["prompt"] for pair in pairs}
    assert fitted.history_[1]["labels"] > 0


@pytest.mark.slow
def test_a_fit_goes_on_in_its_folder(demo_llm: MaraLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"labeler": "rollout", "rounds": 2}
    whole = aligner(demo_llm, fewer_letters, output=tmp_path / "whole", **options).fit(PROMPTS)
    fit = MaraClassifier.fit
    calls: list[int] = []

    def killed_in_the_second_round(self: MaraClassifier, *args: Any, **kwargs: Any) -> MaraClassifier:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return fit(self, *args, **kwargs)

    resumed = aligner(demo_llm, fewer_letters, output=tmp_path / "resumed", **options)
    with monkeypatch.context() as patch:
        patch.setattr(MaraClassifier, "fit", killed_in_the_second_round)
        with pytest.raises(KeyboardInterrupt):
            resumed.fit(PROMPTS)
    written = {file: file.stat().st_mtime_ns for file in (tmp_path / "resumed").rglob("*.safetensors")}
    seconds = json.loads((tmp_path / "resumed" / "round-1" / "history.json").read_text())["label_seconds"]
    assert same(resumed.fit(PROMPTS).agent_, whole.agent_)
    # Of the round that was done, what it took then, not what looking it up takes.
    assert [resumed.history_[0][name] for name in ("label_seconds", "round")] == [seconds, 1]
    assert [entry["mean_reward"] for entry in resumed.history_] == [entry["mean_reward"] for entry in whole.history_]
    labels = {file for file in written if "labels" in file.parts}
    assert labels
    assert all(file.stat().st_mtime_ns == written[file] for file in labels)
    folder = tmp_path / "resumed" / "round-2" / "agent"
    assert same(MaraAgent.from_pretrained(folder), whole.agent_)
    labels_of_both = sum(entry["labels"] for entry in whole.history_)
    card = (folder / "README.md").read_text()
    assert f"| labeler | rollout |\n| round | 2 |\n| labels | {labels_of_both} |\n" in card
    assert f"| width | {whole.classifier_.width} |" in card
    assert str(tmp_path) not in card


def test_clones_share_the_model(demo_llm: MaraLLM) -> None:
    original = aligner(demo_llm, fewer_letters, rounds=2)
    copy = clone(original)
    assert copy is not original
    assert copy.llm is demo_llm
    parameters, copied = original.get_params(), copy.get_params()
    assert parameters.pop("classifier") is not copied.pop("classifier")
    assert parameters == copied


def test_clones_have_a_classifier_of_their_own(demo_llm: MaraLLM) -> None:
    """Clones once shared it, so a grid search set the parameters of all of them."""
    original = aligner(demo_llm, fewer_letters, labeler_options={"positions": [6]})
    copy = clone(original).set_params(classifier__learning_rate=0.5)
    assert copy.classifier is not original.classifier
    assert (copy.classifier.learning_rate, original.classifier.learning_rate) == (0.5, CLASSIFIER.learning_rate)
    copy.labeler_options["positions"].append(7)
    assert original.labeler_options == {"positions": [6]}


def test_nested_parameters_are_those_of_scikit_learn(demo_llm: MaraLLM) -> None:
    original = aligner(demo_llm, classifier=clone(CLASSIFIER))
    assert original.get_params()["classifier__width"] == 32
    assert "classifier__width" not in original.get_params(deep=False)
    assert original.set_params(rounds=2, classifier__width=8).classifier.width == 8
    assert MaraAligner(demo_llm).set_params(classifier__width=8).get_params()["classifier__width"] == 8
    with pytest.raises(ValueError, match="Invalid parameter 'height'"):
        original.set_params(classifier__height=8)


@pytest.mark.slow
@pytest.mark.parametrize("classifier", [CLASSIFIER, None])
def test_a_grid_search_over_the_classifier(
    demo_llm: MaraLLM, demo_pairs: list[Any], classifier: MaraClassifier | None
) -> None:
    grid = {"classifier__learning_rate": [1e-9, 1e-2], "classifier__max_epochs": [3], "classifier__width": [16]}
    base = MaraAligner(demo_llm, fewer_letters, rounds=1, classifier=classifier)
    search = GridSearchCV(base, grid, cv=2, refit=True).fit(demo_pairs[:16])
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert len(set(search.cv_results_["mean_test_score"])) == 2
    assert search.best_estimator_.classifier_.learning_rate == search.best_params_["classifier__learning_rate"]
    assert base.classifier is classifier
    assert CLASSIFIER.learning_rate == MaraClassifier().learning_rate


class Rounds(JobCallback):
    """Notes what it is told, and does something after the first round."""

    def __init__(self, action: Any = lambda _: None) -> None:
        self.events: list[tuple[str, int]] = []
        self.action = action

    def on_start(self, progress: JobProgress) -> None:
        self.events.append(("start", progress.total))

    def on_step(self, progress: JobProgress) -> None:
        assert progress.values["mean_reward"] < 0
        self.events.append((progress.job, progress.done))
        self.action(progress)

    def on_end(self, progress: JobProgress) -> None:
        self.events.append(("end", progress.done))


def refuse(_: JobProgress) -> None:
    raise ConnectionError("the tracker's server is gone")


@pytest.mark.slow
def test_callbacks_of_rounds_and_epochs(demo_llm: MaraLLM, demo_pairs: list[Any]) -> None:
    pairs = demo_pairs[:12]
    epochs, rounds = JobCallbackOfEpochs(), Rounds(JobProgress.stop)
    classifier = clone(CLASSIFIER).set_params(callbacks=[epochs])
    stopped = aligner(demo_llm, fewer_letters, classifier=classifier, rounds=3, callbacks=rounds).fit(pairs)
    assert rounds.events == [("start", 3), ("align", 1), ("end", 1)]
    assert epochs.steps == [1, 2, 3, 4]
    failed = aligner(demo_llm, fewer_letters, rounds=2, callbacks=[Rounds(refuse)])
    with pytest.raises(ConnectionError) as caught:
        failed.fit(pairs)
    assert caught.value.__notes__[-1] == "Alignment ended before 2 rounds were done; agent_ is that of round 1."
    assert same(failed.agent_, stopped.agent_)


@pytest.mark.slow
def test_callbacks_of_a_resumed_fit_hear_of_the_rounds_that_were_left(
    demo_llm: MaraLLM, demo_pairs: list[Any], tmp_path: Path
) -> None:
    stopping, later, done = Rounds(JobProgress.stop), Steps(), Steps()
    options = {"rounds": 2, "output": tmp_path}
    aligner(demo_llm, fewer_letters, callbacks=stopping, **options).fit(demo_pairs[:12])
    aligner(demo_llm, fewer_letters, callbacks=later, **options).fit(demo_pairs[:12])
    assert later.events == [("start", 1), ("step", 2), ("checkpoint", 2), ("end", 2)]
    again = aligner(demo_llm, fewer_letters, callbacks=done, **options).fit(demo_pairs[:12])
    assert done.events == [("start", 2), ("end", 2)]
    assert len(again.history_) == 2


class Steps(JobCallback):
    """Notes each event with the rounds done."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []

    def on_start(self, progress: JobProgress) -> None:
        self.events.append(("start", progress.done))

    def on_step(self, progress: JobProgress) -> None:
        self.events.append(("step", progress.done))

    def on_checkpoint(self, progress: JobProgress) -> None:
        self.events.append(("checkpoint", progress.done))

    def on_end(self, progress: JobProgress) -> None:
        self.events.append(("end", progress.done))


class JobCallbackOfEpochs(JobCallback):
    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_step(self, progress: JobProgress) -> None:
        self.steps.append(progress.done)


@pytest.mark.slow
def test_an_interrupted_first_round_leaves_what_was_fitted(demo_llm: MaraLLM, demo_pairs: list[Any]) -> None:
    class Interrupting(JobCallback):
        def on_step(self, progress: JobProgress) -> None:
            if progress.done == 3:
                raise KeyboardInterrupt

    failed = aligner(demo_llm, classifier=clone(CLASSIFIER).set_params(callbacks=[Interrupting()]))
    with pytest.raises(KeyboardInterrupt) as caught:
        failed.fit(demo_pairs[:12])
    assert "The classifier's agent_ has the weights of epoch 3" in caught.value.__notes__[-1]
    assert same(failed.agent_, failed.classifier_.agent_)
    assert len(failed.predict(PROMPTS)) == 3


@pytest.mark.parametrize(
    ("options", "data", "error", "message"),
    [
        ({"labeler": "rewards"}, PROMPTS, OptionsError, "preference or rollout"),
        ({"rounds": 0}, PROMPTS, OptionsError, "at least 1"),
        ({}, PROMPTS, DataError, "labeler='rollout'"),
        ({"labeler": "rollout"}, PROMPTS, DataError, "give reward_funcs"),
    ],
)
def test_refusals(demo_llm: MaraLLM, options: Any, data: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        aligner(demo_llm, **options).fit(data)


def test_unfitted(demo_llm: MaraLLM) -> None:
    with pytest.raises(NotFittedError):
        aligner(demo_llm).predict(PROMPTS)
