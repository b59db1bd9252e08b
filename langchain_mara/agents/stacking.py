"""Several agents of one kind computed together: matrices of agents of one shape are stacked."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from langchain_mara.agents.agent import MaraAgent
from langchain_mara.agents.look_ahead import BoundLookAheadAgent, CandidatesAhead, LookAheadAgent

Rule = Literal["product", "all", "any"]
"""How the members of a mixture are combined."""


class Combination(NamedTuple):
    """Makes one of the log-odds of all members.

    Attributes:
        weights: (members,) float32.
        rule: How they are combined.
        accept_action: Action that means accept for every member.
    """

    weights: Tensor
    rule: Rule
    accept_action: int

    def __call__(self, log_odds: Tensor) -> Tensor:
        """(…) log-odds of the mixture, of (members, …) log-odds of action 1."""
        odds = log_odds if self.accept_action == 1 else -log_odds
        if self.rule == "product":
            weighted: Tensor = torch.tensordot(self.weights, odds, 1)
            return weighted
        unheard = (self.weights == 0).view(-1, *[1] * (odds.ndim - 1))
        return (
            odds.masked_fill(unheard, torch.inf).amin(0)
            if self.rule == "all"
            else odds.masked_fill(unheard, -torch.inf).amax(0)
        )


def log_odds_of(logits: Tensor) -> Tensor:
    """(…) log-odds of action 1, of (…, 2) logits of both actions."""
    return logits[..., 1] - logits[..., 0]


def stack_members(members: Sequence[MaraAgent], device: torch.device) -> nn.Module:
    """A module on a device that takes (…, d) states and gives (members, …) float32 log-odds.

    Args:
        members: The state agents.
        device: The device.
    """
    return (StackedStateAgents(members) if _one_shape(members) else _StateAgents(members)).to(device)


def bind_members(members: Sequence[LookAheadAgent], output_embeddings: Tensor) -> nn.Module:
    """A module that takes n `CandidatesAhead` and gives (members, n) float32 log-odds.

    Args:
        members: The look-ahead agents.
        output_embeddings: (vocabulary, d) weight of the policy model's head.
    """
    bound = [member.bind(output_embeddings) for member in members]
    return StackedLookAheadAgents(bound) if _one_shape(members) else _LookAheadAgents(bound)


def _one_shape(members: Sequence[MaraAgent] | Sequence[LookAheadAgent]) -> bool:
    return len({(each.width, getattr(each, "rank", None), each.ln.eps) for each in members}) == 1


class _StateAgents(nn.Module):
    """State agents of any shapes, one after the other."""

    def __init__(self, members: Sequence[MaraAgent]) -> None:
        super().__init__()
        # Copies, because a user's agent must not be moved.
        copies = [MaraAgent(member.hidden_size, member.width) for member in members]
        for copy, member in zip(copies, members, strict=True):
            copy.load_state_dict(member.state_dict())
            copy.ln.eps = member.ln.eps
        self.agents = nn.ModuleList(copies)

    def forward(self, states: Tensor) -> Tensor:
        return log_odds_of(torch.stack([agent(states) for agent in self.agents]))


class _LookAheadAgents(nn.Module):
    """Bound look-ahead agents of any shapes, one after the other."""

    def __init__(self, members: Sequence[BoundLookAheadAgent]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, candidates: CandidatesAhead) -> Tensor:
        bound = (cast("BoundLookAheadAgent", member) for member in self.members)
        return log_odds_of(torch.stack([each.agent.logits_of(candidates, each.table) for each in bound]))


class _FirstLayer(nn.Module):
    """The half of the first layers that reads states; they share one normalization, whose scales are folded in."""

    weight: Tensor
    bias: Tensor

    def __init__(self, members: Sequence[MaraAgent] | Sequence[LookAheadAgent]) -> None:
        super().__init__()
        layers = [(each.linear1.weight.detach(), each.linear1.bias.detach(), each.ln) for each in members]
        self.register_buffer("weight", torch.cat([weight * norm.weight.detach() for weight, _, norm in layers]))
        biases = [bias + weight @ norm.bias.detach() for weight, bias, norm in layers]
        self.register_buffer("bias", torch.cat(biases))
        self.eps = members[0].ln.eps

    def forward(self, states: Tensor) -> Tensor:
        """(rows, members · width) of (rows, d) states."""
        normalized = nn.functional.layer_norm(states.float(), states.shape[-1:], eps=self.eps)
        return nn.functional.linear(normalized, self.weight, self.bias)


class _UpperLayers(nn.Module):
    """The layers after the first one."""

    second: Tensor
    second_bias: Tensor
    third: Tensor
    third_bias: Tensor

    def __init__(self, members: Sequence[MaraAgent] | Sequence[LookAheadAgent]) -> None:
        super().__init__()
        second = [(each.linear2.weight.detach().T, each.linear2.bias.detach()[None]) for each in members]
        outputs = [(each.output_linear.weight.detach(), each.output_linear.bias.detach()) for each in members]
        for name, parts in (
            ("second", [weight for weight, _ in second]),
            ("second_bias", [bias for _, bias in second]),
            ("third", [(weight[1] - weight[0])[:, None] for weight, _ in outputs]),
            ("third_bias", [(bias[1] - bias[0])[None, None] for _, bias in outputs]),
        ):
            self.register_buffer(name, torch.stack(parts))

    def forward(self, hidden: Tensor) -> Tensor:
        """(members, rows) log-odds of the first layers' outputs (rows, members · width), before their ReLU."""
        first = hidden.relu().unflatten(-1, (len(self.second), -1)).transpose(0, 1)
        second = torch.baddbmm(self.second_bias, first, self.second).relu()
        return torch.baddbmm(self.third_bias, second, self.third).squeeze(-1)


class StackedStateAgents(nn.Module):
    """State agents of one shape as one network.

    Args:
        members: The agents, whose weights are copied.
    """

    def __init__(self, members: Sequence[MaraAgent]) -> None:
        super().__init__()
        self.first = _FirstLayer(members)
        self.upper = _UpperLayers(members)

    def forward(self, states: Tensor) -> Tensor:
        """(members, …) float32 log-odds of (…, d) states."""
        log_odds: Tensor = self.upper(self.first(states.flatten(0, -2)))
        shaped: Tensor = log_odds.unflatten(-1, states.shape[:-1])
        return shaped


class StackedLookAheadAgents(nn.Module):
    """Look-ahead agents of one shape as one network with one table.

    Args:
        members: The agents, bound to one policy model.
    """

    table: Tensor
    lift: Tensor
    numbers: Tensor

    def __init__(self, members: Sequence[BoundLookAheadAgent]) -> None:
        super().__init__()
        agents = [member.agent for member in members]
        self.first = _FirstLayer(agents)
        self.upper = _UpperLayers(agents)
        lifts = [torch.zeros(0) if agent.lift is None else agent.lift.weight.detach().T for agent in agents]
        self.register_buffer("table", torch.cat([member.table for member in members], 1))
        self.register_buffer("lift", torch.stack(lifts))
        self.register_buffer("numbers", torch.cat([agent.numbers_linear.weight.detach() for agent in agents]))

    def forward(self, candidates: CandidatesAhead) -> Tensor:
        """(members, n) float32 log-odds of n candidates."""
        states, rows, token_ids, log_probabilities, entropies = candidates
        halves = self.table[token_ids]
        if self.lift.numel():
            parts = halves.unflatten(-1, (len(self.lift), -1)).transpose(0, 1)
            halves = torch.bmm(parts, self.lift).transpose(0, 1).flatten(1)
        numbers = torch.stack([log_probabilities, entropies[rows]], -1)
        hidden = self.first(states)[rows] + halves + nn.functional.linear(numbers, self.numbers)
        log_odds: Tensor = self.upper(hidden)
        return log_odds
