"""The running batch: rows side by side on the device, one pass over their siblings at a time."""

import sys
import warnings
from collections.abc import Iterable, Sequence
from functools import partial

import torch

from langchain_mara.decoding.candidate_table import CandidateTable, PendingPosition
from langchain_mara.decoding.oom import fits
from langchain_mara.decoding.pass_width import MOST_WIDTH, PassWidthTuner
from langchain_mara.decoding.request import Decision, Request
from langchain_mara.decoding.sequence import SequenceState
from langchain_mara.decoding.step import StepPlan, StepResult, ask_agents, to_host
from langchain_mara.policy.cache import enlarged
from langchain_mara.policy.model import PolicyModel
from langchain_mara.policy.prefix_cache import Block, PrefixCache

_OUT_OF_MEMORY = (
    "Out of memory on {} with a single row of {} tokens. Shorten the prompt, lower max_new_tokens or top_k, "
    "or load the model in a smaller dtype."
)


class Batch:
    """Rows 0 … n-1 of a `RaggedCache`, with their candidate sets and siblings' states.

    Args:
        policy: The policy model.
        width: Most siblings of a row in one pass, or None to choose by measuring. Results never depend on it.
        prefix_cache: Where prefixes are kept for later prompts.
        draft: Most drafted tokens of a row in one pass. Results never depend on it either.
        raising: Whether what fails one request is raised, or becomes its `error`.

    Attributes:
        rows: The running rows.
        parked: Rows that had to leave for want of memory and wait for their return.
        left: Requests that are done, whether finished, cancelled or failed; the reader empties it.
        limit: Most rows that fit into memory, as far as is known.
    """

    def __init__(
        self,
        policy: PolicyModel,
        width: int | None,
        prefix_cache: PrefixCache | None = None,
        *,
        draft: int = 0,
        raising: bool = True,
    ) -> None:
        self.policy = policy
        self.width, self.draft = self._asked = width or MOST_WIDTH, draft
        self._widths = PassWidthTuner.of(policy) if width is None else None
        self.raising = raising
        self.prefix_cache = prefix_cache or PrefixCache(budget=0)
        self.rows: list[SequenceState] = []
        self.parked: list[SequenceState] = []
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
        entering += filter(None, map(self._begin, requests))
        while entering:
            wave, entering = self._wave(entering)
            first = len(self.rows)
            if not fits(partial(self._prefill, wave)):
                self.rows[first:] = wave
                self.parked = entering + self.parked
                self._park(first, first + len(wave) // 2)
                return

    def _begin(self, request: Request) -> SequenceState | None:
        """The sequence of a request; None for a request that cannot begin, which is finished."""
        if not request.cancelled:
            try:
                request.check(self.policy)
                agent = request.agent and self.policy.loaded.agent_on(request.agent, self.policy.device)
                return SequenceState(request, len(request.prompt_ids), agent)
            except Exception as error:  # noqa: BLE001 - whatever it is, it concerns this request alone
                self._fail(request, error)
        self.left.append(request)
        return None

    def _wave(self, rows: list[SequenceState]) -> tuple[list[SequenceState], list[SequenceState]]:
        """The rows to prefill next, and those that wait because one of these computes what they can reuse."""
        keys = [self.prefix_cache.next_key(row.token_ids) if self.prefix_cache.budget else None for row in rows]
        waiting = {row for i, row in enumerate(rows) if keys[i] is not None and keys[i] in keys[:i]}
        return [row for row in rows if row not in waiting], [row for row in rows if row in waiting]

    def _prefill(self, rows: Sequence[SequenceState]) -> None:
        matches = {row: self.prefix_cache.match(row.token_ids) for row in rows}
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
            self.table.cut([PendingPosition(row, first + i) for i, row in enumerate(group)], states)

    def _reuse(self, place: int, blocks: Sequence[Block]) -> int:
        tokens = self.cache.write(place, [block.layers for block in blocks]) if blocks else 0
        request = self.rows[place].request
        request.reused_tokens = min(tokens, len(request.prompt_ids))  # a parked row reuses answers, too
        return tokens

    def _keep_prefix(self, place: int, row: SequenceState) -> None:
        token_ids = row.token_ids[: len(row.slots)]
        if not fits(lambda: self.prefix_cache.add(token_ids, lambda a, b: self.cache.read(place, row.slots[a:b]))):
            self.prefix_cache.clear()

    def step(self) -> list[Decision]:
        """Runs one pass; returns the decisions it brought, in order of rows."""
        self._release({i for i, row in enumerate(self.rows) if row.request.cancelled})
        evaluated: list[StepResult] = []
        while self.rows and not fits(lambda: evaluated.append(self._evaluate())):
            self._park(len(self.rows) // 2, len(self.rows) // 2)
        if not self.rows:
            return []
        decisions = self._decide(evaluated[0])
        committed = fits(partial(self._commit, decisions, evaluated[0]))
        self._release({i for i, made in decisions.items() if made[-1].finish_reason})
        if not committed:
            # Some rows have no candidate set, so all begin again from their tokens.
            self._park(0, len(self.rows) // 2)
        done = [decision for made in decisions.values() for decision in made]
        if self._widths is not None:
            self._widths.learn(done)
        return done

    def _evaluate(self) -> StepResult:
        """One pass, one host sync."""
        rows, device = len(self.rows), self.policy.device
        this = StepPlan.plan(self.rows, self.table, self.policy, self.width, self.draft, self._widths)
        columns = this.columns(device)
        states = this.run(self.policy, self.cache, self.rows, self.table, columns)
        # A quantized model computes in another dtype than it names; columns are kept as far as examined.
        self._states = enlarged(self._states.to(states.dtype), (rows, max(this.examined) + this.width))
        self._states[torch.arange(rows, device=device)[:, None], columns] = states
        probabilities = ask_agents(self.rows, states, self._fail)
        return StepResult(this, *to_host(probabilities, self.table.token_ids[:rows], self.table.counts[:rows]))

    def _decide(self, evaluated: StepResult) -> dict[int, list[Decision]]:
        """Applies the rule to the siblings; by row, a list of its decision where there is one."""
        this, probabilities, candidates, counts = evaluated
        decisions: dict[int, list[Decision]] = {}
        for i, row in enumerate(self.rows):
            siblings = probabilities[i][: this.siblings(i)]
            seen = min(len(row.probabilities) + len(siblings), counts[i])
            index = None if row.request.cancelled else row.examine(siblings, counts[i])
            if index is not None:
                kept = self._states[i, :seen].clone() if row.request.keep else None
                decisions[i] = [row.decide(index, candidates[i][: counts[i]], self.policy.context, kept)]
        return decisions

    def _commit(self, decisions: dict[int, list[Decision]], evaluated: StepResult) -> None:
        """Makes the emitted tokens visible and cuts the next candidate sets of rows that go on, ahead along drafts."""
        this = evaluated.this
        going_on = {i: made[0].index for i, made in decisions.items() if made[0].finish_reason is None}
        commits, places, sources = [], [], []
        for i, index in going_on.items():
            row = self.rows[i]
            commits.append((i, row.occupy(index), row.length - 1))
            columns = [index] if index else [0, *range(this.siblings(i), this.width)]
            places += [PendingPosition(row, this.line(i, ahead), ahead) for ahead in range(len(columns))]
            sources += [(i, column) for column in columns]
        if going_on:
            self.table.cut(places, self._states[torch.tensor(sources).to(self.policy.device).unbind(1)])
            drafting = [i for i, index in going_on.items() if index == 0 and this.drafts[i]]
            sets = to_host(self.table.token_ids, self.table.counts) if drafting else ()
            for i in drafting:
                commits += self._follow_draft(i, decisions[i], evaluated, *sets)
            self.cache.commit(*torch.tensor(commits).T.to(self.policy.device))

    def _follow_draft(
        self, i: int, made: list[Decision], evaluated: StepResult, sets: list[list[int]], counts: list[int]
    ) -> list[tuple[int, int, int]]:
        """Emits a row's drafted tokens as far as the rule does; what is to commit: (row, slot, position) of each.

        A drafted token that is candidate 0 of its position is examined as the first of that position's siblings.
        """
        this, row = evaluated.this, self.rows[i]
        commits = []
        right, siblings = 0, this.siblings(i)
        for token in this.drafts[i]:
            line, column = this.line(i, right), siblings + right
            candidates = sets[line][: counts[line]]
            if candidates[:1] != [token] or made[-1].finish_reason:
                break
            row.put_first(this.slots[i][column])
            index = row.examine(evaluated.probabilities[i][column : column + 1], len(candidates))
            if index is None:
                self._states[i, 0] = self._states[i, column]
                break
            made.append(row.decide(index, candidates, self.policy.context, drafted=True))
            right += 1
            if made[-1].finish_reason is None:
                commits.append((i, row.occupy(index), row.length - 1))
        row.learn(len(this.drafts[i]), right)
        self.table.move(this.line(i, right), i)
        return commits

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

    def _park(self, kept: int, limit: int) -> None:
        """Takes all rows but the first `kept` out of the batch until there is room for them again."""
        leaving = self.rows[kept:]
        del self.rows[kept:]
        for row in leaving:
            row.restart()
        self._give_back_memory()
        if limit == 0 and (self.width, self.draft) == (1, 0):
            self._give_up(leaving[0])
            return
        self.parked = leaving + self.parked
        if limit == 0:
            self.width, self.draft = max(1, self.width // 2), self.draft // 2
        self.limit = max(1, limit)
        warnings.warn(
            f"Out of memory on {self.policy.device} with {kept + len(leaving)} rows: going on with {self.limit} "
            f"of width {self.width}. A smaller batch_size avoids this.",
            RuntimeWarning,
            stacklevel=2,
        )

    def _give_up(self, row: SequenceState) -> None:
        """Fails a row that does not fit alone; it says nothing about how many of the others do."""
        self.limit, (self.width, self.draft) = sys.maxsize, self._asked
        self._fail(row.request, torch.OutOfMemoryError(_OUT_OF_MEMORY.format(self.policy.device, row.length)))
        self.left.append(row.request)

    def _give_back_memory(self) -> None:
        self.prefix_cache.clear()
        if rows := len(self.rows):
            self.cache.keep_rows(rows)
            self._states = self._states[:rows].clone()
        else:
            self._reset()
        torch.cuda.empty_cache()  # nothing where CUDA is not in use
