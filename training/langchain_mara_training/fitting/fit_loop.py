"""Runs the epochs of a fitting job: early stopping, a checkpoint after each epoch, progress."""

import math
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

from skorch.callbacks import Callback
from skorch.helper import predefined_split
from torch import Tensor

from langchain_mara.agents.base import Agent
from langchain_mara_training.fitting.net import AgentNet, FittingOptions, FittingStopped
from langchain_mara_training.fitting.state_dataset import Batch, LabeledStates
from langchain_mara_training.storage.callbacks import JobCallback, JobEvents, as_callbacks, job_events
from langchain_mara_training.storage.job_checkpoint import JobCheckpoint
from langchain_mara_training.storage.lock import job_lock
from langchain_mara_training.storage.progress import progress_bar

Weights = dict[str, Tensor]


@dataclass
class FittingRecord:
    """State of a fitting job after an epoch.

    Attributes:
        weights: Weights of the agent after the last epoch; when finished, those of the best epoch.
        optimizer: State of the optimizer after the last epoch.
        loss_curve: Weighted mean training loss of each epoch.
        validation_curve: Weighted mean loss on the held-out rows after each epoch; empty without held-out rows.
        best_weights: Weights of the best epoch; None without held-out rows.
        best_epoch: Number, from 1, of the epoch with the lowest validation loss; without held-out rows, the last epoch.
        finished: Whether no epoch is left to run.
    """

    weights: Weights
    optimizer: dict[str, Any]
    loss_curve: list[float] = field(default_factory=list)
    validation_curve: list[float] = field(default_factory=list)
    best_weights: Weights | None = None
    best_epoch: int = 0
    finished: bool = False

    @classmethod
    def resumed(cls, saved: dict[str, Any] | None) -> Self:
        """The record in a checkpoint's content, or an empty one."""
        return cls({}, {}) if saved is None else cls(**saved["record"])

    @property
    def kept_weights(self) -> Weights:
        """Weights of the best epoch so far, or of the last one without held-out rows."""
        return self.weights if self.best_weights is None else self.best_weights

    @property
    def latest(self) -> dict[str, float]:
        """Losses of the last epoch, by name."""
        losses = {"train_loss": self.loss_curve[-1]}
        return {**losses, "valid_loss": self.validation_curve[-1]} if self.validation_curve else losses


class FittingProgress(Callback):  # type: ignore[misc]
    """A progress bar on standard error, with epochs, rows per second, losses and the remaining time.

    Args:
        rows: Number of training rows per epoch.
        max_epochs: Largest number of epochs.
        shown: Whether the bar is visible.
    """

    def __init__(self, rows: int, max_epochs: int, *, shown: bool) -> None:
        self.max_epochs = max_epochs
        self.bar = progress_bar("rows", shown=shown)
        self.task = self.bar.add_task(f"epoch 1/{max_epochs}", total=rows * max_epochs)
        self.rows = rows

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def on_batch_end(self, net: AgentNet, batch: Batch, training: bool, **_: Any) -> None:  # noqa: ARG002
        """Adds a training batch's rows to the bar; skorch calls this after each batch."""
        if training:
            self.bar.advance(self.task, len(batch[0]))

    def show(self, record: FittingRecord) -> None:
        """Updates the bar after an epoch."""
        epochs = len(record.loss_curve)
        text = f"epoch {epochs}/{self.max_epochs}, loss {record.loss_curve[-1]:.4f}"
        if record.validation_curve:
            text += f", held out {record.validation_curve[-1]:.4f}"
        self.bar.update(self.task, description=text, completed=self.rows * epochs)


class EpochEnd(Callback):  # type: ignore[misc]
    """Closes each epoch and writes the checkpoint, then tells job callbacks.

    As the first of the callbacks, it does so before a callback of the user can raise.

    Args:
        record: Record to add epochs to.
        checkpoint: Checkpoint to write, if any.
        progress: Progress bar.
        events: Job callbacks.
    """

    def __init__(
        self, record: FittingRecord, checkpoint: JobCheckpoint | None, progress: FittingProgress, events: JobEvents
    ) -> None:
        self.record, self.checkpoint, self.progress, self.events = record, checkpoint, progress, events

    def on_epoch_end(self, net: AgentNet, **_: Any) -> None:
        """Closes the epoch; skorch calls this after each one.

        Raises:
            FittingStopped: If a job callback asked to stop.
        """
        net.epoch += 1
        _close_epoch(net, self.record, net.options)
        self.progress.show(self.record)
        if self.checkpoint is not None:
            state = {"steps": net.steps, "scaler": net.scaler.state_dict(), "seed": net.options.seed}
            self.checkpoint.write({"record": vars(self.record), **state})
        stop = self.events.step(net.epoch, **self.record.latest)
        if self.checkpoint is not None:
            self.events.checkpoint()
        if stop:
            raise FittingStopped


def fit_agent(
    agent: Agent,
    train: LabeledStates,
    held_out: LabeledStates | None,
    options: FittingOptions,
    record: FittingRecord,
    checkpoint: JobCheckpoint | None = None,
    saved: dict[str, Any] | None = None,
    *,
    callbacks: Any = (),
    verbose: bool = False,
) -> None:
    """Fits an agent, and resumes from a checkpoint's content if there is any.

    Args:
        agent: Agent with its initial weights; it is fitted in place.
        train: Rows to learn from.
        held_out: Rows whose loss decides when to stop and which epoch's weights are kept.
        options: Settings of the job.
        record: Record of the job, empty or from `FittingRecord.resumed`; every epoch is added when it ends.
        checkpoint: Checkpoint to write after every epoch.
        saved: Content of the checkpoint to resume from.
        callbacks: Job callbacks and skorch's.
        verbose: Whether to show progress.

    Raises:
        TrainingError: If the loss is not finite, or another process works in the checkpoint's folder.
        DataError: If a state is not finite.
    """
    for_skorch, for_jobs = split_callbacks(callbacks)
    with (
        job_lock(None if checkpoint is None else checkpoint.folder),
        FittingProgress(len(train), options.max_epochs, shown=verbose) as progress,
        job_events(for_jobs, "fit", "epochs", options.max_epochs, len(record.loss_curve)) as events,
    ):
        steps = options.max_epochs * math.ceil(len(train) / options.batch_size)
        own = [("progress", progress), ("epoch_end", EpochEnd(record, checkpoint, progress, events))]
        net = AgentNet(agent, options, steps, own, for_skorch).initialize()
        net.train_split = None if held_out is None else predefined_split(held_out)
        if saved is not None:
            _resume(net, record, saved)
        if record.finished:
            return
        net.notify("on_train_begin", X=train, y=None)
        with suppress(FittingStopped):
            while not record.finished:
                net.fit_loop(train, epochs=1)
        net.notify("on_train_end", X=train, y=None)


def split_callbacks(callbacks: Any) -> tuple[list[Any], list[JobCallback]]:
    """Callbacks of skorch, as instances, classes or pairs with a name; and job callbacks.

    Args:
        callbacks: One callback, several of either kind, or None.

    Raises:
        OptionsError: If one is of neither kind.
    """
    given = list(callbacks) if isinstance(callbacks, list | tuple) else [callbacks] if callbacks is not None else []
    for_skorch = [callback for callback in given if _is_of_skorch(callback)]
    return for_skorch, as_callbacks([callback for callback in given if not _is_of_skorch(callback)])


def _is_of_skorch(callback: Any) -> bool:
    callback = callback[-1] if isinstance(callback, tuple) and callback else callback
    return isinstance(callback, Callback) or (isinstance(callback, type) and issubclass(callback, Callback))


def fit_pass(
    agent: Agent, train: LabeledStates, options: FittingOptions, epoch: int, optimizer: dict[str, Any] | None
) -> FittingRecord:
    """Fits an agent on the rows of a part of a stream once, at the options' constant learning rate.

    Args:
        agent: Agent with its weights so far; it is fitted in place.
        train: Rows to learn from.
        options: Settings of the job, with `schedule="constant"`.
        epoch: Number of earlier calls; it decides the order of the rows.
        optimizer: State of the optimizer after the previous call, to continue from.

    Raises:
        TrainingError: If the loss is not finite.
        DataError: If a state is not finite.
    """
    net = AgentNet(agent, options, total_steps=1).initialize()
    net.epoch = epoch
    if optimizer is not None:
        net.optimizer_.load_state_dict(optimizer)
    net.fit_loop(train, epochs=1)
    return FittingRecord(
        _on_cpu(net.module_.state_dict()), _on_cpu(net.optimizer_.state_dict()), [net.history[-1, "train_loss"]]
    )


def _resume(net: AgentNet, record: FittingRecord, saved: dict[str, Any]) -> None:
    net.steps, net.epoch = saved["steps"], len(record.loss_curve)
    net.scaler.load_state_dict(saved["scaler"])
    net.module_.load_state_dict(record.weights)
    net.optimizer_.load_state_dict(record.optimizer)


def _close_epoch(net: AgentNet, record: FittingRecord, options: FittingOptions) -> None:
    """Adds the latest epoch to the record, and decides whether it was the last one."""
    record.weights = _on_cpu(net.module_.state_dict())
    record.optimizer = _on_cpu(net.optimizer_.state_dict())
    record.loss_curve.append(net.history[-1, "train_loss"])
    record.finished = net.epoch >= options.max_epochs
    if net.train_split is None:
        record.best_epoch = net.epoch
        return
    loss = net.history[-1, "valid_loss"]
    if loss < min(record.validation_curve, default=math.inf):
        record.best_epoch, record.best_weights = net.epoch, record.weights
    record.validation_curve.append(loss)
    record.finished = record.finished or net.epoch - record.best_epoch >= options.n_iter_no_change
    if record.finished and record.best_weights is not None:
        record.weights = record.best_weights


def _on_cpu(state: Any) -> Any:
    """A copy of a state dict on the CPU, which later steps do not change."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: _on_cpu(value) for key, value in state.items()}
    return [_on_cpu(value) for value in state] if isinstance(state, list) else state
