"""One pass: each sequence's siblings, drafted tokens after them, and what the agents say of their states."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from langchain_mara.decoding.candidate_table import CandidateTable
from langchain_mara.decoding.pass_width import PassWidthTuner
from langchain_mara.decoding.request import Request
from langchain_mara.decoding.sequence import SequenceState
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
    sequences: Sequence[SequenceState], states: Tensor, fail: Callable[[Request, Exception], None]
) -> Tensor:
    """Accept probabilities by each sequence's agent; sequences without an agent accept everything.

    Args:
        sequences: The running sequences.
        states: (rows, width, d).
        fail: Called with each request whose agent raises, and the error.

    Returns:
        (rows, width) float32.
    """
    keys = [(sequence.agent, sequence.request.options.accept_action) for sequence in sequences]
    probabilities = torch.ones(states.shape[:2], device=states.device)
    for agent, action in set(keys):
        if agent is None:
            continue
        rows = [i for i, key in enumerate(keys) if key == (agent, action)]
        index: Any = slice(None) if len(rows) == len(keys) else torch.tensor(rows).to(states.device)
        try:
            probabilities[index] = agent.accept_probability(states[index], action)  # type: ignore[operator]
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - an agent may be anybody's
            for i in rows:
                fail(sequences[i].request, error)
    return probabilities


def to_host(*tensors: Tensor) -> list[Any]:
    """Tensors as lists, by one synchronization per device."""
    # Only CUDA's copies may be asynchronous: what another device is still writing could be read too early.
    copies = [tensor.to("cpu", non_blocking=tensor.is_cuda) for tensor in tensors]
    for device in {tensor.device for tensor in tensors if tensor.is_cuda}:
        torch.cuda.current_stream(device).synchronize()
    return [copy.tolist() for copy in copies]
