"""LookAheadAgent: judges a candidate before it goes through the model, by the state at hand and its embedding."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from langchain_mara._version import __version__
from langchain_mara.agents.base import Agent, Judges
from langchain_mara.agents.recommended_options import Recommended
from langchain_mara.exceptions import AgentMismatchError, CheckpointError
from langchain_mara.options import DEFAULT_LOOK_AHEAD_RANK, DEFAULT_LOOK_AHEAD_WIDTH

NUMBERS = 2
"""Numbers that are known of a candidate besides state and embedding: its log-probability, and the entropy."""
_ROWS_AT_ONCE = 16384  # rows of the table that are computed at a time


class CandidatesAhead(NamedTuple):
    """Candidates that have not gone through the model, at one or several positions. Position p has row p of `states`.

    Attributes:
        states: (positions, d) states at hand, after the final norm, in any float dtype.
        rows: (n,) int64 position of each candidate.
        token_ids: (n,) int64 candidates.
        log_probabilities: (n,) float32 of the candidates under the policy model, over the whole vocabulary and before
            logits processors.
        entropies: (positions,) float32 entropies of the policy model's distributions, in nats.
    """

    states: Tensor
    rows: Tensor
    token_ids: Tensor
    log_probabilities: Tensor
    entropies: Tensor


class LookAheadAgent(Agent):
    """Accepts or rejects candidate next tokens of a frozen policy model before they go through it.

    It reads the state at hand, the candidate's row of the policy model's output embedding, its log-probability, and the
    entropy of the distribution. So decoding takes one pass per token however many candidates are rejected.

    The first layer is a sum of a half for the state, a half for the token, and two numbers:
    `LN(state) @ A + LN(embedding) @ B + numbers @ C + bias`, then ReLU and the layers of `MaraAgent`. For a given model
    the half of the token depends on the token alone, so `bind` computes it for the whole vocabulary. This table is
    never saved. The agent computes in float32 whatever the policy model's dtype.

    Args:
        hidden_size: Size d of the policy model's states and output embeddings.
        width: Number of units of the first hidden layer.
        rank: Rank of B. The table has so many columns, and a candidate costs a product of a row with a
            (rank, width) matrix. None takes a full matrix and a table of `width` columns.
        policy_model: Name of the model that the agent was trained on, for information.
        library_version: Version of langchain-mara that created the agent.
        recommended_options: See `Agent`.
        policy_sketch: See `Agent`.
        calibration: See `Agent`.

    Raises:
        OptionsError: If a recommended option is unknown or out of range.
    """

    kind: ClassVar[str] = "look-ahead"
    judges: Judges = "before"

    def __init__(
        self,
        hidden_size: int,
        width: int = DEFAULT_LOOK_AHEAD_WIDTH,
        rank: int | None = DEFAULT_LOOK_AHEAD_RANK,
        policy_model: str | None = None,
        library_version: str = __version__,
        recommended_options: Recommended | None = None,
        policy_sketch: Sequence[float] | None = None,
        calibration: Mapping[str, Any] | None = None,
    ) -> None:
        common = (policy_model, library_version, recommended_options, policy_sketch, calibration)
        super().__init__(hidden_size, width, *common)
        if rank is not None and rank < 1:
            raise ValueError(f"rank must be at least 1, or None for a full matrix, not {rank}.")
        self.rank = rank
        self.ln = nn.LayerNorm(hidden_size)
        self.token_ln = nn.LayerNorm(hidden_size)
        self.linear1 = nn.Linear(hidden_size, width)
        self.token_linear = nn.Linear(hidden_size, rank or width, bias=False)
        self.lift = None if rank is None else nn.Linear(rank, width, bias=False)
        self.numbers_linear = nn.Linear(NUMBERS, width, bias=False)
        self.linear2 = nn.Linear(width, width // 4)
        self.output_linear = nn.Linear(width // 4, 2)

    def forward(self, features: Tensor) -> Tensor:
        """Computes logits of both actions, without a table, as fitting does.

        Args:
            features: (..., 2 d + 2) `look_ahead_features` in any float dtype.

        Returns:
            (..., 2) float32 logits of reject and accept.
        """
        size = self.hidden_size
        state, embedding, numbers = features.float().split([size, size, NUMBERS], -1)
        return self._logits(self.first_layer(self._state_half(state), self.token_half(embedding), numbers))

    def bind(self, output_embeddings: Tensor) -> "BoundLookAheadAgent":
        """The agent with its table for a policy model.

        Args:
            output_embeddings: (vocabulary, d) weight of the policy model's head, on the device to judge on.

        Raises:
            AgentMismatchError: If the embeddings have another size.
        """
        if output_embeddings.shape[-1] != self.hidden_size:
            raise AgentMismatchError(
                f"The agent reads output embeddings of size {self.hidden_size}, and the policy model's have size "
                f"{output_embeddings.shape[-1]}. Use a state agent with this model."
            )
        # A copy, so that later training of the agent cannot part it from its table.
        agent = copy.deepcopy(self).to(output_embeddings.device).eval()
        with torch.inference_mode():
            table = torch.cat([agent.token_half(rows.float()) for rows in output_embeddings.split(_ROWS_AT_ONCE)])
        return BoundLookAheadAgent(agent, table)

    def _state_half(self, states: Tensor) -> Tensor:
        """(…, width) of (…, d) float32 states."""
        half: Tensor = self.linear1(self.ln(states))
        return half

    def token_half(self, embeddings: Tensor) -> Tensor:
        """Rows of the table, (…, rank), or (…, width) with a full matrix, of (…, d) float32 output embeddings."""
        half: Tensor = self.token_linear(self.token_ln(embeddings))
        return half

    def first_layer(self, state_half: Tensor, token_half: Tensor, numbers: Tensor) -> Tensor:
        """Output (…, width) of the first layer, before its ReLU.

        Args:
            state_half: (…, width) half of the state.
            token_half: (…, rank or width) half of the token.
            numbers: (…, 2) log-probability and entropy.
        """
        lifted = token_half if self.lift is None else self.lift(token_half)
        hidden: Tensor = state_half + lifted + self.numbers_linear(numbers)
        return hidden

    def _logits(self, hidden: Tensor) -> Tensor:
        """(…, 2) logits of the first layer's output (…, width)."""
        logits: Tensor = self.output_linear(self.linear2(hidden.relu()).relu())
        return logits

    def accept_probability(self, candidates: CandidatesAhead, table: Tensor, accept_action: int = 1) -> Tensor:
        """Computes the accept probability of each candidate.

        Args:
            candidates: n candidates.
            table: (vocabulary, rank or width) float32 halves of the tokens, as `bind` computes them.
            accept_action: Action that means accept, 0 or 1.

        Returns:
            (n,) float32 accept probabilities in [0, 1]; NaN where a state is not finite.
        """
        return self.logits_of(candidates, table).softmax(-1)[..., accept_action]

    def logits_of(self, candidates: CandidatesAhead, table: Tensor) -> Tensor:
        """(n, 2) float32 logits of reject and accept of n candidates; see `accept_probability`."""
        states, rows, token_ids, log_probabilities, entropies = candidates
        hidden, halves = self._state_half(states.float()), table[token_ids]
        if len(states) == 1:  # the first product below repeats what belongs to the position
            entropies = entropies.expand_as(log_probabilities)
        else:
            hidden, entropies = hidden[rows], entropies[rows]
        numbers = torch.stack([log_probabilities, entropies], -1)
        # As `first_layer`, in two operations: a decode loop asks at every token.
        lifted = hidden + halves if self.lift is None else torch.addmm(hidden, halves, self.lift.weight.T)
        return self._logits(torch.addmm(lifted, numbers, self.numbers_linear.weight.T))

    @classmethod
    def _from_state(cls, state: dict[str, Any], source: str, **config: Any) -> Self:
        try:
            # Sizes come from a file, and memory is taken only once the weights are known to have them.
            with torch.device("meta"):
                expected = cls(**config).state_dict()
        except (TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{source}: config.json is not that of a look-ahead agent ({error}).") from None
        shapes = {name: tuple(weight.shape) for name, weight in expected.items()}
        if shapes != {name: tuple(weight.shape) for name, weight in state.items()}:
            raise CheckpointError(
                f"{source}: the weights have other names or shapes than config.json says. Get both files from the same "
                "agent."
            )
        if broken := [name for name, weight in state.items() if not weight.isfinite().all()]:
            raise CheckpointError(f"{source}: {broken[0]} holds NaN or infinite values, so the agent is unusable.")
        return cls(**config).with_weights(state, source)


class BoundLookAheadAgent(nn.Module):
    """A look-ahead agent that judges candidates of one policy model.

    Args:
        agent: The agent, on the device of the table.
        table: (vocabulary, rank or width) float32 halves of the tokens.
    """

    def __init__(self, agent: LookAheadAgent, table: Tensor) -> None:
        super().__init__()
        self.agent = agent
        self.table = table

    def accept_probability(self, candidates: CandidatesAhead, accept_action: int = 1) -> Tensor:
        """(n,) float32 accept probabilities of n candidates; see `LookAheadAgent.accept_probability`."""
        return self.agent.accept_probability(candidates, self.table, accept_action)


def look_ahead_features(states: Tensor, embeddings: Tensor, log_probabilities: Tensor, entropies: Tensor) -> Tensor:
    """What a look-ahead agent reads, as rows of one table, which `MaraClassifier(agent="look-ahead")` is fitted to.

    Args:
        states: (n, d) states at hand.
        embeddings: (n, d) output embeddings of the candidates.
        log_probabilities: (n,) log-probabilities of the candidates.
        entropies: (n,) entropies of the distributions, in nats.

    Returns:
        (n, 2 d + 2) in the dtype of the states.
    """
    numbers = torch.stack([log_probabilities, entropies], -1)
    return torch.cat([states, embeddings.to(states), numbers.to(states)], -1)


def hidden_size_of_features(columns: int) -> int:
    """Size d of the states in `look_ahead_features` of so many columns.

    Raises:
        ValueError: If no states make so many columns.
    """
    size, odd = divmod(columns - NUMBERS, 2)
    if odd or size < 1:
        raise ValueError(
            f"A look-ahead agent reads 2 d + {NUMBERS} columns (state, output embedding, log-probability, entropy), "
            f"not {columns}. Label with judges='before', or fit agent='state'."
        )
    return size
