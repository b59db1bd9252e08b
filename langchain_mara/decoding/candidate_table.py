"""Candidate sets of the rows side by side, cut from logits."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from langchain_mara.decoding.candidates import candidate_sets, log_probabilities, order_candidates
from langchain_mara.decoding.oom import fits
from langchain_mara.decoding.request import Request
from langchain_mara.decoding.sequence import SequenceState
from langchain_mara.policy.cache import enlarged
from langchain_mara.policy.model import PolicyModel


class PendingPosition(NamedTuple):
    """Where the candidate set of a row's position goes.

    Attributes:
        row: The row.
        line: Line of the table.
        ahead: Drafted tokens before the position that the row does not hold yet.
    """

    row: SequenceState
    line: int
    ahead: int = 0


class CandidateTable:
    """The candidate set of every row's position, and behind them those of drafted positions, a line each.

    Args:
        policy: The policy model.
        fail: Told of a request whose logits processor raises.

    Attributes:
        token_ids: (lines, columns) int64 candidates in order of examination; columns beyond a row's count hold
            anything.
        counts: (lines,) int64 sizes of the sets.
    """

    def __init__(self, policy: PolicyModel, fail: Callable[[Request, Exception], None]) -> None:
        self.token_ids = torch.zeros((0, 0), dtype=torch.long, device=policy.device)
        self.counts = torch.zeros(0, dtype=torch.long, device=policy.device)
        self._policy = policy
        self._fail = fail

    def cut(self, places: Sequence[PendingPosition], states: Tensor) -> None:
        """Cuts candidate sets; fewer at a time where logits take too much memory.

        Args:
            places: Whose they are and where they go; the table grows as needed.
            states: (len(places), d) of the tokens before each position.

        Raises:
            torch.OutOfMemoryError: If there is not even enough for one.
        """
        if fits(partial(self._cut, places, states)):
            return
        half = len(places) // 2
        if not half:
            raise torch.OutOfMemoryError
        self.cut(places[:half], states[:half])
        self.cut(places[half:], states[half:])

    def _cut(self, places: Sequence[PendingPosition], states: Tensor) -> None:
        columns = min(max(place.row.request.options.top_k for place in places), self._policy.vocabulary_size)
        lines = max(place.line for place in places) + 1
        self.token_ids = enlarged(self.token_ids, (lines, columns))
        self.counts = enlarged(self.counts, (lines,))
        logits = self._processed_logits(places, states)

        def key(index: int) -> tuple[object, ...]:
            options = places[index].row.request.options
            return (options.order, options.top_k, options.top_p, options.temperature)

        for _, group in groupby(sorted(range(len(places)), key=key), key=key):
            members = list(group)
            chosen = logits if members == list(range(len(places))) else logits[members]
            self._cut_alike([places[i] for i in members], chosen)

    def _cut_alike(self, places: Sequence[PendingPosition], logits: Tensor) -> None:
        rows = [place.row for place in places]
        options = rows[0].request.options
        sets = candidate_sets(logits, options.top_k, options.top_p)
        noise = None
        if options.order == "sampled":
            noise = torch.stack([row.gumbel(sets.scores.shape[1]) for row in rows]).to(logits.device)
        sets = order_candidates(sets, options.order, options.temperature, noise)
        if any(row.request.keep for row in rows):
            logs = log_probabilities(logits, sets.token_ids)
            for i, row in enumerate(rows):
                row.log_probabilities = logs[i] if row.request.keep else None
        targets = torch.tensor([place.line for place in places]).to(self.counts.device)
        self.token_ids[targets, : sets.token_ids.shape[1]] = sets.token_ids.to(targets.device)
        self.counts[targets] = sets.counts.to(targets.device)

    def _processed_logits(self, places: Sequence[PendingPosition], states: Tensor) -> Tensor:
        logits = self._policy.logits(states)
        for i, (row, _, ahead) in enumerate(places):
            request = row.request
            if request.logits_processor is not None:
                ids = torch.tensor([row.token_ids], device=logits.device)
                try:
                    scores = request.logits_processor(ids, logits[i : i + 1].float())
                    logits[i] = scores[0].to(logits.dtype)
                except torch.OutOfMemoryError:
                    raise
                except Exception as error:  # noqa: BLE001 - a processor may be anybody's
                    self._fail(request, error)
            if len(row.generated) + ahead < request.options.min_new_tokens:
                logits[i, list(request.eos_token_ids)] = -torch.inf
        return logits

    def move(self, source: int, target: int) -> None:
        """Copies the set at `source` over the one at `target`."""
        self.token_ids[target] = self.token_ids[source]
        self.counts[target] = self.counts[source]
