"""Agents that judge a candidate before it goes through the model: what they read, and the choice by what they say.

The candidate set of a position is judged as a whole when it is cut. Only the chosen candidate goes through the model,
so there are no siblings, and a draft continues the chosen candidate.
"""

from collections.abc import Callable, Sequence
from math import isnan
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from langchain_mara.agents.look_ahead import CandidatesAhead
from langchain_mara.decoding.judging.asking import ask_each, checked_answer
from langchain_mara.decoding.recovery import nan_of_agent_error, no_candidates_error
from langchain_mara.decoding.request import AtHand, Request
from langchain_mara.decoding.sequence import SequenceState
from langchain_mara.policy.contract import Policy

_LOGITS_AT_ONCE = 2**20


class Outlook(NamedTuple):
    """What is known of positions before any candidate has gone through the model, and before logits processors.

    Attributes:
        states: (positions, d) states at hand.
        logits: (positions, vocabulary) logits of the policy model, which nobody else changes.
        normalizers: (positions,) float32 logarithms of the sums of exponentials of the logits.
        entropies: (positions,) float32 entropies in nats.
    """

    states: Tensor
    logits: Tensor
    normalizers: Tensor
    entropies: Tensor

    @classmethod
    def of(cls, states: Tensor, logits: Tensor) -> Self:
        """The outlook of positions.

        Args:
            states: (positions, d) states at hand.
            logits: (positions, vocabulary) logits.
        """
        rows = max(1, _LOGITS_AT_ONCE // logits.shape[-1])
        parts = [_normalizer_and_entropy(chunk.float()) for chunk in logits.split(rows)]
        normalizers, entropies = (torch.cat(column) for column in zip(*parts, strict=True))
        return cls(states, logits, normalizers, entropies)

    def log_probabilities(self, rows: Tensor, token_ids: Tensor) -> Tensor:
        """(…) float32 log-probabilities of tokens (…) at positions (…)."""
        return self.logits[rows, token_ids].float() - self.normalizers[rows]

    def at_hand(self, row: int, token_ids: Tensor) -> AtHand:
        """What is known of one position, with the log-probabilities of its candidates (k,)."""
        logs = self.log_probabilities(torch.full_like(token_ids, row), token_ids)
        return AtHand(self.states[row].clone(), logs, self.entropies[row])


def _normalizer_and_entropy(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(rows,) each, of (rows, vocabulary) float32 logits; those that are not finite count as minus infinity."""
    normalizers = logits.logsumexp(-1)
    if logits.is_cuda or not bool(normalizers.isfinite().all()):
        logits = logits.nan_to_num(-torch.inf, -torch.inf, -torch.inf)
        normalizers = logits.logsumexp(-1)
    probabilities = (logits - normalizers[:, None]).exp_()
    # A forbidden token has probability zero, which times minus infinity would be NaN.
    expected = (probabilities * logits.clamp(min=torch.finfo(torch.float32).min)).sum(-1)
    return normalizers, normalizers - expected


def judge_before(
    sequences: Sequence[SequenceState | None],
    outlook: Outlook,
    token_ids: Tensor,
    counts: Tensor,
    fail: Callable[[Request, BaseException], None],
) -> Tensor:
    """Accept probabilities of whole candidate sets, by the agents that judge before.

    Args:
        sequences: Sequence of each position; None where nobody judges.
        outlook: What is known of these positions.
        token_ids: (positions, k) int64 candidates.
        counts: (positions,) int64 sizes of the candidate sets.
        fail: See `ask_each`.

    Returns:
        (positions, k) float32; 0 where nobody was asked.
    """
    probabilities = torch.zeros(token_ids.shape, dtype=torch.float32, device=token_ids.device)

    def ask(agent: nn.Module, action: int, rows: list[int]) -> None:
        own = torch.tensor(rows).to(token_ids.device)
        probabilities[own] = ask_before(agent, action, outlook, own, token_ids[own], counts[own])

    ask_each(sequences, ask, fail)
    return probabilities


def ask_before(
    agent: nn.Module, action: int, outlook: Outlook, positions: Tensor, token_ids: Tensor, counts: Tensor
) -> Tensor:
    """Accept probabilities of whole candidate sets by one agent that judges before.

    Args:
        agent: The agent, bound to the policy model's output embeddings.
        action: Its action that means accept.
        outlook: What is known of the positions.
        positions: (rows,) int64 position of each set in the outlook.
        token_ids: (rows, k) int64 candidates.
        counts: (rows,) int64 sizes of the candidate sets.

    Returns:
        (rows, k) float32; beyond a set 0, or what the agent says of a token that is no candidate.

    Raises:
        AgentMismatchError: If the agent answers in another shape.
    """
    inside = torch.arange(token_ids.shape[1], device=counts.device) < counts[:, None]
    # Counting candidates would make a GPU wait, which costs more there than judging all columns.
    rows, columns = _all_places(inside) if inside.is_cuda else inside.nonzero(as_tuple=True)
    tokens = token_ids[rows, columns]
    logs = outlook.log_probabilities(positions[rows], tokens)
    candidates = CandidatesAhead(outlook.states[positions], rows, tokens, logs, outlook.entropies[positions])
    answer = checked_answer(agent, agent.accept_probability(candidates, action), tokens.shape)  # type: ignore[operator]
    probabilities = torch.zeros(token_ids.shape, dtype=torch.float32, device=token_ids.device)
    probabilities[rows, columns] = answer.to(probabilities)
    return probabilities


def _all_places(table: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of every entry of a (rows, columns) table, row by row; (rows * columns,) int64 each."""
    rows, columns = (torch.arange(size, device=table.device) for size in table.shape)
    return rows.repeat_interleave(len(columns), output_size=table.numel()), columns.repeat(len(rows))


def choose_before(
    sequence: SequenceState,
    probabilities: list[float],
    scores: list[float],
    count: int,
    first_token: int,
    policy: Policy,
) -> None:
    """Chooses the candidate of a position that goes through the model.

    Args:
        sequence: The sequence.
        probabilities: Accept probabilities of its candidates; entries beyond the set are ignored.
        scores: Scores of its candidates.
        count: Size of the candidate set.
        first_token: Its first candidate.
        policy: The policy model, for messages.

    Raises:
        NonFiniteError: If there is no candidate, or the agent says NaN.
    """
    if count == 0:
        raise no_candidates_error(policy, sequence.token_ids)
    if not is_decidable(probabilities, count):
        raise nan_of_agent_error(policy.name)
    sequence.chosen = sequence.examine(probabilities[:count], count, scores, first_token)


def is_decidable(probabilities: list[float], count: int) -> bool:
    """Whether there are candidates, and the agent has said a number of each."""
    return count > 0 and not any(map(isnan, probabilities[:count]))
