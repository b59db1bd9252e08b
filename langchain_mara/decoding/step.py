"""One pass: siblings of every row's position and drafts behind them, and what the agents say of their states."""

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
    """The tokens of one pass: as many of every row, first siblings and then the row's draft.

    Attributes:
        width: Tokens of a row.
        examined: Of every row, candidates examined in earlier passes.
        drafts: Of every row, its drafted tokens, which continue its first sibling.
        slots: Of every row, the cache slots of its tokens.
    """

    width: int
    examined: list[int]
    drafts: list[list[int]]
    slots: list[list[int]]

    @classmethod
    def plan(
        cls,
        rows: Sequence[SequenceState],
        table: CandidateTable,
        policy: PolicyModel,
        width: int,
        draft: int,
        widths: PassWidthTuner | None = None,
    ) -> "StepPlan":
        """Chooses drafts and width, and reserves the rows' scratch slots.

        Args:
            rows: The running rows.
            table: Their candidate sets.
            policy: The policy model.
            width: Most siblings of a row.
            draft: Most drafted tokens of a row.
            widths: Chooses the width, up to `width`; without it, as many as may matter.
        """
        drafts: list[list[int]] = [[] for _ in rows]
        if draft:
            firsts = table.token_ids[: len(rows), 0].tolist()
            drafts = [row.draft(first, draft, policy.context) for row, first in zip(rows, firsts, strict=True)]
        # A draft takes the place of a row's last siblings, and the pass is wider only if it is longer than they are.
        wanted, counts = _siblings(rows, table, width)
        if widths is not None and wanted > 1:
            wanted = widths.choose(policy, rows, counts, wanted)
        width = max(wanted, 1 + max(map(len, drafts)))
        examined = [len(row.probabilities) for row in rows]
        for row, start in zip(rows, examined, strict=True):
            row.reserve_scratch(start + width)
        slots = [row.scratch[start : start + width] for row, start in zip(rows, examined, strict=True)]
        return cls(width, examined, drafts, slots)

    def siblings(self, row: int) -> int:
        """How many of a row's tokens are siblings."""
        return self.width - len(self.drafts[row])

    def line(self, row: int, ahead: int) -> int:
        """Line of the candidate table for the set of a row's position `ahead` drafted tokens further on."""
        return row if ahead == 0 else len(self.drafts) + row * self.width + ahead - 1

    def columns(self, device: torch.device) -> Tensor:
        """(rows, width) int64: which candidate of its position each sibling is."""
        return torch.tensor(self.examined).to(device)[:, None] + torch.arange(self.width, device=device)

    def run(
        self,
        policy: PolicyModel,
        cache: RaggedCache,
        rows: Sequence[SequenceState],
        table: CandidateTable,
        columns: Tensor,
    ) -> Tensor:
        """(rows, width, d) states of the pass's tokens; `columns` as the method of that name gives them."""
        device = policy.device
        span = max(row.next_slot for row in rows)
        cache.reserve(len(rows), span)
        positions = torch.tensor([row.length for row in rows]).to(device)
        slots = torch.tensor(self.slots).to(device)
        # Past the end of a set the last column is repeated: such siblings are never looked at.
        candidates = table.token_ids[: len(rows)]
        token_ids = candidates.gather(1, columns.clamp(max=candidates.shape[1] - 1))
        depths = None
        if any(self.drafts):
            padded = [[0] * self.siblings(i) + draft for i, draft in enumerate(self.drafts)]
            ordinals = [[0] * self.siblings(i) + [*range(1, len(draft) + 1)] for i, draft in enumerate(self.drafts)]
            drafted, depths = torch.tensor([padded, ordinals]).to(device)
            token_ids = torch.where(depths > 0, drafted, token_ids)
        return policy.siblings(cache, token_ids, slots, positions, span, depths).to(device)


class StepResult(NamedTuple):
    """What a pass says, on the host.

    Attributes:
        this: The pass.
        probabilities: Of every row, accept probabilities of its tokens.
        candidates: Of every row, the line of the candidate table.
        counts: Of every row, the size of the set.
    """

    this: StepPlan
    probabilities: list[list[float]]
    candidates: list[list[int]]
    counts: list[int]


def _siblings(rows: Sequence[SequenceState], table: CandidateTable, width: int) -> tuple[int, list[int]]:
    """Siblings per row in the next pass, as many as may matter, at most `width`; and the sizes of the rows' sets."""
    most, counts = table.token_ids.shape[1], table.counts
    # Reading set sizes costs a sync on CUDA and nothing on the CPU.
    known = (counts.tolist() if counts.device.type == "cpu" else [most] * len(rows))[: len(rows)]
    return min(width, max(row.siblings_wanted(n) for row, n in zip(rows, known, strict=True))), known


def ask_agents(rows: Sequence[SequenceState], states: Tensor, fail: Callable[[Request, Exception], None]) -> Tensor:
    """Accept probabilities by each row's agent; rows without an agent accept everything.

    Args:
        rows: The rows.
        states: (rows, width, d).
        fail: Told of every request whose agent raises.

    Returns:
        (rows, width) float32.
    """
    keys = [(row.agent, row.request.options.accept_action) for row in rows]
    probabilities = torch.ones(states.shape[:2], device=states.device)
    for agent, action in set(keys):
        if agent is None:
            continue
        mine = [i for i, key in enumerate(keys) if key == (agent, action)]
        chosen: Any = slice(None) if len(mine) == len(keys) else torch.tensor(mine).to(states.device)
        try:
            probabilities[chosen] = agent.accept_probability(states[chosen], action)  # type: ignore[operator]
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - an agent may be anybody's
            for i in mine:
                fail(rows[i].request, error)
    return probabilities


def to_host(*tensors: Tensor) -> list[Any]:
    """Tensors as lists, by one synchronization per device."""
    # Only CUDA's copies may be asynchronous: what other devices are still writing could be read too early.
    copies = [tensor.to("cpu", non_blocking=tensor.is_cuda) for tensor in tensors]
    for device in {tensor.device for tensor in tensors if tensor.is_cuda}:
        torch.cuda.current_stream(device).synchronize()
    return [copy.tolist() for copy in copies]
