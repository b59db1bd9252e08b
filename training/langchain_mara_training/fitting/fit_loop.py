"""Runs the epochs of a fitting job: early stopping, a checkpoint after each, progress."""

import math
from dataclasses import dataclass, field
from typing import Any, Self

from skorch.callbacks import Callback
from skorch.helper import predefined_split
from torch import Tensor

from langchain_mara.agents.agent import MaraAgent
from langchain_mara_training.fitting.net import AgentNet, FittingOptions
from langchain_mara_training.fitting.state_dataset import Batch, LabeledStates
from langchain_mara_training.storage.job_checkpoint import JobCheckpoint
from langchain_mara_training.storage.progress import progress_bar

Weights = dict[str, Tensor]


@dataclass
class FittingRecord:
    """What a fitting job has come to so far.

    Attributes:
        weights: The agent's weights, after the last epoch; once finished, of the best epoch.
        optimizer: State of the optimiser after the last epoch.
        loss_curve: Weighted mean training loss of each epoch.
        validation_curve: Weighted mean loss on the held-out rows after each epoch; empty without such rows.
        best_weights: Weights of the best epoch, while there are held-out rows.
        best_epoch: Number, from 1, of the epoch with the lowest validation loss, or the last one.
        finished: Whether no epoch is left to run.
    """

    weights: Weights
    optimizer: dict[str, Any]
    loss_curve: list[float] = field(default_factory=list)
    validation_curve: list[float] = field(default_factory=list)
    best_weights: Weights | None = None
    best_epoch: int = 0
    finished: bool = False


class FittingProgress(Callback):  # type: ignore[misc]
    """A bar with epochs, rows per second, losses and the time left, on standard error."""

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
        """Counts the training rows."""
        if training:
            self.bar.advance(self.task, len(batch[0]))

    def show(self, record: FittingRecord) -> None:
        """Says how far the job is."""
        done = len(record.loss_curve)
        text = f"epoch {done}/{self.max_epochs}, loss {record.loss_curve[-1]:.4f}"
        if record.validation_curve:
            text += f", held out {record.validation_curve[-1]:.4f}"
        self.bar.update(self.task, description=text, completed=self.rows * done)


def fit_agent(
    agent: MaraAgent,
    train: LabeledStates,
    held_out: LabeledStates | None,
    options: FittingOptions,
    checkpoint: JobCheckpoint | None = None,
    saved: dict[str, Any] | None = None,
    *,
    verbose: bool = False,
) -> FittingRecord:
    """Fits an agent, going on from a checkpoint's content if there is one.

    Args:
        agent: With its initial weights.
        train: Rows to learn from.
        held_out: Rows whose loss decides when to stop and which epoch's weights are kept.
        options: See `FittingOptions`.
        checkpoint: Where to keep the job after every epoch.
        saved: What the checkpoint held already.
        verbose: Whether to show progress.

    Raises:
        TrainingError: If the loss is not finite.
        DataError: If a state is not finite.
    """
    with FittingProgress(len(train), options.max_epochs, shown=verbose) as progress:
        steps = options.max_epochs * math.ceil(len(train) / options.batch_size)
        net = AgentNet(agent, options, steps, [("progress", progress)]).initialize()
        net.train_split = None if held_out is None else predefined_split(held_out)
        record = _resume(net, saved)
        while not record.finished:
            net.fit_loop(train, epochs=1)
            net.epoch += 1
            _note(net, record, options)
            progress.show(record)
            if checkpoint is not None:
                rest = {"steps": net.steps, "scaler": net.scaler.state_dict(), "seed": options.seed}
                checkpoint.write({"record": vars(record), **rest})
    return record


def fit_pass(
    agent: MaraAgent, train: LabeledStates, options: FittingOptions, epoch: int, optimizer: dict[str, Any] | None
) -> FittingRecord:
    """One pass over rows of a stream, at a constant learning rate, going on with the optimiser's state.

    Args:
        agent: With its weights so far.
        train: Rows to learn from.
        options: See `FittingOptions`.
        epoch: How many passes came before; decides the order of the rows.
        optimizer: State of the optimiser after the last pass.
    """
    net = AgentNet(agent, options, steps_in_all=1).initialize()
    net.epoch = epoch
    if optimizer is not None:
        net.optimizer_.load_state_dict(optimizer)
    net.fit_loop(train, epochs=1)
    return FittingRecord(
        _on_cpu(net.module_.state_dict()), _on_cpu(net.optimizer_.state_dict()), [net.history[-1, "train_loss"]]
    )


def _resume(net: AgentNet, saved: dict[str, Any] | None) -> FittingRecord:
    if saved is None:
        return FittingRecord({}, {})
    record = FittingRecord(**saved["record"])
    net.steps, net.epoch = saved["steps"], len(record.loss_curve)
    net.scaler.load_state_dict(saved["scaler"])
    net.module_.load_state_dict(record.weights)
    net.optimizer_.load_state_dict(record.optimizer)
    return record


def _note(net: AgentNet, record: FittingRecord, options: FittingOptions) -> None:
    """Takes the epoch just run into the record, and decides whether it was the last."""
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
    """A copy of a state dict that later steps do not change."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: _on_cpu(value) for key, value in state.items()}
    return [_on_cpu(value) for value in state] if isinstance(state, list) else state
