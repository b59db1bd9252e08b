"""The skorch net that fits an agent: weighted loss, learning rate per step, mixed precision, seeded batch order."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from skorch import NeuralNet
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from langchain_mara.agents.base import Agent
from langchain_mara.exceptions import LoadingError, TrainingError
from langchain_mara.loading.models import resolve_device
from langchain_mara_training.fitting.networks import DROPOUT, ORDER, rows_at_once, training_forward
from langchain_mara_training.fitting.state_dataset import Batch, LabeledStates, Target, generator_for
from langchain_mara_training.storage.defaults import Schedule

PRECISIONS = {None: None, "bf16": torch.bfloat16, "fp16": torch.float16}
_LOSS_EVERY = 64  # batches between two readings of the loss, because a reading makes a GPU wait


@dataclass(frozen=True)
class FittingOptions:
    """Settings that stay the same throughout a fitting job.

    Attributes:
        max_epochs: Largest number of epochs, that is, of times all training rows are used.
        batch_size: Rows per training batch.
        learning_rate: Learning rate of AdamW at the first step.
        weight_decay: Weight decay of AdamW, for the matrices only.
        schedule: How the learning rate falls to zero over the job's steps: `linear` or `cosine`; or `constant`.
        dropout: Share of the hidden units that each training step leaves out.
        input_dropout: Share of the normalized states' entries that each training step leaves out.
        n_iter_no_change: Epochs without a better validation loss before fitting stops.
        precision: Key of `PRECISIONS`.
        device: Device to compute on.
        seed: Seed of batch order and initial weights.
    """

    max_epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    schedule: Schedule
    dropout: float
    input_dropout: float
    n_iter_no_change: int
    precision: str | None
    device: torch.device
    seed: int

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of a step.

        It depends only on the arguments, so a resumed job repeats it exactly.

        Args:
            step: Number of the step, from 0.
            steps: Number of steps in the whole job.
        """
        progress = step / steps
        factors = {"linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2, "constant": 1.0}
        return self.learning_rate * factors[self.schedule]


class FittingStopped(Exception):  # noqa: N818 - no error
    """A callback has asked to stop."""


class WeightedCrossEntropy(nn.Module):
    """Cross-entropy of each row times the row's weight, averaged over the rows of a batch."""

    def forward(self, logits: Tensor, target: Target) -> Tensor:
        """Loss of (k, 2) logits, given labels (k,) and weights (k,)."""
        labels, weights = target
        return (functional.cross_entropy(logits, labels, reduction="none") * weights).mean()


class AgentNet(NeuralNet):  # type: ignore[misc]
    """A skorch net over an agent.

    Args:
        agent: Agent with its initial weights; it is fitted in place, on the options' device.
        options: Settings of the job.
        total_steps: Number of training steps in the whole job.
        own: Callbacks of the job itself, as (name, callback) pairs; they are told first.
        callbacks: skorch callbacks of the user, as skorch takes them.
    """

    def __init__(
        self,
        agent: Agent,
        options: FittingOptions,
        total_steps: int,
        own: Sequence[Any] = (),
        callbacks: Sequence[Any] = (),
    ) -> None:
        super().__init__(
            agent,
            WeightedCrossEntropy,
            optimizer=torch.optim.AdamW,
            lr=options.learning_rate,
            callbacks=[*own, *callbacks],
            train_split=None,
            verbose=0,
            device=options.device,
            optimizer__weight_decay=options.weight_decay,
            optimizer__fused=options.device.type in {"cpu", "cuda"},
            optimizer__param_groups=[(pattern, {"weight_decay": 0.0}) for pattern in ("*ln.*", "*.bias")],
        )
        self.own = {name for name, _ in own}
        self.options = options
        self.total_steps = total_steps
        self.steps = 0
        self.epoch = 0
        self.batch = 0
        half = PRECISIONS[options.precision]
        self.half = half
        self.scaler = torch.amp.GradScaler(options.device.type, enabled=half is torch.float16)

    @property
    def _default_callbacks(self) -> list[Any]:
        return []

    def notify(self, method_name: str, **cb_kwargs: Any) -> None:
        """Tells all callbacks, as skorch does, and says which one an exception comes from.

        Raises:
            FittingStopped: If a callback of the user raises KeyboardInterrupt, which is how skorch's callbacks stop.
        """
        getattr(self, method_name)(self, **cb_kwargs)
        for name, callback in self.callbacks_:
            try:
                getattr(callback, method_name)(self, **cb_kwargs)
            except KeyboardInterrupt:
                if name in self.own:
                    raise
                raise FittingStopped from None
            except Exception as error:
                if name not in self.own:
                    error.add_note(f"The callback {name} raised this in {method_name}, in epoch {len(self.history)}.")
                raise

    def get_iterator(self, dataset: LabeledStates, training: bool = False) -> DataLoader[Batch]:
        """Batches of the net's current epoch."""
        options = self.options
        if training:
            batches = dataset.shuffled(options.batch_size, generator_for(options.seed, ORDER, self.epoch))
        else:
            batches = dataset.in_order(rows_at_once(self.module_))
        # Without a generator, the loader would draw from PyTorch's global one.
        generator = torch.Generator()
        return DataLoader(dataset, batch_sampler=batches, collate_fn=_unchanged, generator=generator)  # type: ignore[arg-type]

    def infer(self, x: Tensor, **_: Any) -> Tensor:
        """Logits, (k, 2) float32, of states (k, d), computed in the chosen precision."""
        x = x.to(self.device)
        with torch.autocast(self.options.device.type, dtype=self.half, enabled=self.half is not None):
            logits = self._with_dropout(x) if self.module_.training else self.module_(x)
        return torch.as_tensor(logits).float()

    def _with_dropout(self, states: Tensor) -> Tensor:
        options = self.options
        drawn = generator_for(options.seed, DROPOUT, self.epoch, self.batch, device=options.device)
        return training_forward(self.module_, states, options.dropout, options.input_dropout, drawn)

    def train_step(self, batch: Batch, **_: Any) -> dict[str, Tensor]:
        """Takes one step of the optimizer, at the step's learning rate."""
        self._set_training(True)
        for group in self.optimizer_.param_groups:
            group["lr"] = self.options.rate(self.steps, self.total_steps)
        self.optimizer_.zero_grad(set_to_none=True)
        states, target = batch
        loss: Tensor = self.get_loss(self.infer(states), target)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer_)
        self.scaler.update()
        self.steps += 1
        return {"loss": loss.detach()}

    def run_single_epoch(self, iterator: Any, training: bool, prefix: str, step_fn: Any, **_: Any) -> None:
        """Runs over the batches and records their weighted mean loss, but not each batch as skorch does.

        Raises:
            TrainingError: If the loss is not finite.
        """
        if iterator is None:
            return
        loss, weight, recent = 0.0, 0.0, torch.zeros((), device=self.device)
        for index, batch in enumerate(iterator, start=1):
            self.batch = index
            step = step_fn(batch)
            weights = batch[1][1]
            weight += float(weights.sum())
            recent += step["loss"] * len(weights)
            self.notify("on_batch_end", batch=batch, training=training, **step)
            if index % _LOSS_EVERY == 0 or index == len(iterator):
                loss += self._finite(recent.item())
                recent.zero_()
        self.history.record(f"{prefix}_loss", loss / weight)

    def _finite(self, loss: float) -> float:
        if math.isfinite(loss):
            return loss
        precision = self.options.precision
        alternative = "" if precision is None else f", or mixed_precision=None instead of {precision!r}"
        raise TrainingError(
            f"The loss became {loss} in epoch {self.epoch + 1}. Fit with a lower learning_rate than "
            f"{self.options.learning_rate:g}{alternative}, and look for huge values in the states or the weights."
        )


def fitting_device(device: str | torch.device | None, precision: str | None = None) -> torch.device:
    """The device to compute on.

    Args:
        device: Requested device; by default CUDA if available.
        precision: Key of `PRECISIONS` that the device must support.

    Raises:
        LoadingError: If there is no such device, or it does not support the precision.
    """
    resolved = resolve_device(device)
    if precision == "fp16" and resolved.type != "cuda":
        raise LoadingError(f"mixed_precision='fp16' needs CUDA, not {resolved}. Use 'bf16' or None there.")
    return resolved


def _unchanged(batch: Batch) -> Batch:
    return batch
