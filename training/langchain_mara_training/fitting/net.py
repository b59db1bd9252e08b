"""The skorch net that fits an agent: weighted loss, learning rate by step, mixed precision, its own batch order."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from skorch import NeuralNet
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from langchain_mara.agents.agent import MaraAgent
from langchain_mara.exceptions import LoadingError, TrainingError
from langchain_mara.loading.models import resolve_device
from langchain_mara_training.fitting.state_dataset import Batch, LabeledStates, Target, generator_for
from langchain_mara_training.storage.defaults import Schedule

PRECISIONS = {None: None, "bf16": torch.bfloat16, "fp16": torch.float16}
INITIALISATION, ORDER = range(2)  # what a draw is for, see generator_for
_CHUNK_BYTES = 2**26  # of activations in a validation or prediction batch
_LOSS_EVERY = 64  # batches between two looks at the loss, which make a GPU wait
_FOLDED_FROM = 256  # rows a batch must have before folding the affine map costs less than it saves


@dataclass(frozen=True)
class FittingOptions:
    """What stays the same over a fitting job.

    Attributes:
        max_epochs: Passes over the training rows at most.
        batch_size: Rows in a training batch.
        learning_rate: Of AdamW, at the first step.
        weight_decay: Of AdamW, on the matrices only.
        schedule: How the learning rate goes to zero over the job's steps, or `constant`.
        n_iter_no_change: Epochs without a better validation loss before fitting stops.
        precision: Key of `PRECISIONS`.
        device: Where to compute.
        seed: Of batch order and initial weights.
    """

    max_epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    schedule: Schedule
    n_iter_no_change: int
    precision: str | None
    device: torch.device
    seed: int

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of a step of all the job's steps; a function of nothing else, so that a restart is exact."""
        share = step / steps
        factor = {"linear": 1 - share, "cosine": (1 + math.cos(math.pi * share)) / 2, "constant": 1.0}
        return self.learning_rate * factor[self.schedule]


class WeightedCrossEntropy(nn.Module):
    """Mean over the batch's rows of each row's cross-entropy times its weight."""

    def forward(self, logits: Tensor, target: Target) -> Tensor:
        """Loss of (k, 2) logits, given labels (k,) and weights (k,)."""
        labels, weights = target
        return (functional.cross_entropy(logits, labels, reduction="none") * weights).mean()


class AgentNet(NeuralNet):  # type: ignore[misc]
    """A skorch net over a `MaraAgent`.

    Args:
        agent: With its initial weights; fitted in place, on the options' device.
        options: See `FittingOptions`.
        steps_in_all: Training steps of the whole job.
        callbacks: skorch callbacks as (name, callback).
    """

    def __init__(
        self, agent: MaraAgent, options: FittingOptions, steps_in_all: int, callbacks: Sequence[Any] = ()
    ) -> None:
        super().__init__(
            agent,
            WeightedCrossEntropy,
            optimizer=torch.optim.AdamW,
            lr=options.learning_rate,
            callbacks=list(callbacks),
            train_split=None,
            verbose=0,
            device=options.device,
            optimizer__weight_decay=options.weight_decay,
            optimizer__fused=options.device.type in {"cpu", "cuda"},
            optimizer__param_groups=[(pattern, {"weight_decay": 0.0}) for pattern in ("ln.*", "*.bias")],
        )
        self.options = options
        self.steps_in_all = steps_in_all
        self.steps = 0
        self.epoch = 0
        half = PRECISIONS[options.precision]
        self.half = half
        self.scaler = torch.amp.GradScaler(options.device.type, enabled=half is torch.float16)

    @property
    def _default_callbacks(self) -> list[Any]:
        return []

    def get_iterator(self, dataset: LabeledStates, training: bool = False) -> DataLoader[Batch]:
        """Batches of the net's current epoch; a generator of its own keeps the loader off PyTorch's global one."""
        options = self.options
        if training:
            batches = dataset.shuffled(options.batch_size, generator_for(options.seed, ORDER, self.epoch))
        else:
            batches = dataset.in_order(rows_at_once(self.module_))
        generator = torch.Generator()
        return DataLoader(dataset, batch_sampler=batches, collate_fn=_as_it_is, generator=generator)  # type: ignore[arg-type]

    def infer(self, x: Tensor, **_: Any) -> Tensor:
        """Logits (k, 2) in float32 of states (k, d), in the chosen precision."""
        x = x.to(self.device)
        with torch.autocast(self.options.device.type, dtype=self.half, enabled=self.half is not None):
            folded = self.half is None and self.module_.training and len(x) >= _FOLDED_FROM
            logits = _folded_forward(self.module_, x) if folded else self.module_(x)
        return torch.as_tensor(logits).float()

    def train_step(self, batch: Batch, **_: Any) -> dict[str, Tensor]:
        """One step of the optimiser at the learning rate of its number."""
        self._set_training(True)
        for group in self.optimizer_.param_groups:
            group["lr"] = self.options.rate(self.steps, self.steps_in_all)
        self.optimizer_.zero_grad(set_to_none=True)
        states, target = batch
        loss: Tensor = self.get_loss(self.infer(states), target)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer_)
        self.scaler.update()
        self.steps += 1
        return {"loss": loss.detach()}

    def run_single_epoch(self, iterator: Any, training: bool, prefix: str, step_fn: Any, **_: Any) -> None:
        """Runs over the batches and records the weighted mean loss, without skorch's record of each batch.

        Raises:
            TrainingError: If the loss is not finite.
        """
        if iterator is None:
            return
        loss, weight, recent = 0.0, 0.0, torch.zeros((), device=self.device)
        for index, batch in enumerate(iterator, start=1):
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
        other = "" if precision is None else f", or mixed_precision=None instead of {precision!r}"
        raise TrainingError(
            f"The loss became {loss} in epoch {self.epoch + 1}. Fit with a lower learning_rate than "
            f"{self.options.learning_rate:g}{other}, and look for huge values in the states or the weights."
        )


def make_agent(hidden_size: int, width: int, policy_model: str | None = None) -> MaraAgent:
    """An agent whose weights are not set yet: PyTorch would draw them from its global generator."""
    with torch.device("meta"):
        agent = MaraAgent(hidden_size, width, policy_model)
    return agent.to_empty(device="cpu")


def initialise(agent: MaraAgent, seed: int) -> MaraAgent:
    """Draws initial weights as PyTorch's layers do, but from a generator of the seed."""
    generator = generator_for(seed, INITIALISATION)
    nn.init.ones_(agent.ln.weight)
    nn.init.zeros_(agent.ln.bias)
    for layer in (agent.linear1, agent.linear2, agent.output_linear):
        bound = layer.in_features**-0.5
        nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
        nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
    return agent


def rows_at_once(agent: MaraAgent) -> int:
    """Rows of a batch that needs no gradients: large, within a bound on memory."""
    return max(1, _CHUNK_BYTES // (4 * max(agent.hidden_size, agent.width)))


def fitting_device(device: str | torch.device | None, precision: str | None = None) -> torch.device:
    """Where to compute; by default CUDA where there is one.

    Raises:
        LoadingError: If there is no such device, or it cannot compute in the precision.
    """
    place = resolve_device(device)
    if precision == "fp16" and place.type != "cuda":
        raise LoadingError(f"mixed_precision='fp16' needs CUDA, not {place}. Use 'bf16' or None there.")
    return place


def _as_it_is(batch: Batch) -> Batch:
    return batch


def _folded_forward(agent: MaraAgent, states: Tensor) -> Tensor:
    """The agent's logits, with LayerNorm's affine map folded into the first layer's weights.

    The gradients are the same up to rounding, but none with respect to the normalised states is needed: an eighth of
    a training step's time in float32, and nothing in half precision.
    """
    normed = functional.layer_norm(states.float(), (agent.hidden_size,), eps=agent.ln.eps)
    first = agent.linear1
    hidden = functional.linear(normed, first.weight * agent.ln.weight, first.bias + first.weight @ agent.ln.bias)
    logits: Tensor = agent.output_linear(agent.linear2(hidden.relu()).relu())
    return logits
