"""One pass: each sequence's siblings, drafted tokens after them, and what the agents say of their states."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from langchain_mara.decoding.candidate_table import CandidateTable
from langchain_mara.decoding.pass_width import PassWidthTuner
from langchain_mara.decoding.recovery import attempt, nan_of_agent_error, no_candidates_error
from langchain_mara.decoding.request import Decision, Request
from langchain_mara.decoding.sequence import SequenceState
from langchain_mara.exceptions import AgentMismatchError, NonFiniteError
from langchain_mara.policy.cache import RaggedCache
from langchain_mara.policy.model import PolicyModel


@dataclass(frozen=True)
class StepPlan:
    """The tokens of one pass: `width` for each sequence, its siblings first and its draft after them.

    Attributes:
        width: Tokens of each sequence.
        examined: Number of candidates that earlier passes have examined, for each sequence.
        drafts: Drafted tokens of each sequence; they continue its first sibling.
        slots: Cache slots of each sequence's tokens.
    """

    width: int
    examined: list[int]
    drafts: list[list[int]]
    slots: list[list[int]]

    @classmethod
    def make(
        cls,
        sequences: Sequence[SequenceState],
        table: CandidateTable,
        policy: PolicyModel,
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
            firsts = table.token_ids[: len(sequences), 0].tolist()
            pairs = zip(sequences, firsts, strict=True)
            drafts = [sequence.draft(first, draft, policy.context) for sequence, first in pairs]
        # A draft takes the place of a sequence's last siblings; the pass is only wider if the draft is longer.
        siblings, counts = _siblings_that_matter(sequences, table, width)
        if tuner is not None and siblings > 1:
            siblings = tuner.choose(policy, sequences, counts, siblings)
        width = max(siblings, 1 + max(map(len, drafts)))
        examined = [len(sequence.probabilities) for sequence in sequences]
        for sequence, start in zip(sequences, examined, strict=True):
            sequence.reserve_scratch(start + width)
        slots = [sequence.scratch[start : start + width] for sequence, start in zip(sequences, examined, strict=True)]
        return cls(width, examined, drafts, slots)

    def siblings(self, row: int) -> int:
        """Number of siblings among a sequence's tokens."""
        return self.width - len(self.drafts[row])

    def line(self, row: int, ahead: int) -> int:
        """Line of the candidate table for the position that is `ahead` drafted tokens past a sequence's own."""
        return row if ahead == 0 else len(self.drafts) + row * self.width + ahead - 1

    def columns(self, device: torch.device) -> Tensor:
        """(rows, width) int64: index of each sibling in the candidate set of its position."""
        return torch.tensor(self.examined).to(device)[:, None] + torch.arange(self.width, device=device)

    def run(
        self,
        policy: PolicyModel,
        cache: RaggedCache,
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
        # Past the end of a set the last column is repeated; nobody looks at such siblings.
        candidates = table.token_ids[: len(sequences)]
        token_ids = candidates.gather(1, columns.clamp(max=candidates.shape[1] - 1))
        depths = None
        if any(self.drafts):
            padded = [[0] * self.siblings(i) + draft for i, draft in enumerate(self.drafts)]
            ordinals = [[0] * self.siblings(i) + [*range(1, len(draft) + 1)] for i, draft in enumerate(self.drafts)]
            drafted, depths = torch.tensor([padded, ordinals]).to(device)
            token_ids = torch.where(depths > 0, drafted, token_ids)
        return policy.siblings(cache, token_ids, slots, positions, span, depths).to(device)


class StepResult(NamedTuple):
    """What a pass gave, on the host. Lists are by row.

    Attributes:
        plan: The plan of the pass.
        probabilities: Accept probabilities of each sequence's tokens.
        candidates: Candidate set of each sequence's position; entries beyond `counts` mean nothing.
        counts: Size of each sequence's candidate set.
    """

    plan: StepPlan
    probabilities: list[list[float]]
    candidates: list[list[int]]
    counts: list[int]


def _siblings_that_matter(
    sequences: Sequence[SequenceState], table: CandidateTable, width: int
) -> tuple[int, list[int]]:
    """Siblings per sequence that can matter to the next decisions, at most `width`; and the sizes of the sets."""
    most, counts = table.token_ids.shape[1], table.counts
    # Reading set sizes costs a synchronization on CUDA and nothing on the CPU.
    sizes = (counts.tolist() if counts.device.type == "cpu" else [most] * len(sequences))[: len(sequences)]
    wanted = max(sequence.siblings_wanted(size) for sequence, size in zip(sequences, sizes, strict=True))
    return min(width, wanted), sizes


def ask_agents(
    sequences: Sequence[SequenceState], states: Tensor, fail: Callable[[Request, BaseException], None]
) -> Tensor:
    """Accept probabilities by each sequence's agent; sequences without an agent accept everything.

    Args:
        sequences: The running sequences.
        states: (rows, width, d).
        fail: Called with each request whose agent raises or answers in another shape, and the error.

    Returns:
        (rows, width) float32.
    """
    # By identity: an agent may say that it equals another caller's.
    keys = [(id(sequence.agent), sequence.request.options.accept_action) for sequence in sequences]
    probabilities = torch.ones(states.shape[:2], device=states.device)
    for key in dict.fromkeys(keys):
        rows = [i for i, other in enumerate(keys) if other == key]
        agent, action = sequences[rows[0]].agent, key[1]
        if agent is None:
            continue
        error = _ask(agent, action, states, rows, probabilities)
        if error is None:
            continue
        for row in rows:
            # One sequence's states may be to blame, so each is judged alone.
            own_error = error if len(rows) == 1 else _ask(agent, action, states, [row], probabilities)
            if own_error is not None:
                fail(sequences[row].request, own_error)
    return probabilities


def _ask(agent: nn.Module, action: int, states: Tensor, rows: list[int], probabilities: Tensor) -> BaseException | None:
    """Writes what an agent says of rows of the states into the same rows of the probabilities; returns its error.

    Raises:
        torch.OutOfMemoryError: If memory runs out, which is nobody's fault.
    """
    index: Any = slice(None) if len(rows) == len(states) else torch.tensor(rows).to(states.device)

    def ask() -> None:
        answer = agent.accept_probability(states[index], action)  # type: ignore[operator]
        if not isinstance(answer, Tensor) or answer.shape != (len(rows), states.shape[1]):
            kind = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
            raise AgentMismatchError(
                f"{type(agent).__name__}.accept_probability returned {kind} for {tuple(states[index].shape)} states. "
                "Return one probability for each state, in a tensor without the last dimension."
            )
        probabilities[index] = answer.to(probabilities)

    error = attempt(ask)
    if isinstance(error, torch.OutOfMemoryError):
        raise error
    return error


def nonfinite_error(
    policy: PolicyModel, sequence: SequenceState, siblings: list[float], count: int, states: Tensor
) -> NonFiniteError | None:
    """The error of a sequence without candidates, or whose agent says NaN of a finite state; None if there is none.

    Args:
        policy: The policy model.
        sequence: The sequence.
        siblings: Accept probabilities of the pass.
        count: Size of the candidate set.
        states: (columns, d) states of the position's candidates.
    """
    if count == 0:
        return no_candidates_error(policy, sequence.token_ids)
    first = len(sequence.probabilities)
    nan = [first + i for i, probability in enumerate(siblings[: count - first]) if isnan(probability)]
    return nan_of_agent_error(policy.name) if nan and bool(states[nan].isfinite().all(-1).any()) else None


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

    A drafted token that is candidate 0 of its position is examined as the first of that position's siblings.

    Args:
        row: Row of the sequence.
        sequence: The sequence.
        decided: Decisions of the sequence in this pass; further ones are appended.
        result: What the pass gave.
        states: (rows, columns, d) states of the siblings; the state of a draft that was rejected becomes the first.
        table: The candidate table; the set of the position reached becomes the sequence's own.
        sets: Lines of the candidate table, and the size of the set in each.
        context: Most tokens of a sequence, or None.

    Returns:
        (row, slot, position) of each token to commit.
    """
    plan, (lines, counts) = result.plan, sets
    commits = []
    right, siblings = 0, plan.siblings(row)
    for token in plan.drafts[row]:
        line, column = plan.line(row, right), siblings + right
        candidates = lines[line][: counts[line]]
        if candidates[:1] != [token] or decided[-1].finish_reason:
            break
        sequence.make_first_candidate(plan.slots[row][column])
        index = sequence.examine(result.probabilities[row][column : column + 1], len(candidates))
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


def to_host(*tensors: Tensor) -> list[Any]:
    """Tensors as lists, by one synchronization per device."""
    # Only CUDA's copies may be asynchronous: what another device is still writing could be read too early.
    copies = [tensor.to("cpu", non_blocking=tensor.is_cuda) for tensor in tensors]
    for device in {tensor.device for tensor in tensors if tensor.is_cuda}:
        torch.cuda.current_stream(device).synchronize()
    return [copy.tolist() for copy in copies]
