"""Callbacks of MaraClassifier, and what is left of a fit that fails: job callbacks, skorch's, errors, Ctrl-C."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_mara_training.fitting import net as network
from langchain_mara_training.fitting.classifier import MaraClassifier
from langchain_mara_training.storage.callbacks import JobCallback, JobProgress
from sklearn.base import clone
from skorch.callbacks import Callback, EarlyStopping

from langchain_mara.exceptions import OptionsError, TrainingError

X = np.random.default_rng(0).standard_normal((200, 8), dtype=np.float32)
Y = (X[:, 0] > X[:, 1]).astype(int)
SMALL = {"width": 8, "max_epochs": 4, "batch_size": 32, "learning_rate": 1e-2, "random_state": 0, "device": "cpu"}


def make(**options: Any) -> MaraClassifier:
    return MaraClassifier(**{**SMALL, "schedule": "constant", **options})


def fingerprint_after(epochs: int, **options: Any) -> str:
    return make(max_epochs=epochs, **options).fit(X, Y).agent_.fingerprint


class Recorder(JobCallback):
    """Notes what it is told, and does something at the end of an epoch."""

    def __init__(self, at: int = -1, action: Any = None) -> None:
        self.events: list[tuple[str, int]] = []
        self.at, self.action = at, action
        self.error: BaseException | None = None

    def on_start(self, progress: JobProgress) -> None:
        assert (progress.job, progress.unit, progress.total) == ("fit", "epochs", 4)
        self.events.append(("start", progress.done))

    def on_step(self, progress: JobProgress) -> None:
        self.events.append(("step", progress.done))
        self.losses = dict(progress.values)
        if progress.done == self.at:
            self.action(progress)

    def on_checkpoint(self, progress: JobProgress) -> None:
        self.events.append(("checkpoint", progress.done))

    def on_end(self, progress: JobProgress) -> None:
        self.events.append(("end", progress.done))
        self.error = progress.error


def refuse(_: Any) -> None:
    raise ConnectionError("the tracker's server is gone")


def interrupt(_: Any) -> None:
    raise KeyboardInterrupt


def test_job_callbacks_hear_of_every_epoch(tmp_path: Path) -> None:
    recorder = Recorder()
    fitted = make(callbacks=recorder, early_stopping=True, n_iter_no_change=9).fit(X, Y)
    assert recorder.events == [("start", 0), *(("step", epoch) for epoch in (1, 2, 3, 4)), ("end", 4)]
    assert recorder.losses == {"train_loss": fitted.loss_curve_[-1], "valid_loss": fitted.validation_curve_[-1]}
    kept = Recorder()
    make(callbacks=[kept], checkpoint_dir=tmp_path).fit(X, Y)
    assert kept.events[:3] == [("start", 0), ("step", 1), ("checkpoint", 1)]
    finished = Recorder()
    make(callbacks=[finished], checkpoint_dir=tmp_path).fit(X, Y)
    assert finished.events == [("start", 4), ("end", 4)]


def test_a_job_callback_stops_the_fit() -> None:
    stopped = make(callbacks=[Recorder(2, JobProgress.stop)]).fit(X, Y)
    assert stopped.n_iter_ == 2
    assert stopped.agent_.fingerprint == fingerprint_after(2)


def test_early_stopping_of_skorch_stops_the_fit() -> None:
    stopper = EarlyStopping(monitor="train_loss", patience=1, threshold=10.0, threshold_mode="abs")
    stopped = make(callbacks=[("mine", stopper)]).fit(X, Y)
    assert stopped.n_iter_ == 2
    assert stopped.agent_.fingerprint == fingerprint_after(2)


def test_a_stopped_job_goes_on_without_the_callback(tmp_path: Path) -> None:
    make(callbacks=[Recorder(2, JobProgress.stop)], checkpoint_dir=tmp_path).fit(X, Y)
    assert make(checkpoint_dir=tmp_path).fit(X, Y).agent_.fingerprint == fingerprint_after(4)


class AtEpoch(Callback):
    """skorch's kind of callback; does something when the third epoch ends."""

    def __init__(self, action: Any) -> None:
        self.action = action
        self.told: list[str] = []

    def on_train_begin(self, net: Any, **_: Any) -> None:
        self.told.append("begin")

    def on_train_end(self, net: Any, **_: Any) -> None:
        self.told.append("end")

    def on_epoch_end(self, net: Any, **_: Any) -> None:
        self.told.append(f"{net.history[-1, 'train_loss']:.3f}")
        if len(net.history) == 3:
            self.action(net)


def test_callbacks_of_skorch_are_told_as_by_skorch() -> None:
    callback = AtEpoch(lambda _: None)
    fitted = make(callbacks=[callback]).fit(X, Y)
    assert callback.told == ["begin", *(f"{loss:.3f}" for loss in fitted.loss_curve_), "end"]


@pytest.mark.parametrize("callback", [Recorder(3, refuse), AtEpoch(refuse)], ids=["job", "skorch"])
def test_a_callback_that_raises_loses_no_epoch(callback: Any, tmp_path: Path) -> None:
    failed = make(callbacks=[callback], checkpoint_dir=tmp_path)
    with pytest.raises(ConnectionError) as caught:
        failed.fit(X, Y)
    assert any(f"The callback {type(callback).__name__} raised this in" in note for note in caught.value.__notes__)
    assert (
        caught.value.__notes__[-1]
        == "Fitting ended after 3 of 4 epochs. The classifier's agent_ has the weights of epoch 3."
    )
    assert failed.agent_.fingerprint == fingerprint_after(3)
    assert make(checkpoint_dir=tmp_path).fit(X, Y).agent_.fingerprint == fingerprint_after(4)


def test_a_job_callback_is_told_what_ended_the_job() -> None:
    recorder = Recorder(2, refuse)
    with pytest.raises(ConnectionError) as caught:
        make(callbacks=[recorder]).fit(X, Y)
    assert recorder.error is caught.value
    assert recorder.events[-1] == ("end", 2)


def failing_in_epoch(monkeypatch: pytest.MonkeyPatch, number: int, error: type[BaseException]) -> None:
    train_step = network.AgentNet.train_step

    def step(self: network.AgentNet, batch: Any, **options: Any) -> Any:
        if self.epoch == number - 1 and self.steps % 7 == 5:
            raise error
        return train_step(self, batch, **options)

    monkeypatch.setattr(network.AgentNet, "train_step", step)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_error_in_the_last_epoch_leaves_the_epochs_before(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        failing_in_epoch(patch, 4, error)
        failed = make()
        with pytest.raises(error) as caught:
            failed.fit(X, Y)
    assert caught.value.__notes__ == [
        "Fitting ended after 3 of 4 epochs. The classifier's agent_ has the weights of epoch 3."
    ]
    assert failed.agent_.fingerprint == fingerprint_after(3)
    assert len(failed.loss_curve_) == failed.n_iter_ == 3
    assert failed.predict(X).shape == (200,)


def test_an_error_leaves_the_best_epoch_of_those_before(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"early_stopping": True, "learning_rate": 0.3, "n_iter_no_change": 99, "calibration": None}
    with monkeypatch.context() as patch:
        failing_in_epoch(patch, 8, KeyboardInterrupt)
        failed = make(**options, max_epochs=8)
        with pytest.raises(KeyboardInterrupt):
            failed.fit(X, Y)
    assert failed.best_epoch_ == int(np.argmin(failed.validation_curve_)) + 1 < 7
    assert failed.agent_.fingerprint == fingerprint_after(failed.best_epoch_, **options)


def test_an_error_in_the_first_epoch_leaves_no_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    failing_in_epoch(monkeypatch, 1, KeyboardInterrupt)
    failed = make()
    with pytest.raises(KeyboardInterrupt) as caught:
        failed.fit(X, Y)
    assert not hasattr(failed, "agent_")
    assert not hasattr(caught.value, "__notes__")


class AtOnce(Callback):
    def on_batch_end(self, net: Any, **_: Any) -> None:
        raise KeyboardInterrupt


def test_a_stop_in_the_first_epoch_is_an_error() -> None:
    with pytest.raises(TrainingError, match="before the first epoch had ended"):
        make(callbacks=[AtOnce]).fit(X, Y)


@pytest.mark.parametrize(("callback", "what"), [(Recorder, "a class"), (print, "without on_start")])
def test_what_is_no_callback_is_refused(callback: Any, what: str) -> None:
    with pytest.raises(OptionsError, match=f"is {what}.*inherits from JobCallback"):
        make(callbacks=[callback]).fit(X, Y)


def test_clones_have_callbacks_of_their_own() -> None:
    original = make(callbacks=[Recorder()])
    clone(original).fit(X, Y)
    assert original.callbacks[0].events == []
