"""The networks that are fitted, by kind of agent: made, initialized from a seed, and run forward with dropout."""

import copy
from numbers import Integral
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from langchain_mara.agents.agent import MaraAgent
from langchain_mara.agents.base import Agent
from langchain_mara.agents.look_ahead import NUMBERS, LookAheadAgent, hidden_size_of_features
from langchain_mara_training.fitting.state_dataset import LabeledStates, States, generator_for

AgentKind = Literal["state", "look-ahead"]
"""Kind of agent to fit."""
INITIALIZATION, ORDER, DROPOUT = range(3)  # purposes of draws, see generator_for
_CHUNK_BYTES = 2**26  # activations of a validation or prediction batch

FittedAgent = MaraAgent | LookAheadAgent
AnyAgent = TypeVar("AnyAgent", bound=Agent)


def make_agent(hidden_size: int, width: int, policy_model: str | None = None) -> MaraAgent:
    """A state agent in float32, whatever PyTorch's default dtype is, whose weights are not initialized.

    Args:
        hidden_size: Size d of a state.
        width: Units of the first hidden layer.
        policy_model: Name of the policy model, stored in the agent.
    """
    # PyTorch would draw initial weights from its global generator.
    with torch.device("meta"):
        agent = MaraAgent(hidden_size, width, policy_model)
    return agent.float().to_empty(device="cpu")


def make_agent_of(
    kind: AgentKind, columns: int, width: int, rank: int | None, policy_model: str | None = None
) -> FittedAgent:
    """An agent of a kind, in float32, whose weights are not initialized.

    Args:
        kind: Kind of the agent.
        columns: Number of columns that it reads: d of states, 2 d + 2 of `look_ahead_features`.
        width: Units of the first hidden layer.
        rank: Rank of a look-ahead agent's matrix for tokens.
        policy_model: Name of the policy model, stored in the agent.

    Raises:
        ValueError: If a look-ahead agent cannot read so many columns.
    """
    if kind == "state":
        return make_agent(columns, width, policy_model)
    with torch.device("meta"):
        agent = LookAheadAgent(hidden_size_of_features(columns), width, rank, policy_model)
    return agent.float().to_empty(device="cpu")


def check_kind(kind: str, rank: Any) -> None:
    """Refuses an unknown kind of agent, and a rank that is none.

    Args:
        kind: Kind of the agent.
        rank: Rank of a look-ahead agent's matrix for tokens.

    Raises:
        ValueError: If one is out of range.
    """
    if kind not in get_args(AgentKind):
        raise ValueError(f"agent must be one of {get_args(AgentKind)}, not {kind!r}.")
    if rank is not None and (not isinstance(rank, Integral) or rank < 1):
        raise ValueError(f"rank must be a whole number of at least 1, or None, not {rank!r}.")


def initialize_weights(agent: AnyAgent, seed: int) -> AnyAgent:
    """Draws an agent's initial weights in place, as PyTorch's layers do, but from a seeded generator."""
    generator = generator_for(seed, INITIALIZATION)
    for layer in agent.modules():
        if isinstance(layer, nn.LayerNorm):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
        elif layer is getattr(agent, "numbers_linear", None):
            # Log-probabilities are not normalized, so they begin without a say.
            nn.init.zeros_(agent.numbers_linear.weight)  # type: ignore[union-attr,arg-type]
        elif isinstance(layer, nn.Linear):
            bound = layer.in_features**-0.5
            nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
            if layer.bias is not None:
                nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
    return agent


def rows_at_once(agent: Agent) -> int:
    """Rows of a batch that needs no gradients: as many as a bound on memory allows."""
    return max(1, _CHUNK_BYTES // (4 * max(agent.hidden_size, agent.width)))


@torch.inference_mode()
def log_odds(agent: Agent, states: States | LabeledStates, device: torch.device) -> Tensor:
    """Log-odds of accept, (n,) float64 on the CPU.

    Args:
        agent: Agent on any device.
        states: (n, columns) rows that the agent reads, or n of them with their labels.
        device: Device to compute on.
    """
    if agent.ln.weight.device != device:  # type: ignore[union-attr]
        agent = copy.deepcopy(agent).to(device)
    logits = torch.cat([agent(chunk.to(device)).cpu() for chunk in states.chunks(rows_at_once(agent))]).double()
    return logits[:, 1] - logits[:, 0]


def training_forward(
    agent: FittedAgent, rows: Tensor, dropout: float, input_dropout: float, generator: torch.Generator
) -> Tensor:
    """The agent's logits with dropout.

    Args:
        agent: Agent to train.
        rows: (k, columns) rows that it reads.
        dropout: Share of the hidden units to leave out.
        input_dropout: Share of the normalized states' entries, and of the embeddings', to leave out.
        generator: Generator of the draws, on the agent's device.

    Returns:
        (k, 2) logits of reject and accept.
    """
    if isinstance(agent, LookAheadAgent):
        first = _first_layer_of_look_ahead(agent, rows.float(), input_dropout, generator)
    else:
        first = _first_layer(agent, rows.float(), input_dropout, generator)
    hidden = agent.linear2(_dropped(first.relu(), dropout, generator)).relu()
    logits: Tensor = agent.output_linear(_dropped(hidden, dropout, generator))
    return logits


def _first_layer(agent: MaraAgent, states: Tensor, input_dropout: float, generator: torch.Generator) -> Tensor:
    """(k, width) of (k, d) states, with LayerNorm's affine map folded into the weights.

    Folding changes the gradients by rounding only, but none is needed with respect to the normalized states. That saves
    an eighth of a training step's time in float32.
    """
    normed = functional.layer_norm(states, (agent.hidden_size,), eps=agent.ln.eps)
    first = agent.linear1
    weight, bias = first.weight * agent.ln.weight, first.bias + first.weight @ agent.ln.bias
    return functional.linear(_dropped(normed, input_dropout, generator), weight, bias)


def _first_layer_of_look_ahead(
    agent: LookAheadAgent, rows: Tensor, input_dropout: float, generator: torch.Generator
) -> Tensor:
    """(k, width) of (k, 2 d + 2) `look_ahead_features`."""
    states, embeddings, numbers = rows.split([agent.hidden_size, agent.hidden_size, NUMBERS], -1)
    state_half = agent.linear1(_dropped(agent.ln(states), input_dropout, generator))
    token_half = agent.token_linear(_dropped(agent.token_ln(embeddings), input_dropout, generator))
    hidden: Tensor = agent.first_layer(state_half, token_half, numbers)
    return hidden


def _dropped(values: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Values of which a share is zero and the others are scaled, as in PyTorch's dropout, drawn from a generator."""
    if not share:
        return values
    kept = torch.empty_like(values).bernoulli_(1 - share, generator=generator)
    return values * kept.div_(1 - share)
