"""One pass: each sequence's siblings, drafted tokens after them, and what the agents say of their states."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any, NamedTuple

import torch
from torch import Tensor

from langchain_mara.decoding.candidate_table import CandidateTable
from langchain_mara.decoding.judging.before import is_decidable
from langchain_mara.decoding.pass_width import PassWidthTuner
from langchain_mara.decoding.recovery import nan_of_agent_error, no_candidates_error
from langchain_mara.decoding.request import Decision
from langchain_mara.decoding.sequence import SequenceState
from langchain_mara.policy.contract import Policy, RowCache


@dataclass(frozen=True)
class StepPlan:
    """The tokens of one pass: `width` for each sequence, its siblings first and its draft after them.

    Attributes:
        width: Tokens of each sequence.
        firsts: Index of each sequence's first sibling in its candidate set.
        drafts: Drafted tokens of each sequence; they continue its first sibling.
        slots: Cache slots of each sequence's tokens.
    """

    width: int
    firsts: list[int]
    drafts: list[list[int]]
    slots: list[list[int]]

    @classmethod
    def make(
        cls,
        sequences: Sequence[SequenceState],
        table: CandidateTable,
        policy: Policy,
        width: int,
        draft: int,
        tuner: PassWidthTuner | None = None,
    ) -> "StepPlan":
        """Chooses drafts and width, and reserves the sequences' scratch slots.

        Args:
            sequences: The running sequences.
            table: Their candidate sets.
            policy: The policy model.
            width: Most siblings of a sequence.
            draft: Most drafted tokens of a sequence.
            tuner: Chooses the width, up to `width`; without it the pass is as wide as can matter.
        """
        drafts: list[list[int]] = [[] for _ in sequences]
        if draft:
            columns = torch.tensor([[sequence.first_column] for sequence in sequences]).to(policy.device)
            tokens = _at(table.token_ids[: len(sequences)], columns).squeeze(1).tolist()
            pairs = zip(sequences, tokens, strict=True)
            drafts = [sequence.draft(first, draft, policy.context) for sequence, first in pairs]
        # A draft takes the place of a sequence's last siblings; the pass is only wider if the draft is longer.
        siblings, counts = _siblings_that_matter(sequences, table, width)
        if tuner is not None and siblings > 1:
            siblings = tuner.choose(policy, sequences, counts, siblings)
        width = max(siblings, 1 + max(map(len, drafts)))
        slots = []
        for sequence in sequences:
            sequence.reserve_scratch(sequence.first_slot + width)
            slots.append(sequence.scratch[sequence.first_slot : sequence.first_slot + width])
        return cls(width, [sequence.first_column for sequence in sequences], drafts, slots)

    def siblings(self, row: int) -> int:
        """Number of siblings among a sequence's tokens."""
        return self.width - len(self.drafts[row])

    def follows(self, row: int, index: int) -> list[int]:
        """Columns of the states that the next candidate sets come from, once candidate `index` is decided.

        The first is the candidate's. Drafted tokens follow if they continue it.
        """
        first = self.firsts[row]
        return [index, *range(first + self.siblings(row), first + self.width)] if index == first else [index]

    def line(self, row: int, ahead: int) -> int:
        """Line of the candidate table for the position that is `ahead` drafted tokens past a sequence's own."""
        return row if ahead == 0 else len(self.drafts) + row * self.width + ahead - 1

    def columns(self, device: torch.device) -> Tensor:
        """(rows, width) int64: index of each sibling in the candidate set of its position."""
        return torch.tensor(self.firsts).to(device)[:, None] + torch.arange(self.width, device=device)

    def run(
        self,
        policy: Policy,
        cache: RowCache,
        sequences: Sequence[SequenceState],
        table: CandidateTable,
        columns: Tensor,
    ) -> Tensor:
        """(rows, width, d) states of the pass's tokens; `columns` is what the method of that name returns."""
        device = policy.device
        span = max(sequence.next_slot for sequence in sequences)
        cache.reserve(len(sequences), span)
        positions = torch.tensor([sequence.length for sequence in sequences]).to(device)
        slots = torch.tensor(self.slots).to(device)
        token_ids = _at(table.token_ids[: len(sequences)], columns)
        depths = None
        if any(self.drafts):
            padded = [[0] * self.siblings(i) + draft for i, draft in enumerate(self.drafts)]
            ordinals = [[0] * self.siblings(i) + [*range(1, len(draft) + 1)] for i, draft in enumerate(self.drafts)]
            drafted, depths = torch.tensor([padded, ordinals]).to(device)
            token_ids = torch.where(depths > 0, drafted, token_ids)
        return policy.siblings(cache, token_ids, slots, positions, span, depths).to(device)


def _at(candidates: Tensor, columns: Tensor) -> Tensor:
    """(rows, n) candidates in columns (rows, n). Past the end of a set the last one is repeated; nobody looks there."""
    return candidates.gather(1, columns.clamp(max=candidates.shape[1] - 1))


def decided_rows(sequences: Sequence[SequenceState]) -> list[int]:
    """Indices of the sequences that may move on: their candidate is known, and so are those of who goes with them.

    Args:
        sequences: The running sequences.
    """
    running = {i: sequence for i, sequence in enumerate(sequences) if not sequence.request.cancelled}
    waited_for = {sequence.request.joint_process for sequence in running.values() if sequence.chosen is None} - {None}
    return [
        i
        for i, sequence in running.items()
        if sequence.chosen is not None and sequence.request.joint_process not in waited_for
    ]


class StepResult(NamedTuple):
    """What a pass gave, on the host. Lists are by row.

    Attributes:
        plan: The plan of the pass.
        probabilities: Accept probabilities of each sequence's tokens.
        candidates: Candidate set of each sequence's position; entries beyond `counts` mean nothing.
        counts: Size of each sequence's candidate set.
        scores: Scores of its candidates.
    """

    plan: StepPlan
    probabilities: list[list[float]]
    candidates: list[list[int]]
    counts: list[int]
    scores: list[list[float]]


def _siblings_that_matter(
    sequences: Sequence[SequenceState], table: CandidateTable, width: int
) -> tuple[int, list[int]]:
    """Siblings per sequence that can matter to the next decisions, at most `width`; and the sizes of the sets."""
    most, counts = table.token_ids.shape[1], table.counts
    # Reading set sizes costs a synchronization on CUDA and nothing on the CPU.
    sizes = (counts.tolist() if counts.device.type == "cpu" else [most] * len(sequences))[: len(sequences)]
    wanted = max(sequence.siblings_wanted(size) for sequence, size in zip(sequences, sizes, strict=True))
    return min(width, wanted), sizes


def examine_siblings(
    policy: Policy, sequences: Sequence[SequenceState], result: StepResult, states: Tensor, row: int
) -> None:
    """Applies the rule to a sequence's siblings, unless its candidate is known already.

    Args:
        policy: The policy model, for messages.
        sequences: The running sequences.
        result: What the pass gave.
        states: (rows, columns, d) states of the candidates.
        row: Row of the sequence.

    Raises:
        NonFiniteError: If the sequence has no candidates, or its agent says NaN of a finite state.
    """
    sequence, count = sequences[row], result.counts[row]
    if sequence.chosen is not None or sequence.request.cancelled:
        return
    if count == 0:
        raise no_candidates_error(policy, sequence.token_ids)
    siblings = result.probabilities[row][: result.plan.siblings(row)]
    first = len(sequence.probabilities)
    nan = [first + i for i, probability in enumerate(siblings[: count - first]) if isnan(probability)]
    if nan and bool(states[row, nan].isfinite().all(-1).any()):
        raise nan_of_agent_error(policy.name)
    sequence.chosen = sequence.examine(siblings, count, result.scores[row], result.candidates[row][0])


def follow_draft(
    row: int,
    sequence: SequenceState,
    decided: list[Decision],
    result: StepResult,
    states: Tensor,
    table: CandidateTable,
    sets: Sequence[Any],
    context: int | None,
) -> list[tuple[int, int, int]]:
    """Emits a sequence's drafted tokens as far as the rule does.

    A drafted token that is candidate 0 of its position is examined as the first of that position's siblings. Where the
    agent judges before, the position is decided already, and the drafted token is right if it was chosen.

    Args:
        row: Row of the sequence.
        sequence: The sequence.
        decided: Decisions of the sequence in this pass; further ones are appended.
        result: What the pass gave.
        states: (rows, columns, d) states of the siblings; the state of a draft that was rejected becomes the first.
        table: The candidate table; the set of the position reached becomes the sequence's own.
        sets: Lines of the candidate table, the size of the set in each, scores, accept probabilities of agents that
            judge before, and whether the agent is asked.
        context: Most tokens of a sequence, or None.

    Returns:
        (row, slot, position) of each token to commit.
    """
    plan, (lines, counts, scores, accept, asks) = result.plan, sets
    commits = []
    right, siblings = 0, plan.siblings(row)
    for token in plan.drafts[row]:
        line, column = plan.line(row, right), siblings + right
        candidates = lines[line][: counts[line]]
        if decided[-1].finish_reason:
            break
        skips = not asks[line] and len(candidates) > 1
        if sequence.judged_before:
            # What cannot be decided is an error, which the next pass finds.
            if not skips and not is_decidable(accept[line], len(candidates)):
                break
            verdicts = accept[line], len(candidates), scores[line], lines[line][0]
            index = sequence.chosen = sequence.skip() if skips else sequence.examine(*verdicts)
            if index is None or candidates[index] != token:
                break
            sequence.make_first_candidate(plan.slots[row][column])
        else:
            if candidates[:1] != [token]:
                break
            sequence.make_first_candidate(plan.slots[row][column])
            verdict = result.probabilities[row][column : column + 1]
            index = sequence.skip() if skips else sequence.examine(verdict, len(candidates), first_token=token)
            if index is None:
                states[row, 0] = states[row, column]
                break
        decided.append(sequence.decide(index, candidates, context, drafted=True))
        right += 1
        if decided[-1].finish_reason is None:
            commits.append((row, sequence.commit_slot(index), sequence.length - 1))
    sequence.record_draft(len(plan.drafts[row]), right)
    table.move(plan.line(row, right), row)
    return commits
