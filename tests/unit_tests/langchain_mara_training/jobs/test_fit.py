"""`mara fit` fits and measures as by hand, and ends byte-identical after an interruption."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_mara_training import MaraClassifier, run_folder
from langchain_mara_training.fitting.validation import split_by_group
from langchain_mara_training.jobs import fit, label
from langchain_mara_training.storage.job_checkpoint import JobCheckpoint
from run_folders import FIT, ROLLOUTS, content, events

from langchain_mara import MaraAgent
from langchain_mara.exceptions import TrainingError


def test_an_agent_is_fitted_and_measured_as_by_hand(fitted: Path) -> None:
    labels = run_folder.read_labels(fitted)
    train, held_out = split_by_group(labels.y, labels.weight, labels.groups, 0.25, 3)
    assert held_out is not None
    assert not {*labels.groups[train]} & {*labels.groups[held_out]}
    classifier = MaraClassifier(
        width=8, max_epochs=4, batch_size=64, learning_rate=1e-3, weight_decay=0.01, dropout=0, input_dropout=0,
        random_state=3,
    )  # fmt: skip
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
    assert [event["event"] for event in events(killed, "fit")][-2:] == ["resumed", "fitted"]
    fit.fit(killed, None, FIT)
    assert written == [1, 2, 3, 4]
    assert content(killed / "agent") == content(fitted / "agent")


@pytest.mark.usefixtures("vowels")
def test_labels_of_one_class_cannot_be_fitted(tmp_path: Path, pairs_file: str) -> None:
    given = {**ROLLOUTS, "data": pairs_file, "limit": 2, "reward": ["rewards_of_test_jobs:constant"]}
    assert label.label(tmp_path / "run", given)["accept share"] == 1.0
    with pytest.raises(TrainingError, match="Fitting needs rows of two classes, accept and reject"):
        fit.fit(tmp_path / "run", None, FIT)
