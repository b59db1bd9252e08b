"""Agents that judge a candidate before it goes through the model: what they read, and the choice by what they say.

The candidate set of a position is judged as a whole when it is cut. Only the chosen candidate goes through the model,
so there are no siblings, and a draft continues the chosen candidate.
"""

from collections.abc import Callable, Sequence
from math import isfinite, isnan
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from langchain_mara.agents.look_ahead import CandidatesAhead
from langchain_mara.decoding.candidates import CandidateSets
from langchain_mara.decoding.cutting.lines import ReadLines
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
        if logits.shape[0] <= rows:
            return cls(states, logits, *_normalizer_and_entropy(logits.float()))
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
    if logits.device.type == "cpu":
        normalizers, entropies = _of_finite(logits)
        if all(map(isfinite, entropies.tolist())):
            return normalizers, entropies
    # A forbidden token has probability zero, which times minus infinity would be NaN.
    least = torch.finfo(torch.float32).min
    return _of_finite(logits.nan_to_num(least, least, least))


def _of_finite(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(rows,) normalizers and entropies; NaN where a logit is not finite. It makes one tensor of the logits' size."""
    probabilities = logits.softmax(-1)
    # The most probable token has the largest logit, so both tell the same normalizer.
    normalizers = logits.amax(-1) - probabilities.amax(-1).log_()
    return normalizers, normalizers - probabilities.mul_(logits).sum(-1)


def judge_before(
    sequences: Sequence[SequenceState | None],
    outlook: Outlook,
    sets: CandidateSets,
    fail: Callable[[Request, BaseException], None],
) -> Tensor:
    """Accept probabilities of whole candidate sets, by the agents that judge before.

    Args:
        sequences: Sequence of each position; None where nobody judges.
        outlook: What is known of these positions.
        sets: Their candidate sets.
        fail: See `ask_each`.

    Returns:
        (positions, k) float32; 0 where nobody was asked.
    """
    probabilities: list[Tensor] = []

    def ask(agent: nn.Module, action: int, rows: list[int]) -> None:
        if len(rows) == len(sequences):
            probabilities.append(ask_before(agent, action, outlook, None, sets.token_ids, sets.counts))
            return
        own = torch.tensor(rows).to(sets.counts.device)
        answer = ask_before(agent, action, outlook, own, sets.token_ids[own], sets.counts[own])
        probabilities.append(torch.zeros_like(sets.scores).index_copy_(0, own, answer))

    ask_each(sequences, ask, fail)
    return sum(probabilities[1:], probabilities[0]) if probabilities else torch.zeros_like(sets.scores)


def ask_before(
    agent: nn.Module, action: int, outlook: Outlook, positions: Tensor | None, token_ids: Tensor, counts: Tensor
) -> Tensor:
    """Accept probabilities of whole candidate sets by one agent that judges before.

    Args:
        agent: The agent, bound to the policy model's output embeddings.
        action: Its action that means accept.
        outlook: What is known of the positions.
        positions: (rows,) int64 position of each set in the outlook; None if these are all, in order.
        token_ids: (rows, k) int64 candidates.
        counts: (rows,) int64 sizes of the candidate sets.

    Returns:
        (rows, k) float32; beyond a set 0, or what the agent says of a token that is no candidate.

    Raises:
        AgentMismatchError: If the agent answers in another shape.
    """
    rows, columns = _places(token_ids, counts)
    tokens, states, entropies = token_ids[rows, columns], outlook.states, outlook.entropies
    if positions is not None:
        states, entropies = states[positions], entropies[positions]
    logs = outlook.log_probabilities(rows if positions is None else positions[rows], tokens)
    candidates = CandidatesAhead(states, rows, tokens, logs, entropies)
    answer = checked_answer(agent, agent.accept_probability(candidates, action), tokens.shape)  # type: ignore[operator]
    probabilities = torch.zeros(token_ids.shape, dtype=torch.float32, device=token_ids.device)
    probabilities[rows, columns] = answer.to(probabilities)
    return probabilities


def _places(token_ids: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of every candidate, row by row, of (rows, k) sets; (candidates,) int64 each."""
    if counts.is_cuda:  # counting candidates would make it wait, which costs more than judging all columns
        return _all_places(token_ids)
    if len(counts) == 1:
        columns = torch.arange(int(counts))
        return torch.zeros_like(columns), columns
    rows, columns = (torch.arange(token_ids.shape[1]) < counts[:, None]).nonzero(as_tuple=True)
    return rows, columns


def _all_places(table: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of every entry of a (rows, columns) table, row by row; (rows * columns,) int64 each."""
    rows, columns = (torch.arange(size, device=table.device) for size in table.shape)
    return rows.repeat_interleave(len(columns), output_size=table.numel()), columns.repeat(len(rows))


def choose_before(sequence: SequenceState, sets: ReadLines, line: int, policy: Policy) -> None:
    """Chooses the candidate of a position that goes through the model.

    Args:
        sequence: The sequence.
        sets: Candidate sets with what agents say of them.
        line: Line of the sequence.
        policy: The policy model, for messages.

    Raises:
        NonFiniteError: If there is no candidate, or the agent says NaN.
    """
    if sets.counts[line] == 0:
        raise no_candidates_error(policy, sequence.token_ids)
    if not is_decidable(sets, line):
        raise nan_of_agent_error(policy.name)
    sequence.chosen = choice_before(sequence, sets, line)


def choice_before(sequence: SequenceState, sets: ReadLines, line: int) -> int | None:
    """Index of the candidate that the rule chooses; see `choose_before`."""
    return sequence.examine(sets.accept_of(line), sets.counts[line], sets.scores_of(line), sets.token_ids[line][0])


def is_decidable(sets: ReadLines, line: int) -> bool:
    """Whether there are candidates, and the agent has said a number of each."""
    return sets.counts[line] > 0 and not any(map(isnan, sets.accept_of(line)))
