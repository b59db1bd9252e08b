"""The running batch: rows side by side on the device, one pass over their siblings at a time."""

import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from langchain_mara.cache import enlarged
from langchain_mara.policy import PolicyModel
from langchain_mara.prefixes import Block, PrefixStore
from langchain_mara.requests import Decision, Request
from langchain_mara.rows import Row
from langchain_mara.table import CandidateTable

_OUT_OF_MEMORY = (
    "Out of memory on {} with a single row of {} tokens. Shorten the prompt, lower max_new_tokens or top_k, "
    "or load the model in a smaller dtype."
)

_Evaluated = tuple[list[list[float]], list[list[int]], list[int]]
"""Of every row: accept probabilities of the chunk, candidate ids, size of the set."""


class Batch:
    """Rows 0 … n-1 of a `RaggedCache`, with their candidate sets and siblings' states.

    Args:
        policy: The policy model.
        width: Most siblings of a row in one pass. Results never depend on it.
        prefixes: Where prefixes are kept for later prompts.
        raising: Whether what fails one request is raised, or becomes its `error`.

    Attributes:
        rows: The running rows.
        parked: Rows that had to leave for want of memory and wait for their return.
        left: Requests that are done, whether finished, cancelled or failed; the reader empties it.
        limit: Most rows that fit into memory, as far as is known.
    """

    def __init__(
        self, policy: PolicyModel, width: int, prefixes: PrefixStore | None = None, *, raising: bool = True
    ) -> None:
        self.policy = policy
        self.width = self._asked_width = width
        self.raising = raising
        self.prefixes = prefixes or PrefixStore(budget=0)
        self.rows: list[Row] = []
        self.parked: list[Row] = []
        self.left: list[Request] = []
        self.limit = sys.maxsize
        self._reset()

    def _reset(self) -> None:
        device = self.policy.device
        self.cache = self.policy.new_cache()
        self.table = CandidateTable(self.policy, self._fail)
        self._states = torch.zeros((0, 0, self.policy.hidden_size), dtype=self.policy.model.dtype, device=device)

    def room(self, batch_size: int) -> int:
        """How many further requests can be admitted."""
        return max(0, min(batch_size, self.limit) - len(self.rows) - len(self.parked))

    def admit(self, requests: Iterable[Request]) -> None:
        """Prefills parked and new rows behind the ones in use and cuts their first candidate sets."""
        self.left += [row.request for row in self.parked if row.request.cancelled]
        self.parked = [row for row in self.parked if row.request not in self.left]
        back = max(0, self.limit - len(self.rows))
        entering, self.parked = self.parked[:back], self.parked[back:]
        entering += [Row(request, len(request.prompt_ids)) for request in requests if self._ready(request)]
        while entering:
            wave, entering = self._wave(entering)
            first = len(self.rows)
            if not self._fits(partial(self._prefill, wave)):
                self.rows[first:] = wave
                self.parked = entering + self.parked
                self._park(first, first + len(wave) // 2)
                return

    def _ready(self, request: Request) -> bool:
        """Whether a request can become a row; one that cannot has left."""
        if not request.cancelled:
            try:
                request.check(self.policy)
                if request.agent is not None:
                    request.agent.to(self.policy.device)
            except Exception as error:  # noqa: BLE001 - whatever it is, it concerns this request alone
                self._fail(request, error)
        if request.cancelled:
            self.left.append(request)
        return not request.cancelled

    def _wave(self, rows: list[Row]) -> tuple[list[Row], list[Row]]:
        """The rows to prefill next, and those that wait because one of these computes what they can reuse."""
        keys = [self.prefixes.next_key(row.token_ids) if self.prefixes.budget else None for row in rows]
        waiting = {row for i, row in enumerate(rows) if keys[i] is not None and keys[i] in keys[:i]}
        return [row for row in rows if row not in waiting], [row for row in rows if row in waiting]

    def _prefill(self, rows: Sequence[Row]) -> None:
        matches = {row: self.prefixes.match(row.token_ids) for row in rows}
        for group in ([row for row in rows if not matches[row]], [row for row in rows if matches[row]]):
            if not group:
                continue
            first = len(self.rows)
            self.rows += group
            self._states = enlarged(self._states, (len(self.rows),))
            self.cache.reserve(len(self.rows), max(row.length for row in group))
            starts = [self._reuse(first + i, matches[row]) for i, row in enumerate(group)]
            suffixes = [row.token_ids[start:] for row, start in zip(group, starts, strict=True)]
            prefill = partial(self.policy.extend, starts=starts) if any(starts) else self.policy.prefill
            states = prefill(self.cache, first, suffixes)
            for i, row in enumerate(group):
                self._keep_prefix(first + i, row)
            self._cut(range(first, len(self.rows)), states)

    def _reuse(self, place: int, blocks: Sequence[Block]) -> int:
        tokens = self.cache.write(place, [block.layers for block in blocks]) if blocks else 0
        request = self.rows[place].request
        request.reused_tokens = min(tokens, len(request.prompt_ids))  # a parked row reuses answers, too
        return tokens

    def _keep_prefix(self, place: int, row: Row) -> None:
        token_ids = row.token_ids[: len(row.slots)]
        if not self._fits(lambda: self.prefixes.add(token_ids, lambda a, b: self.cache.read(place, row.slots[a:b]))):
            self.prefixes.clear()

    def step(self) -> list[Decision]:
        """Runs one pass; returns the decisions it brought, in order of rows."""
        self._release({i for i, row in enumerate(self.rows) if row.request.cancelled})
        evaluated: list[_Evaluated] = []
        while self.rows and not self._fits(lambda: evaluated.append(self._evaluate_siblings())):
            self._park(len(self.rows) // 2, len(self.rows) // 2)
        if not self.rows:
            return []
        probabilities, candidates, counts = evaluated[0]
        decisions: dict[int, Decision] = {}
        for i, row in enumerate(self.rows):
            seen = min(len(row.probabilities) + len(probabilities[i]), counts[i])
            index = None if row.request.cancelled else row.examine(probabilities[i], counts[i])
            if index is not None:
                kept = self._states[i, :seen].clone() if row.request.keep else None
                decisions[i] = row.decide(index, candidates[i][: counts[i]], self.policy.context, kept)
        fits = self._fits(partial(self._commit, decisions))
        self._release({i for i, decision in decisions.items() if decision.finish_reason})
        if not fits:
            # Some rows have no candidate set, so all begin again from their tokens.
            self._park(0, len(self.rows) // 2)
        return list(decisions.values())

    def _evaluate_siblings(self) -> _Evaluated:
        """One pass, one host sync."""
        rows, device = len(self.rows), self.policy.device
        examined = [len(row.probabilities) for row in self.rows]
        width = self._pass_width()
        for row, start in zip(self.rows, examined, strict=True):
            row.reserve_scratch(start + width)
        span = max(row.next_slot for row in self.rows)
        self.cache.reserve(rows, span)
        starts, positions = torch.tensor([examined, [row.length for row in self.rows]]).to(device)
        scratch = [row.scratch[start : start + width] for row, start in zip(self.rows, examined, strict=True)]
        slots = torch.tensor(scratch).to(device)
        # Past the end of a set the last column is repeated: such siblings are never looked at.
        columns = starts[:, None] + torch.arange(width, device=device)
        candidates = self.table.token_ids[:rows]
        token_ids = candidates.gather(1, columns.clamp(max=candidates.shape[1] - 1))
        states = self.policy.siblings(self.cache, token_ids, slots, positions, span).to(device)
        # A quantized model computes in another dtype than it names; columns are kept as far as examined.
        self._states = enlarged(self._states.to(states.dtype), (rows, max(examined) + width))
        self._states[torch.arange(rows, device=device)[:, None], columns] = states
        return _to_host(self._ask_agents(states), candidates, self.table.counts[:rows])

    def _pass_width(self) -> int:
        """Siblings per row in the next pass: as many as may matter, at most `width`."""
        most, counts = self.table.token_ids.shape[1], self.table.counts
        # Reading set sizes costs a sync on CUDA and nothing on the CPU.
        known = counts.tolist() if counts.device.type == "cpu" else [most] * len(self.rows)
        return min(self.width, max(row.siblings_wanted(n) for row, n in zip(self.rows, known, strict=False)))

    def _ask_agents(self, states: Tensor) -> Tensor:
        """(rows, width) float32 accept probabilities; rows without an agent accept everything."""
        keys = [(row.request.agent, row.request.options.accept_action) for row in self.rows]
        probabilities = torch.ones(states.shape[:2], device=states.device)
        for agent, action in set(keys):
            if agent is None:
                continue
            mine = [i for i, key in enumerate(keys) if key == (agent, action)]
            chosen: Any = slice(None) if len(mine) == len(keys) else torch.tensor(mine).to(states.device)
            try:
                probabilities[chosen] = agent.accept_probability(states[chosen], action)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # noqa: BLE001 - an agent may be anybody's
                for i in mine:
                    self._fail(self.rows[i].request, error)
        return probabilities

    def _commit(self, decisions: dict[int, Decision]) -> None:
        """Makes the emitted tokens visible and cuts the next candidate sets of rows that go on."""
        going_on = []
        commits = []
        for i, decision in decisions.items():
            if decision.finish_reason is None:
                row = self.rows[i]
                going_on.append(i)
                commits.append((i, row.occupy(decision.index), row.length - 1, decision.index))
        if going_on:
            rows, slots, positions, indices = torch.tensor(commits).T.to(self.policy.device)
            self.cache.commit(rows, slots, positions)
            self._cut(going_on, self._states[rows, indices])

    def _cut(self, places: Sequence[int], states: Tensor) -> None:
        """Next candidate sets of the rows at `places`; fewer rows at a time where logits take too much memory."""
        rows = [self.rows[place] for place in places]
        if self._fits(partial(self.table.cut, rows, places, states)):
            return
        half = len(places) // 2
        if not half:
            raise torch.OutOfMemoryError
        self._cut(places[:half], states[:half])
        self._cut(places[half:], states[half:])

    def _fail(self, request: Request, error: Exception) -> None:
        """Ends one request by its error, the others go on."""
        if self.raising:
            raise error
        request.fail(error)

    def _release(self, leaving: set[int]) -> None:
        """Takes rows out of the batch; the last row moves into each gap, so that rows stay dense."""
        for i in sorted(leaving, reverse=True):
            row, last = self.rows[i], len(self.rows) - 1
            if row.request.error is None:
                self._keep_prefix(i, row)
            if i != last:
                self.cache.move_row(last, i, self.rows[last].next_slot)
                self.table.move(last, i)
                self._states[i] = self._states[last]
                self.rows[i] = self.rows[last]
            else:
                self.cache.clear_row(i)
            self.rows.pop()
            self.left.append(row.request)
        if leaving and not self.rows:
            self._reset()

    def _fits(self, work: Callable[[], None]) -> bool:
        """Runs work that may be repeated; False if memory did not suffice."""
        try:
            work()
        except torch.OutOfMemoryError:
            return False
        return True

    def _park(self, kept: int, limit: int) -> None:
        """Takes all rows but the first `kept` out of the batch until there is room for them again."""
        leaving = self.rows[kept:]
        del self.rows[kept:]
        for row in leaving:
            row.restart()
        self._give_back_memory()
        if limit == 0 and self.width == 1:
            self._give_up(leaving[0])
            return
        self.parked = leaving + self.parked
        if limit == 0:
            self.width //= 2
        self.limit = max(1, limit)
        warnings.warn(
            f"Out of memory on {self.policy.device} with {kept + len(leaving)} rows: going on with {self.limit} "
            f"of width {self.width}. A smaller batch_size avoids this.",
            RuntimeWarning,
            stacklevel=2,
        )

    def _give_up(self, row: Row) -> None:
        """Fails a row that does not fit alone; it says nothing about how many of the others do."""
        self.limit, self.width = sys.maxsize, self._asked_width
        self._fail(row.request, torch.OutOfMemoryError(_OUT_OF_MEMORY.format(self.policy.device, row.length)))
        self.left.append(row.request)

    def _give_back_memory(self) -> None:
        self.prefixes.clear()
        if rows := len(self.rows):
            self.cache.keep_rows(rows)
            self._states = self._states[:rows].clone()
        else:
            self._reset()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _to_host(probabilities: Tensor, candidates: Tensor, counts: Tensor) -> _Evaluated:
    copies = [tensor.to("cpu", non_blocking=True) for tensor in (probabilities, candidates, counts)]
    if probabilities.is_cuda:
        torch.cuda.current_stream(probabilities.device).synchronize()
    return copies[0].tolist(), copies[1].tolist(), copies[2].tolist()
