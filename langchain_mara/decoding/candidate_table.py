"""The candidate sets of all running sequences in one table, cut from logits."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from langchain_mara.decoding.candidates import candidate_sets, log_probabilities, order_candidates
from langchain_mara.decoding.oom import fits_in_memory
from langchain_mara.decoding.request import Request
from langchain_mara.decoding.sequence import SequenceState
from langchain_mara.policy.cache import enlarged
from langchain_mara.policy.model import PolicyModel


class PendingPosition(NamedTuple):
    """A position whose candidate set is to be cut.

    Attributes:
        sequence: Sequence of the position.
        line: Line of the table that receives the set.
        ahead: Number of drafted tokens before the position that the sequence does not hold yet.
    """

    sequence: SequenceState
    line: int
    ahead: int = 0


class CandidateTable:
    """One line per candidate set: first those of the sequences' own positions, then those of drafted positions.

    Args:
        policy: The policy model.
        fail: Called with each request whose logits processor raises, and the error.

    Attributes:
        token_ids: (lines, columns) int64 candidates in order of examination; columns beyond a line's count hold
            anything.
        counts: (lines,) int64, size of the set in each line.
    """

    def __init__(self, policy: PolicyModel, fail: Callable[[Request, Exception], None]) -> None:
        self.token_ids = torch.zeros((0, 0), dtype=torch.long, device=policy.device)
        self.counts = torch.zeros(0, dtype=torch.long, device=policy.device)
        self._policy = policy
        self._fail = fail

    def cut(self, positions: Sequence[PendingPosition], states: Tensor) -> None:
        """Cuts candidate sets; fewer at a time where logits take too much memory.

        Args:
            positions: Positions to cut for; the table grows as needed.
            states: (len(positions), d), state before each position.

        Raises:
            torch.OutOfMemoryError: If there is not even enough memory for one position.
        """
        if fits_in_memory(partial(self._cut, positions, states)):
            return
        half = len(positions) // 2
        if not half:
            raise torch.OutOfMemoryError
        self.cut(positions[:half], states[:half])
        self.cut(positions[half:], states[half:])

    def _cut(self, positions: Sequence[PendingPosition], states: Tensor) -> None:
        columns = min(
            max(position.sequence.request.options.top_k for position in positions), self._policy.vocabulary_size
        )
        lines = max(position.line for position in positions) + 1
        self.token_ids = enlarged(self.token_ids, (lines, columns))
        self.counts = enlarged(self.counts, (lines,))
        logits = self._processed_logits(positions, states)

        def key(index: int) -> tuple[object, ...]:
            options = positions[index].sequence.request.options
            return (options.order, options.top_k, options.top_p, options.temperature)

        for _, group in groupby(sorted(range(len(positions)), key=key), key=key):
            members = list(group)
            chosen = logits if members == list(range(len(positions))) else logits[members]
            self._cut_alike([positions[i] for i in members], chosen)

    def _cut_alike(self, positions: Sequence[PendingPosition], logits: Tensor) -> None:
        sequences = [position.sequence for position in positions]
        options = sequences[0].request.options
        sets = candidate_sets(logits, options.top_k, options.top_p)
        noise = None
        if options.order == "sampled":
            noise = torch.stack([sequence.gumbel(sets.scores.shape[1]) for sequence in sequences]).to(logits.device)
        sets = order_candidates(sets, options.order, options.temperature, noise)
        if any(sequence.request.keep_states for sequence in sequences):
            logs = log_probabilities(logits, sets.token_ids)
            for i, sequence in enumerate(sequences):
                sequence.log_probabilities = logs[i] if sequence.request.keep_states else None
        targets = torch.tensor([position.line for position in positions]).to(self.counts.device)
        self.token_ids[targets, : sets.token_ids.shape[1]] = sets.token_ids.to(targets.device)
        self.counts[targets] = sets.counts.to(targets.device)

    def _processed_logits(self, positions: Sequence[PendingPosition], states: Tensor) -> Tensor:
        logits = self._policy.logits(states)
        for i, (sequence, _, ahead) in enumerate(positions):
            request = sequence.request
            if request.logits_processor is not None:
                ids = torch.tensor([sequence.token_ids], device=logits.device)
                try:
                    scores = request.logits_processor(ids, logits[i : i + 1].float())
                    logits[i] = scores[0].to(logits.dtype)
                except torch.OutOfMemoryError:
                    raise
                except Exception as error:  # noqa: BLE001 - a processor may be anybody's
                    self._fail(request, error)
            if len(sequence.generated) + ahead < request.options.min_new_tokens:
                logits[i, list(request.eos_token_ids)] = -torch.inf
        return logits

    def move(self, source: int, target: int) -> None:
        """Copies the set at `source` over the one at `target`."""
        self.token_ids[target] = self.token_ids[source]
        self.counts[target] = self.counts[source]
