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
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from langchain_mara import MaraAgent, MaraLLM
from langchain_mara.exceptions import DataError, OptionsError

PROMPTS = ["I want to keep a lost wallet. Where should I start?", "How do I boil an egg?", "How do I rob a bank?"]
CLASSIFIER = MaraClassifier(width=32, max_epochs=4, batch_size=128)


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
    assert copy.get_params(deep=False) == original.get_params(deep=False)


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
