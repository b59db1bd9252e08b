"""One pass: each sequence's siblings, drafted tokens after them, and what the agents say of their states."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import NamedTuple

import torch
from torch import Tensor

from langchain_mara.decoding.candidate_table import CandidateTable
from langchain_mara.decoding.cutting.lines import ReadLines
from langchain_mara.decoding.cutting.processing import PendingPosition
from langchain_mara.decoding.judging.before import choice_before, is_decidable
from langchain_mara.decoding.pass_width import PassWidthTuner
from langchain_mara.decoding.recovery import nan_of_agent_error, no_candidates_error
from langchain_mara.decoding.request import Decision
from langchain_mara.decoding.sequence import SequenceState
from langchain_mara.policy.cache import enlarged
from langchain_mara.policy.contract import Policy, RowCache


@dataclass(frozen=True)
class StepPlan:
    """The tokens of one pass: `width` for each sequence, its siblings first and its draft after them.

    Attributes:
        width: Tokens of each sequence.
        firsts: Index of each sequence's first sibling in its candidate set.
        columns: Column of its state among those of the sequence's candidates.
        drafts: Drafted tokens of each sequence; they continue its first sibling.
        slots: Cache slots of each sequence's tokens.
    """

    width: int
    firsts: list[int]
    columns: list[int]
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
        firsts = [sequence.first_column for sequence in sequences]
        if draft:
            pairs = zip(sequences, table.tokens(firsts, 1).flatten().tolist(), strict=True)
            drafts = [sequence.draft(first, draft, policy.context) for sequence, first in pairs]
        # A draft takes the place of a sequence's last siblings; the pass is only wider if the draft is longer.
        siblings, counts = _siblings_that_matter(sequences, table, width)
        if tuner is not None and siblings > 1:
            siblings = tuner.choose(policy, sequences, counts, siblings)
        width = max(siblings, 1 + max(map(len, drafts)))
        columns, slots = [sequence.first_slot for sequence in sequences], []
        for sequence, first in zip(sequences, columns, strict=True):
            sequence.reserve_scratch(first + width)
            slots.append(sequence.scratch[first : first + width])
        return cls(width, firsts, columns, drafts, slots)

    def siblings(self, row: int) -> int:
        """Number of siblings among a sequence's tokens."""
        return self.width - len(self.drafts[row])

    def follows(self, row: int, index: int) -> list[int]:
        """Columns of the states that the next candidate sets come from, once candidate `index` is decided.

        The first is the candidate's. Drafted tokens follow if they continue it.
        """
        first = self.columns[row]
        own = first + index - self.firsts[row]
        return [own, *range(first + self.siblings(row), first + self.width)] if own == first else [own]

    def line(self, row: int, ahead: int) -> int:
        """Line of the candidate table for the position that is `ahead` drafted tokens past a sequence's own."""
        return row if ahead == 0 else len(self.drafts) + row * self.width + ahead - 1

    def moves(
        self, sequences: Sequence[SequenceState], chosen: Mapping[int, int], states: Tensor
    ) -> tuple[list[tuple[int, int, int]], list[PendingPosition], Tensor]:
        """What follows from the emitted tokens of sequences that go on.

        Args:
            sequences: The running sequences.
            chosen: Index of the emitted candidate, by row.
            states: (rows, columns, d) states of the candidates.

        Returns:
            (row, slot, position) of each token to commit; positions to cut candidate sets for; (positions, d) states
            before these.
        """
        columns = {i: self.follows(i, index) for i, index in chosen.items()}
        commits = [(i, sequences[i].commit_slot(index), sequences[i].length - 1) for i, index in chosen.items()]
        ahead = [(i, n) for i, own in columns.items() for n in range(len(own))]
        positions = [PendingPosition(sequences[i], self.line(i, n), self.drafts[i][:n]) for i, n in ahead]
        return commits, positions, _states_at(states, [(i, columns[i][n]) for i, n in ahead])

    def run(self, policy: Policy, cache: RowCache, sequences: Sequence[SequenceState], table: CandidateTable) -> Tensor:
        """(rows, width, d) states of the pass's tokens."""
        span = max(sequence.next_slot for sequence in sequences)
        cache.reserve(len(sequences), span)
        token_ids, depths = table.tokens(self.firsts, self.width), None
        if any(self.drafts):
            padded = [[0] * self.siblings(i) + draft for i, draft in enumerate(self.drafts)]
            depths = [[0] * self.siblings(i) + [*range(1, len(draft) + 1)] for i, draft in enumerate(self.drafts)]
            drafted, ahead = torch.tensor([padded, depths]).to(policy.device)
            token_ids = torch.where(ahead > 0, drafted, token_ids)
        positions = [sequence.length for sequence in sequences]
        return policy.siblings(cache, token_ids, self.slots, positions, span, depths).to(policy.device)

    def among(self, earlier: Tensor, states: Tensor) -> Tensor:
        """(rows, columns, d) states of the candidates of all positions, those of this pass and earlier ones.

        Args:
            earlier: (rows, columns, d) states that are kept; overwritten if it is large enough.
            states: (rows, width, d) states of this pass's tokens.
        """
        if not any(self.columns):
            return states
        rows, device = len(states), states.device
        columns = torch.tensor(self.columns).to(device)[:, None] + torch.arange(self.width, device=device)
        # A quantized model computes in another dtype than it names; columns are kept as far as examined.
        kept = enlarged(earlier.to(states.dtype), (rows, max(self.columns) + self.width))
        kept[torch.arange(rows, device=device)[:, None], columns] = states
        return kept


def _states_at(states: Tensor, places: Sequence[tuple[int, int]]) -> Tensor:
    """(n, d) states in some rows and columns of (rows, columns, d) states."""
    if [*places] == [(row, 0) for row in range(states.shape[0])]:
        return states[:, 0]
    rows, columns = torch.tensor(places).to(states.device).unbind(1)
    return states[rows, columns]


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


def ending_rows(sequences: Sequence[SequenceState], sets: ReadLines, context: int | None) -> list[int]:
    """Indices of the sequences whose last token is chosen before its pass. Nobody reads its state, so it needs none.

    Args:
        sequences: The running sequences.
        sets: Their candidate sets.
        context: Most tokens of a sequence, or None.
    """

    def ends(sequence: SequenceState, token_ids: list[int]) -> bool:
        request = sequence.request
        if request.cancelled or request.keep_states or request.joint_process or sequence.chosen is None:
            return False
        return token_ids[sequence.chosen] in request.eos_token_ids or sequence.room(context) == 1

    return [i for i, each in enumerate(sequences) if each.judged_before and ends(each, sets.token_ids[i])]


class StepResult(NamedTuple):
    """What a pass gave, on the host. Lists are by row.

    Attributes:
        plan: The plan of the pass.
        probabilities: Accept probabilities of each sequence's tokens; None where no agent was asked.
        sets: Candidate sets of the sequences' positions.
    """

    plan: StepPlan
    probabilities: list[list[float]] | None
    sets: ReadLines

    def accept(self, row: int, start: int, stop: int) -> list[float]:
        """Accept probabilities of some of a sequence's tokens; 1 where nobody was asked."""
        return [1.0] * (stop - start) if self.probabilities is None else self.probabilities[row][start:stop]


def _siblings_that_matter(
    sequences: Sequence[SequenceState], table: CandidateTable, width: int
) -> tuple[int, list[int]]:
    """Siblings per sequence that can matter to the next decisions, at most `width`; and the sizes of the sets."""
    sizes = table.sizes()[: len(sequences)]
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
    sequence, count = sequences[row], result.sets.counts[row]
    if sequence.chosen is not None or sequence.request.cancelled:
        return
    if count == 0:
        raise no_candidates_error(policy, sequence.token_ids)
    siblings = result.accept(row, 0, result.plan.siblings(row))
    first = len(sequence.probabilities)
    nan = [first + i for i, probability in enumerate(siblings[: count - first]) if isnan(probability)]
    if nan and bool(states[row, nan].isfinite().all(-1).any()):
        raise nan_of_agent_error(policy.name)
    sequence.chosen = sequence.examine(siblings, count, result.sets.scores_of(row), result.sets.token_ids[row][0])


def follow_draft(
    row: int,
    sequence: SequenceState,
    decided: list[Decision],
    result: StepResult,
    states: Tensor,
    table: CandidateTable,
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
        context: Most tokens of a sequence, or None.

    Returns:
        (row, slot, position) of each token to commit.
    """
    plan, (sets, _) = result.plan, table.read()
    commits = []
    right, siblings = 0, plan.siblings(row)
    for token in plan.drafts[row]:
        line, column = plan.line(row, right), siblings + right
        candidates = sets.candidates(line)
        if decided[-1].finish_reason:
            break
        skips = sets.skips(line)
        if sequence.judged_before:
            # What cannot be decided is an error, which the next pass finds.
            if not skips and not is_decidable(sets, line):
                break
            index = sequence.chosen = sequence.skip() if skips else choice_before(sequence, sets, line)
            if index is None or candidates[index] != token:
                break
            sequence.make_first_candidate(plan.slots[row][column])
        else:
            if candidates[:1] != [token]:
                break
            sequence.make_first_candidate(plan.slots[row][column])
            verdict = result.accept(row, column, column + 1)
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
