"""The update step of discrete soft actor-critic: twin critics, target critics, actor, temperature (paper section 4).

There are only two actions, so expectations over them are exact and nothing is sampled here.
"""

import copy
import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_

from langchain_mara.agents.look_ahead import LookAheadAgent
from langchain_mara_training.fitting.networks import FittedAgent

_ACTIONS = 2


class Transitions(NamedTuple):
    """Steps of episodes; row i of every tensor belongs to the same step.

    Attributes:
        states: (n, columns) float, what the agent read of the candidate that it judged.
        actions: (n,) int64, 1 for accept and 0 for reject.
        rewards: (n,) float32.
        next_states: (n, columns) float, the same of the candidate judged next; meaningless where `done`.
        done: (n,) bool, True where the episode ended.
    """

    states: Tensor
    actions: Tensor
    rewards: Tensor
    next_states: Tensor
    done: Tensor

    def to(self, device: torch.device) -> "Transitions":
        """A copy on `device`, with the states in float32."""
        moved = Transitions(*(column.to(device) for column in self))
        return moved._replace(states=moved.states.float(), next_states=moved.next_states.float())


class UpdateOptions(BaseModel):
    """How the networks learn. The defaults are the paper's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    discount: float = Field(default=0.99, ge=0, le=1)
    """Discount factor per step."""
    learning_rate_actor: float = Field(default=3e-4, gt=0)
    """Adam learning rate of the agent."""
    learning_rate_critic: float = Field(default=3e-4, gt=0)
    """Adam learning rate of the critics."""
    learning_rate_temperature: float = Field(default=3e-4, gt=0)
    """Adam learning rate of the temperature's logarithm."""
    max_gradient_norm: float = Field(default=0.5, gt=0)
    """Largest gradient norm, for the actor and for the critics; longer gradients are scaled down to it."""
    target_entropy: float = Field(default=0.6 * math.log(_ACTIONS), ge=0, le=math.log(_ACTIONS))
    """Entropy of the actor, in nats, that the learned temperature aims at."""
    target_rate: float = Field(default=0.005, gt=0, le=1)
    """How far the target critics move toward the critics in one update."""
    initial_temperature: float = Field(default=0.01, gt=0)
    """Weight of the entropy at the start of training."""


class StepLosses(NamedTuple):
    """Losses and statistics of one gradient step.

    Attributes:
        critic: Sum over both critics of half the mean squared error.
        actor: Mean over states of the expected (temperature * log-probability - value).
        temperature_loss: Loss of the temperature's logarithm.
        temperature: Temperature after the step.
        values: Each critic's mean value of the actions taken.
    """

    critic: float
    actor: float
    temperature_loss: float
    temperature: float
    values: tuple[float, float]


class TwinCritics(nn.Module):
    """Two networks of the agent's shape after one shared LayerNorm. Each estimates the value of both actions.

    Args:
        hidden_size: Size d of a state.
        width: Units of each first hidden layer; the second has a quarter as many.
    """

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.ln = nn.LayerNorm(hidden_size)
        self.first, self.second = (
            nn.Sequential(
                nn.Linear(hidden_size, width),
                nn.ReLU(),
                nn.Linear(width, width // 4),
                nn.ReLU(),
                nn.Linear(width // 4, _ACTIONS),
            )
            for _ in range(2)
        )

    def forward(self, states: Tensor) -> Tensor:
        """Values, (2 critics, n, 2 actions), of (n, d) states."""
        normed = self.ln(states)
        return torch.stack([self.first(normed), self.second(normed)])


class LookAheadCritics(nn.Module):
    """Two networks of a look-ahead agent's shape. Each estimates the value of both actions.

    Args:
        hidden_size: Size d of a state.
        width: Units of each first hidden layer.
        rank: Rank of their matrices for tokens.
    """

    def __init__(self, hidden_size: int, width: int, rank: int | None) -> None:
        super().__init__()
        self.first, self.second = (LookAheadAgent(hidden_size, width, rank) for _ in range(2))

    def forward(self, features: Tensor) -> Tensor:
        """Values, (2 critics, n, 2 actions), of (n, 2 d + 2) `look_ahead_features`."""
        return torch.stack([self.first(features), self.second(features)])


Critics = TwinCritics | LookAheadCritics


def make_critics(actor: FittedAgent) -> Critics:
    """Critics of an actor's shape in float32, with weights from PyTorch's generator, whatever its default dtype."""
    with torch.device("meta"):
        critics: Critics
        if isinstance(actor, LookAheadAgent):
            critics = LookAheadCritics(actor.hidden_size, actor.width, actor.rank)
        else:
            critics = TwinCritics(actor.hidden_size, actor.width)
    critics = critics.float().to_empty(device="cpu")
    for module in critics.modules():
        if isinstance(module, nn.LayerNorm | nn.Linear):
            module.reset_parameters()
    return critics


class ActorCritic:
    """The networks of soft actor-critic and their optimizers.

    Args:
        actor: Agent to train, in place, on its device.
        critics: Critics of its shape on the same device. The target critics start as their copy.
        options: How the networks learn.
    """

    def __init__(self, actor: FittedAgent, critics: Critics, options: UpdateOptions) -> None:
        self.actor, self.critics, self.options = actor, critics, options
        self.targets = copy.deepcopy(critics).requires_grad_(requires_grad=False)
        device = actor.ln.weight.device
        logarithm = [math.log(options.initial_temperature)]
        self.log_temperature = torch.tensor(logarithm, dtype=torch.float32, device=device, requires_grad=True)
        self.optimizers = {
            "actor": torch.optim.Adam(actor.parameters(), lr=options.learning_rate_actor),
            "critics": torch.optim.Adam(critics.parameters(), lr=options.learning_rate_critic),
            "temperature": torch.optim.Adam([self.log_temperature], lr=options.learning_rate_temperature),
        }

    @property
    def temperature(self) -> float:
        """Current weight of the entropy."""
        return float(self.log_temperature.detach().exp())

    def change_options(self, options: UpdateOptions) -> None:
        """Learns with other options from now on; the optimizers keep their moments."""
        self.options = options
        for name in ("actor", "temperature"):
            self._set_rate(name, getattr(options, f"learning_rate_{name}"))
        self._set_rate("critics", options.learning_rate_critic)

    def update(self, batches: Iterable[Transitions]) -> list[StepLosses]:
        """Takes a gradient step on each batch, then moves the target critics toward the critics once."""
        steps = [self._step(batch.to(self.log_temperature.device)) for batch in batches]
        with torch.no_grad():
            for target, learned in zip(self.targets.parameters(), self.critics.parameters(), strict=True):
                target.lerp_(learned, self.options.target_rate)
        return steps

    def state_dict(self) -> dict[str, Any]:
        """Everything `load_state_dict` needs to resume exactly from here."""
        networks = {name: getattr(self, name).state_dict() for name in ("actor", "critics", "targets")}
        optimizers = {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}
        return {**networks, "log_temperature": self.log_temperature.detach(), "optimizers": optimizers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Returns to the point at which `state_dict` was called."""
        for name in ("actor", "critics", "targets"):
            getattr(self, name).load_state_dict(state[name])
        with torch.no_grad():
            self.log_temperature.copy_(state["log_temperature"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])

    def _set_rate(self, name: str, rate: float) -> None:
        for group in self.optimizers[name].param_groups:
            group["lr"] = rate

    def _step(self, batch: Transitions) -> StepLosses:
        temperature = self.log_temperature.detach().exp()
        critic_loss, values = self._critic_loss(batch, temperature)
        self._descend("critics", critic_loss, self.critics.parameters())
        # Uses the critics after their step, as the reference does.
        actor_loss, entropy = self._actor_loss(batch.states, temperature)
        self._descend("actor", actor_loss, self.actor.parameters())
        temperature_loss = ((entropy - self.options.target_entropy) * self.log_temperature.exp()).mean()
        self._descend("temperature", temperature_loss)
        first, second = values.tolist()
        return StepLosses(
            critic_loss.item(), actor_loss.item(), temperature_loss.item(), self.temperature, (first, second)
        )

    def _critic_loss(self, batch: Transitions, temperature: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and each critic's mean value of the actions taken, (2,)."""
        with torch.no_grad():
            logs = self.actor(batch.next_states).log_softmax(-1)
            values = self.targets(batch.next_states).amin(0)
            next_values = (logs.exp() * (values - temperature * logs)).sum(-1)
            # There is no state after the end; the row may even hold NaN.
            next_values = torch.where(batch.done, 0.0, next_values)
            goals = batch.rewards + self.options.discount * next_values
        taken = self.critics(batch.states).gather(-1, batch.actions.expand(2, -1).unsqueeze(-1)).squeeze(-1)
        loss = 0.5 * functional.mse_loss(taken, goals.expand(2, -1), reduction="none").mean(1).sum()
        return loss, taken.detach().mean(1)

    def _actor_loss(self, states: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and the actor's entropy in each state, (n,)."""
        logs = self.actor(states).log_softmax(-1)
        probabilities = logs.exp()
        with torch.no_grad():
            values = self.critics(states).amin(0)
        loss = (probabilities * (temperature * logs - values)).sum(-1).mean()
        return loss, -(probabilities * logs).sum(-1).detach()

    def _descend(self, name: str, loss: Tensor, clipped: Iterator[nn.Parameter] | None = None) -> None:
        optimizer = self.optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if clipped is not None:
            clip_grad_norm_(clipped, self.options.max_gradient_norm)
        optimizer.step()
