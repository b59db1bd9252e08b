"""`mara label` labels as the labelers do, and ends byte-identical after an interruption."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families import tiny_agent
from langchain_mara_training import PreferenceLabeler, RolloutLabeler, run_folder
from langchain_mara_training.jobs import fit, label
from langchain_mara_training.labeling.token_labels import TokenLabels
from run_folders import FIT, PAIRS, ROLLOUTS, Rows, content, events, write

from langchain_mara import MaraLLM
from langchain_mara.exceptions import DataError, OptionsError, TrainingError


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
    assert (started["event"], labelled["event"], labelled["labels"]) == ("started", "labeled", len(labels))


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
    with pytest.raises(OptionsError, match="Rollouts are labeled by reward functions. Give at least one --reward."):
        label.label(tmp_path / "run", {**ROLLOUTS, "data": pairs_file, "reward": None})
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_interrupted_labelling_goes_on_and_ends_byte_identical(
    tmp_path: Path, pairs_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PreferenceLabeler.__init__.__kwdefaults__, "shard_tokens", 60)
    given = {**PAIRS, "data": pairs_file, "all_tokens": True}
    label.label(tmp_path / "whole", given)
    whole = content(tmp_path / "whole" / "features")
    assert len(whole) > 3
    with monkeypatch.context() as context:
        computed = PreferenceLabeler.compute
        left = iter(range(2))
        context.setattr(PreferenceLabeler, "compute", lambda self, job: computed(self, (next(left), job)[1]))
        with pytest.raises(RuntimeError, match="StopIteration"):  # what it becomes on its way through a generator
            label.label(tmp_path / "killed", given)
    shards = sum(name.endswith(".safetensors") for name in whole)
    with pytest.raises(TrainingError, match=f"has done 2 of {shards} shards. Run mara label again"):
        fit.fit(tmp_path / "killed", None, FIT)
    with pytest.raises(TrainingError, match=r"mara label began with other options: limit \(nothing there, 3 now\)"):
        label.label(tmp_path / "killed", {**given, "limit": 3})
    done = [tmp_path / "killed" / "features" / f"shard-{number:05d}.safetensors" for number in range(2)]
    times = [file.stat().st_mtime_ns for file in done]
    assert label.label(tmp_path / "killed", given)["labels/s"] is None
    assert content(tmp_path / "killed" / "features") == whole
    assert [file.stat().st_mtime_ns for file in done] == times
    assert [event["event"] for event in events(tmp_path / "killed", "label")] == ["started", "resumed", "labeled"]


@pytest.mark.usefixtures("vowels")
@pytest.mark.parametrize("labeler", ["preference", "rollout"])
def test_what_was_left_out_is_counted_and_logged(tmp_path: Path, pairs: Rows, labeler: str) -> None:
    rows = [pairs[0], {"prompt": None, "chosen": "a", "rejected": "b"}, {**pairs[1], "prompt": "egg " * 2000}, pairs[2]]
    given = {**(PAIRS if labeler == "preference" else ROLLOUTS), "too_long": "skip", "on_bad_row": "skip"}
    values = label.label(tmp_path / "run", {**given, "data": write(tmp_path / "data.jsonl", rows)})
    assert {name: values[name] for name in ("rows", "bad rows skipped", "too long, skipped", "groups")} == {
        "rows": 4, "bad rows skipped": 1, "too long, skipped": 1, "groups": 2,
    }  # fmt: skip
    (sentence,) = values[label.FIRST_BAD_ROWS]
    assert "data.jsonl, row 1: prompt" in sentence
    assert events(tmp_path / "run", "label")[-1][label.FIRST_BAD_ROWS] == [sentence]


def test_bad_data_leave_no_folder(tmp_path: Path, pairs: Rows) -> None:
    file = write(tmp_path / "data.jsonl", [*pairs[:3], {**pairs[3], "weight": -1}])
    with pytest.raises(DataError, match="data.jsonl, row 3: weight is -1"):
        label.label(tmp_path / "run", {**PAIRS, "data": file})
    assert not (tmp_path / "run").exists()
