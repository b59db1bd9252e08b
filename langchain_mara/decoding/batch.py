"""The running batch: sequences side by side on the device, one pass over their siblings at a time.

A sequence has a row of the cache; row i belongs to `sequences[i]`, so that rows stay dense.
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain, compress
from operator import not_

import torch

from langchain_mara.decoding.candidate_table import CandidateTable
from langchain_mara.decoding.cutting.lines import ReadLines
from langchain_mara.decoding.cutting.processing import PendingPosition
from langchain_mara.decoding.judging.asking import ask_after
from langchain_mara.decoding.pass_width import MOST_WIDTH, PassWidthTuner
from langchain_mara.decoding.recovery import (
    attempt,
    raise_error,
    refuse_to_part,
    single_sequence_error,
    warn_of_failed_pass,
    warn_of_preemption,
)
from langchain_mara.decoding.request import Decision, Request
from langchain_mara.decoding.sequence import SequenceState
from langchain_mara.decoding.step import StepPlan, StepResult, decided_rows, ending_rows, examine_siblings, follow_draft
from langchain_mara.policy.cache import enlarged
from langchain_mara.policy.contract import Policy
from langchain_mara.policy.prefix_cache import Block, PrefixCache


class Batch:
    """Sequences in rows 0 … n-1 of a cache, with their candidate sets and siblings' states.

    Args:
        policy: The policy model.
        width: Most siblings of a sequence in one pass, or None to choose by measuring. Results never depend on it.
        prefix_cache: Keeps prefixes for later prompts; by default nothing is kept.
        draft: Most drafted tokens of a sequence in one pass. Results never depend on it either.
        raise_errors: Whether an error of one request is raised, or becomes its `error`.

    Attributes:
        sequences: The running sequences.
        preempted: Sequences that had to leave for want of memory and wait to return.
        finished: Requests that have ended, be it finished, cancelled or failed; the reader empties the list.
        limit: Most sequences that fit into memory, as far as is known.
    """

    def __init__(
        self,
        policy: Policy,
        width: int | None,
        prefix_cache: PrefixCache | None = None,
        *,
        draft: int = 0,
        raise_errors: bool = True,
    ) -> None:
        self.policy, self.raise_errors = policy, raise_errors
        self.width, self.draft = self._asked = width or MOST_WIDTH, draft
        self._width_tuner = PassWidthTuner.of(policy) if width is None else None
        # Not a method: a cycle with `candidate_table` would keep the cache until the garbage collector comes.
        self._fail: Callable[[Request, BaseException], None] = raise_error if raise_errors else Request.fail
        self.prefix_cache = prefix_cache or PrefixCache(budget=0)
        self.sequences, self.preempted = list[SequenceState](), list[SequenceState]()
        self.finished, self.limit = list[Request](), sys.maxsize
        self._reset()

    def _reset(self) -> None:
        self.cache = self.policy.new_cache()
        self.candidate_table = CandidateTable(self.policy, self._fail)
        self._states = torch.zeros((0, 0, self.policy.hidden_size)).to(self.policy.device, self.policy.dtype)

    def room(self, batch_size: int) -> int:
        """Number of further requests that can be admitted."""
        return max(0, min(batch_size, self.limit) - len(self.sequences) - len(self.preempted))

    def admit(self, requests: Iterable[Request]) -> None:
        """Prefills preempted and new sequences into free rows and cuts their first candidate sets."""
        self.finished += [sequence.request for sequence in self.preempted if sequence.request.cancelled]
        self.preempted = [sequence for sequence in self.preempted if sequence.request not in self.finished]
        returning = max(0, self.limit - len(self.sequences))
        entering, self.preempted = self.preempted[:returning], self.preempted[returning:]
        entering += filter(None, map(self._begin, requests))
        while entering:
            # Some wait until others have computed what they can reuse.
            waits = self.prefix_cache.waits([sequence.token_ids for sequence in entering])
            wave, entering = [*compress(entering, map(not_, waits))], [*compress(entering, waits)]
            first = len(self.sequences)
            if error := attempt(partial(self._prefill, wave)):
                self.sequences[first:] = wave
                self.preempted = entering + self.preempted
                self._recover(error, first, first + len(wave) // 2)
                return

    def _begin(self, request: Request) -> SequenceState | None:
        """The sequence of a request; None for a request that cannot begin, which is finished."""
        if not request.cancelled:
            try:
                request.check(self.policy)
                placed = request.agent and self.policy.loaded.agent_on(request.agent, self.policy.device)
                return SequenceState(request, len(request.prompt_ids), placed)
            except Exception as error:  # noqa: BLE001 - whatever it is, it concerns this request alone
                self._fail(request, error)
        self.finished.append(request)
        return None

    def _prefill(self, entering: Sequence[SequenceState]) -> None:
        self.prefix_cache.refresh()
        matches = {sequence: self.prefix_cache.match(sequence.token_ids) for sequence in entering}
        for reuses in (False, True):
            group = [sequence for sequence in entering if bool(matches[sequence]) is reuses]
            if not group:
                continue
            first = len(self.sequences)
            self.sequences += group
            self._states = enlarged(self._states, (len(self.sequences),))
            self.cache.reserve(len(self.sequences), max(sequence.length for sequence in group))
            starts = [self._reuse(first + i, matches[sequence]) for i, sequence in enumerate(group)]
            suffixes = [sequence.token_ids[start:] for sequence, start in zip(group, starts, strict=True)]
            prefill = partial(self.policy.extend, starts=starts) if any(starts) else self.policy.prefill
            states = prefill(self.cache, first, suffixes)
            for i, sequence in enumerate(group):
                self._keep_prefix(first + i, sequence)
            self.candidate_table.cut([PendingPosition(sequence, first + i) for i, sequence in enumerate(group)], states)

    def _reuse(self, row: int, blocks: Sequence[Block]) -> int:
        """Writes kept blocks to a row; returns the number of tokens they hold."""
        tokens = self.cache.write(row, [block.layers for block in blocks]) if blocks else 0
        self.sequences[row].epoch, request = self.prefix_cache.epoch, self.sequences[row].request
        # A preempted sequence reuses its answer, too.
        request.reused_tokens = min(tokens, len(request.prompt_ids))
        return tokens

    def _keep_prefix(self, row: int, sequence: SequenceState) -> None:
        token_ids, slots, epoch = sequence.token_ids[: len(sequence.slots)], sequence.slots, sequence.epoch
        if attempt(lambda: self.prefix_cache.add(token_ids, lambda i, j: self.cache.read(row, slots[i:j]), epoch)):
            self.prefix_cache.clear()

    def step(self) -> list[Decision]:
        """Runs one pass; returns the decisions before it and those it brought, each in order of sequences."""
        self._release({i for i, sequence in enumerate(self.sequences) if sequence.request.cancelled})
        last = self._end()
        results: list[StepResult] = []
        while self.sequences and (error := attempt(lambda: results.append(self._evaluate()))):
            self._recover(error, len(self.sequences) // 2, len(self.sequences) // 2)
        if not self.sequences:
            return last
        decisions = self._decide(results[0])
        error = attempt(partial(self._commit, decisions, results[0]))
        self._release({i for i, decided in decisions.items() if decided[-1].finish_reason})
        if error:  # some sequences have no candidate set, so all begin again from their tokens
            self._recover(error, 0, len(self.sequences) // 2)
        in_order = [*last, *chain.from_iterable(decisions.values())]
        if self._width_tuner is not None:
            attempt(partial(self._width_tuner.learn, in_order))  # without it, widths are only chosen less well
        return in_order

    def _end(self) -> list[Decision]:
        """Emits last tokens that are chosen before their pass. Where choosing fails, the pass does, too."""
        decisions: dict[int, list[Decision]] = {}
        error = attempt(partial(self.candidate_table.choose, self.sequences, self._for_rows))
        if error is None and any(sequence.judged_before for sequence in self.sequences):
            sets, _ = self.candidate_table.read()
            rows = ending_rows(self.sequences, sets, self.policy.context)
            self._for_rows(rows, partial(self._emit, sets, decisions))
            self._release(set(decisions))
        return [*chain.from_iterable(decisions.values())]

    def _evaluate(self) -> StepResult:
        """Runs one pass, with one synchronization with the host."""
        table = self.candidate_table
        table.choose(self.sequences, self._for_rows)
        plan = StepPlan.make(self.sequences, table, self.policy, self.width, self.draft, self._width_tuner)
        states = plan.run(self.policy, self.cache, self.sequences, table)
        self._states = plan.among(self._states, states)
        probabilities = ask_after(self.sequences, states, self._fail, plan.drafts)
        sets, read = table.read(*() if probabilities is None else (probabilities,))
        return StepResult(plan, read[0] if read else None, sets)

    def _decide(self, result: StepResult) -> dict[int, list[Decision]]:
        """Applies the rule to the siblings; by row, a list with its decision where there is one."""
        decisions: dict[int, list[Decision]] = {}
        examine = partial(examine_siblings, self.policy, self.sequences, result, self._states)
        self._for_rows(range(len(self.sequences)), examine)
        self._for_rows(decided_rows(self.sequences), partial(self._emit, result.sets, decisions))
        return decisions

    def _for_rows(self, rows: Sequence[int], work: Callable[[int], None]) -> None:
        for i in rows:
            if error := attempt(partial(work, i)):
                self._fail(self.sequences[i].request, error)

    def _emit(self, sets: ReadLines, decisions: dict[int, list[Decision]], row: int) -> None:
        sequence = self.sequences[row]
        states = self._states[row, : sequence.seen].clone() if sequence.request.keep_states else None
        candidates = sets.candidates(row)
        decisions[row] = [sequence.decide(sequence.chosen, candidates, self.policy.context, states)]  # type: ignore[arg-type]

    def _commit(self, decisions: dict[int, list[Decision]], result: StepResult) -> None:
        """Makes emitted tokens visible; cuts the next candidate sets of sequences that continue, also along drafts."""
        plan = result.plan
        continuing = {i: decided[0].index for i, decided in decisions.items() if decided[0].finish_reason is None}
        if continuing:
            table, context = self.candidate_table, self.policy.context
            commits, positions, states = plan.moves(self.sequences, continuing, self._states)
            table.cut(positions, states)
            for i, index in continuing.items():
                if index == plan.firsts[i] and plan.drafts[i]:
                    commits += follow_draft(i, self.sequences[i], decisions[i], result, self._states, table, context)
            table.keep_first(len(self.sequences))
            self.cache.commit(commits)

    def _recover(self, error: BaseException, kept: int, limit: int) -> None:
        """Goes on after a pass failed: with fewer sequences if memory ran out, else without those that are to blame."""
        if isinstance(error, torch.OutOfMemoryError):
            refuse_to_part([sequence.request for sequence in self.sequences], error)
            self._preempt(kept, limit)
        elif self.raise_errors and not all(sequence.request.cancelled for sequence in self.sequences):
            raise error  # unless nobody waits for the pass, which may have been interrupted for that
        else:
            self._isolate(error)

    def _isolate(self, error: BaseException) -> None:
        """Fails the sequences that fail alone; the others begin again from their tokens, and their answers stay."""
        suspects, self.sequences = self.sequences, []
        self.cache.keep_rows(0)  # now, because the error leads to this cache as long as anybody keeps it
        self._reset()
        wanted = [sequence for sequence in suspects if not sequence.request.cancelled]
        errors = {sequence: self._error_alone(sequence) if suspects[1:] else error for sequence in wanted}
        failed = {sequence: own_error for sequence, own_error in errors.items() if own_error is not None}
        for sequence, own_error in failed.items():
            self._fail(sequence.request, own_error)
            self.finished.append(sequence.request)
        self.preempted = [sequence for sequence in suspects if sequence not in failed] + self.preempted
        if errors and not failed:
            self.limit = len(suspects) // 2
            warn_of_failed_pass(error, len(suspects), self.limit)

    def _error_alone(self, sequence: SequenceState) -> BaseException | None:
        """The error of a pass with one sequence alone."""
        alone = Batch(self.policy, self.width, draft=self.draft)
        alone._width_tuner = self._width_tuner
        sequence.restart()
        error = attempt(lambda: (alone._prefill([sequence]), alone._evaluate()))  # type: ignore[func-returns-value]
        alone.cache.keep_rows(0)
        sequence.restart()
        return None if isinstance(error, torch.OutOfMemoryError) else error

    def _release(self, leaving: set[int]) -> None:
        """Takes sequences out of the batch; the last one moves into each gap."""
        for i in sorted(leaving, reverse=True):
            sequence, last = self.sequences[i], len(self.sequences) - 1
            if sequence.request.error is None:
                self._keep_prefix(i, sequence)
            if i != last:
                self.cache.move_row(last, i, self.sequences[last].next_slot)
                self.candidate_table.move(last, i)
                self._states[i] = self._states[last]
                self.sequences[i] = self.sequences[last]
            else:
                self.cache.clear_row(i)
            self.sequences.pop()
            self.finished.append(sequence.request)
        self.candidate_table.keep_first(len(self.sequences))
        if leaving and not self.sequences:
            self._reset()

    def _preempt(self, kept: int, limit: int) -> None:
        """Takes all sequences but the first `kept` out of the batch until there is room for them again."""
        leaving = self.sequences[kept:]
        del self.sequences[kept:]
        for sequence in leaving:
            sequence.restart()
        self._give_back_memory()
        if limit == 0 and (self.width, self.draft) == (1, 0):
            self._give_up(leaving[0])
            return
        self.preempted = leaving + self.preempted
        if limit == 0:
            self.width, self.draft = max(1, self.width // 2), self.draft // 2
        self.limit = max(1, limit)
        warn_of_preemption(self.policy.device, kept + len(leaving), self.limit, self.width)

    def _give_up(self, sequence: SequenceState) -> None:
        """Fails a sequence that does not fit alone, which says nothing about how many of the others do."""
        self.limit, (self.width, self.draft) = sys.maxsize, self._asked
        self._fail(sequence.request, single_sequence_error(self.policy.device, sequence.length))
        self.finished.append(sequence.request)

    def _give_back_memory(self) -> None:
        self.prefix_cache.clear()
        if rows := len(self.sequences):
            self.cache.keep_rows(rows)
            self._states = self._states[:rows].clone()
        else:
            self._reset()
        torch.cuda.empty_cache()  # nothing where CUDA is not in use
