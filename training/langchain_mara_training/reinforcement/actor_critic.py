"""The update of discrete soft actor-critic: twin critics, their targets, actor, temperature (ALGORITHM.md section 4).

Expectations over the two actions are exact, so nothing is sampled here.
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

from langchain_mara.agents.agent import MaraAgent

_ACTIONS = 2


class Transitions(NamedTuple):
    """Steps of episodes; row i of all belongs to the same step.

    Attributes:
        states: (n, d) float, of the candidate that was judged.
        actions: (n,) int64, 1 accept and 0 reject.
        rewards: (n,) float32.
        next_states: (n, d) float, of the candidate judged next; means nothing where done.
        done: (n,) bool, whether the episode ended.
    """

    states: Tensor
    actions: Tensor
    rewards: Tensor
    next_states: Tensor
    done: Tensor

    def to(self, device: torch.device) -> "Transitions":
        """The same on a device, states in float32."""
        moved = Transitions(*(one.to(device) for one in self))
        return moved._replace(states=moved.states.float(), next_states=moved.next_states.float())


class UpdateOptions(BaseModel):
    """How the networks learn; the defaults are the paper's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    discount: float = Field(default=0.99, ge=0, le=1)
    """Factor of what comes a step later."""
    learning_rate_actor: float = Field(default=3e-4, gt=0)
    """Adam's, of the agent."""
    learning_rate_critic: float = Field(default=3e-4, gt=0)
    """Adam's, of the critics."""
    learning_rate_temperature: float = Field(default=3e-4, gt=0)
    """Adam's, of the temperature's logarithm."""
    max_gradient_norm: float = Field(default=0.5, gt=0)
    """Of actor and critics, each; longer gradients are shortened to it."""
    target_entropy: float = Field(default=0.6 * math.log(_ACTIONS), ge=0, le=math.log(_ACTIONS))
    """Of the actor, in nats; the temperature is learnt to hold it."""
    target_rate: float = Field(default=0.005, gt=0, le=1)
    """How far the target critics follow the critics in an update."""
    initial_temperature: float = Field(default=0.01, gt=0)
    """Weight of the entropy before anything is learnt."""


class StepLosses(NamedTuple):
    """Of one gradient step.

    Attributes:
        critic: Half the mean squared error of each critic, summed.
        actor: Mean over states of the expected temperature times log-probability minus value.
        temperature_loss: Of the temperature's logarithm.
        temperature: After the step.
        values: Mean value of the actions taken, by each critic.
    """

    critic: float
    actor: float
    temperature_loss: float
    temperature: float
    values: tuple[float, float]


class TwinCritics(nn.Module):
    """Two networks of the agent's shape behind one LayerNorm, which say what each action is worth.

    Args:
        hidden_size: d of a state.
        width: Units of each first hidden layer; the second has a quarter.
    """

    def __init__(self, hidden_size: int, width: int = 1024) -> None:
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
        """Values (2 critics, n, 2 actions) of (n, d) states."""
        normed = self.ln(states)
        return torch.stack([self.first(normed), self.second(normed)])


class ActorCritic:
    """The networks of soft actor-critic and their optimisers.

    Args:
        actor: The agent that is trained, in place, on its device.
        critics: Of the same hidden size, on the same device; their targets begin as a copy.
        options: See `UpdateOptions`.
    """

    def __init__(self, actor: MaraAgent, critics: TwinCritics, options: UpdateOptions) -> None:
        self.actor, self.critics, self.options = actor, critics, options
        self.targets = copy.deepcopy(critics).requires_grad_(requires_grad=False)
        device = actor.ln.weight.device
        self.log_temperature = torch.tensor([math.log(options.initial_temperature)], device=device, requires_grad=True)
        self.optimizers = {
            "actor": torch.optim.Adam(actor.parameters(), lr=options.learning_rate_actor),
            "critics": torch.optim.Adam(critics.parameters(), lr=options.learning_rate_critic),
            "temperature": torch.optim.Adam([self.log_temperature], lr=options.learning_rate_temperature),
        }

    @property
    def temperature(self) -> float:
        """Weight of the entropy."""
        return float(self.log_temperature.detach().exp())

    def update(self, batches: Iterable[Transitions]) -> list[StepLosses]:
        """Takes a gradient step on each batch, then lets the target critics follow once."""
        steps = [self._step(batch.to(self.log_temperature.device)) for batch in batches]
        with torch.no_grad():
            for target, own in zip(self.targets.parameters(), self.critics.parameters(), strict=True):
                target.lerp_(own, self.options.target_rate)
        return steps

    def state_dict(self) -> dict[str, Any]:
        """Everything a later `load_state_dict` needs to go on exactly."""
        parts = {name: getattr(self, name).state_dict() for name in ("actor", "critics", "targets")}
        optimizers = {name: one.state_dict() for name, one in self.optimizers.items()}
        return {**parts, "log_temperature": self.log_temperature.detach(), "optimizers": optimizers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back to where `state_dict` was called."""
        for name in ("actor", "critics", "targets"):
            getattr(self, name).load_state_dict(state[name])
        with torch.no_grad():
            self.log_temperature.copy_(state["log_temperature"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])

    def _step(self, batch: Transitions) -> StepLosses:
        temperature = self.log_temperature.detach().exp()
        critic_loss, values = self._critic_loss(batch, temperature)
        self._descend("critics", critic_loss, self.critics.parameters())
        # With the critics as they are now: the reference steps them first.
        actor_loss, entropy = self._actor_loss(batch.states, temperature)
        self._descend("actor", actor_loss, self.actor.parameters())
        temperature_loss = ((entropy - self.options.target_entropy) * self.log_temperature.exp()).mean()
        self._descend("temperature", temperature_loss)
        first, second = values.tolist()
        return StepLosses(
            critic_loss.item(), actor_loss.item(), temperature_loss.item(), self.temperature, (first, second)
        )

    def _critic_loss(self, batch: Transitions, temperature: Tensor) -> tuple[Tensor, Tensor]:
        """Loss, and the mean value of the actions taken by each critic."""
        with torch.no_grad():
            logs = self.actor(batch.next_states).log_softmax(-1)
            values = self.targets(batch.next_states).amin(0)
            following = (logs.exp() * (values - temperature * logs)).sum(-1)
            # Behind the end there is no state; what stands there may even be NaN.
            following = torch.where(batch.done, 0.0, following)
            aims = batch.rewards + self.options.discount * following
        taken = self.critics(batch.states).gather(-1, batch.actions.expand(2, -1).unsqueeze(-1)).squeeze(-1)
        loss = 0.5 * functional.mse_loss(taken, aims.expand(2, -1), reduction="none").mean(1).sum()
        return loss, taken.detach().mean(1)

    def _actor_loss(self, states: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
        """Loss, and the actor's entropy (n,) in each state."""
        logs = self.actor(states).log_softmax(-1)
        shares = logs.exp()
        with torch.no_grad():
            values = self.critics(states).amin(0)
        loss = (shares * (temperature * logs - values)).sum(-1).mean()
        return loss, -(shares * logs).sum(-1).detach()

    def _descend(self, name: str, loss: Tensor, clipped: Iterator[nn.Parameter] | None = None) -> None:
        optimizer = self.optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if clipped is not None:
            clip_grad_norm_(clipped, self.options.max_gradient_norm)
        optimizer.step()
