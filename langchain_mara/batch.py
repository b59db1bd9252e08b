"""The running batch: rows side by side on the device, one pass over their siblings at a time."""

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from langchain_mara.cache import enlarged
from langchain_mara.candidates import candidate_sets, order_candidates
from langchain_mara.policy import PolicyModel
from langchain_mara.requests import Decision, Request
from langchain_mara.rows import Row


class Batch:
    """Rows 0 … n-1 of a `RaggedCache`, with their candidate sets and siblings' states.

    Args:
        policy: The policy model.
        width: Most siblings of a row in one pass. Results never depend on it.
    """

    def __init__(self, policy: PolicyModel, width: int) -> None:
        self.policy = policy
        self.width = width
        self.rows: list[Row] = []
        self._reset()

    def _reset(self) -> None:
        device = self.policy.device
        self.cache = self.policy.new_cache()
        self._candidates = torch.zeros((0, 0), dtype=torch.long, device=device)
        self._counts = torch.zeros(0, dtype=torch.long, device=device)
        self._states = torch.zeros((0, 0, self.policy.hidden_size), dtype=self.policy.model.dtype, device=device)

    def admit(self, requests: Sequence[Request]) -> None:
        """Prefills new rows behind the ones in use and cuts their first candidate sets."""
        if not requests:
            return
        for request in requests:
            if request.agent is not None:
                request.agent.to(self.policy.device)
        first = len(self.rows)
        self.rows += [Row(request, len(request.prompt_ids)) for request in requests]
        columns = min(max(request.options.top_k for request in requests), self.policy.vocabulary_size)
        self._candidates = enlarged(self._candidates, (len(self.rows), columns))
        self._counts = enlarged(self._counts, (len(self.rows),))
        self._states = enlarged(self._states, (len(self.rows),))
        states = self.policy.prefill(self.cache, first, [request.prompt_ids for request in requests])
        self._cut_candidates(range(first, len(self.rows)), states)

    def step(self) -> list[Decision]:
        """Runs one pass; returns the decisions it brought, in order of rows."""
        self._release({i for i, row in enumerate(self.rows) if row.request.cancelled})
        if not self.rows:
            return []
        probabilities, candidates, counts = self._evaluate_siblings()
        decisions: dict[int, Decision] = {}
        for i, row in enumerate(self.rows):
            index = row.examine(probabilities[i], counts[i])
            if index is not None:
                decisions[i] = row.decide(index, candidates[i][: counts[i]], self.policy.context)
        self._commit(decisions)
        self._release({i for i, decision in decisions.items() if decision.finish_reason})
        return list(decisions.values())

    def _evaluate_siblings(self) -> tuple[list[list[float]], list[list[int]], list[int]]:
        """One pass, one host sync: accept probabilities of the chunk, candidate ids, set sizes."""
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
        token_ids = self._candidates[:rows].gather(1, columns.clamp(max=self._candidates.shape[1] - 1))
        states = self.policy.siblings(self.cache, token_ids, slots, positions, span).to(device)
        # A quantized model computes in another dtype than it names; columns are kept as far as examined.
        self._states = enlarged(self._states.to(states.dtype), (rows, max(examined) + width))
        self._states[torch.arange(rows, device=device)[:, None], columns] = states
        return _to_host(self._ask_agents(states), self._candidates[:rows], self._counts[:rows])

    def _pass_width(self) -> int:
        """Siblings per row in the next pass: as many as may matter, at most `width`."""
        most = self._candidates.shape[1]
        # Reading set sizes costs a sync on CUDA and nothing on the CPU.
        known = self._counts.tolist() if self._counts.device.type == "cpu" else [most] * len(self.rows)
        return min(self.width, max(row.siblings_wanted(n) for row, n in zip(self.rows, known, strict=False)))

    def _ask_agents(self, states: Tensor) -> Tensor:
        """(rows, width) float32 accept probabilities; rows without an agent accept everything."""
        keys = [(row.request.agent, row.request.options.accept_action) for row in self.rows]
        if len(set(keys)) == 1 and keys[0][0] is not None:
            return keys[0][0].accept_probability(states, keys[0][1])
        probabilities = torch.ones(states.shape[:2], device=states.device)
        for agent, action in set(keys):
            if agent is not None:
                mine = torch.tensor([i for i, key in enumerate(keys) if key == (agent, action)])
                mine = mine.to(states.device)
                probabilities[mine] = agent.accept_probability(states[mine], action)
        return probabilities

    def _commit(self, decisions: dict[int, Decision]) -> None:
        """Makes the emitted tokens visible and cuts the next candidate sets of rows that go on."""
        if not decisions:
            return
        going_on = []
        commits = []
        for i, decision in decisions.items():
            if decision.finish_reason is None:
                row = self.rows[i]
                going_on.append(i)
                commits.append((i, row.scratch.pop(decision.index), row.length - 1, decision.index))
        if going_on:
            rows, slots, positions, indices = torch.tensor(commits).T.to(self.policy.device)
            self.cache.commit(rows, slots, positions)
            self._cut_candidates(going_on, self._states[rows, indices])

    def _cut_candidates(self, indices: Sequence[int], states: Tensor) -> None:
        """Next candidate sets of the rows at `indices`, from the (n, d) states of their last tokens."""
        logits = self._processed_logits(indices, states)

        def key(place: int) -> tuple[object, ...]:
            options = self.rows[indices[place]].request.options
            return (options.order, options.top_k, options.top_p, options.temperature)

        for _, group in groupby(sorted(range(len(indices)), key=key), key=key):
            self._cut_group(indices, list(group), logits)

    def _cut_group(self, indices: Sequence[int], places: list[int], logits: Tensor) -> None:
        rows = [self.rows[indices[place]] for place in places]
        options = rows[0].request.options
        chosen = logits if len(places) == len(indices) and places == sorted(places) else logits[places]
        sets = candidate_sets(chosen, options.top_k, options.top_p)
        noise = None
        if options.order == "sampled":
            noise = torch.stack([row.gumbel(sets.scores.shape[1]) for row in rows]).to(logits.device)
        sets = order_candidates(sets, options.order, options.temperature, noise)
        targets = torch.tensor([indices[place] for place in places]).to(self._counts.device)
        self._candidates[targets, : sets.token_ids.shape[1]] = sets.token_ids.to(targets.device)
        self._counts[targets] = sets.counts.to(targets.device)

    def _processed_logits(self, indices: Sequence[int], states: Tensor) -> Tensor:
        logits = self.policy.logits(states)
        for place, i in enumerate(indices):
            row = self.rows[i]
            request = row.request
            if request.logits_processor is not None:
                ids = torch.tensor([[*request.prompt_ids, *row.generated]], device=logits.device)
                scores = request.logits_processor(ids, logits[place : place + 1].float())
                logits[place] = scores[0].to(logits.dtype)
            if len(row.generated) < request.options.min_new_tokens:
                logits[place, list(request.eos_token_ids)] = -torch.inf
        return logits

    def _release(self, leaving: set[int]) -> None:
        """Takes rows out of the batch; the last row moves into each gap, so that rows stay dense."""
        for i in sorted(leaving, reverse=True):
            last = len(self.rows) - 1
            if i != last:
                self.cache.move_row(last, i, self.rows[last].next_slot)
                for table in (self._candidates, self._counts, self._states):
                    table[i] = table[last]
                self.rows[i] = self.rows[last]
            else:
                self.cache.clear_row(i)
            self.rows.pop()
        if leaving and not self.rows:
            self._reset()


def _to_host(
    probabilities: Tensor, candidates: Tensor, counts: Tensor
) -> tuple[list[list[float]], list[list[int]], list[int]]:
    copies = [tensor.to("cpu", non_blocking=True) for tensor in (probabilities, candidates, counts)]
    if probabilities.is_cuda:
        torch.cuda.current_stream(probabilities.device).synchronize()
    return copies[0].tolist(), copies[1].tolist(), copies[2].tolist()
