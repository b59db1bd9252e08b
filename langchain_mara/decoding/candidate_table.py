"""The candidate sets of all running sequences in one table, cut from logits."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from langchain_mara.decoding.candidates import candidate_sets, log_probabilities, order_candidates
from langchain_mara.decoding.judging.before import Outlook, choose_before, judge_before
from langchain_mara.decoding.recovery import attempt, refuse_to_part, to_host
from langchain_mara.decoding.request import Request
from langchain_mara.decoding.sequence import SequenceState
from langchain_mara.exceptions import LogitsProcessorError
from langchain_mara.policy.cache import enlarged
from langchain_mara.policy.contract import Policy


class PendingPosition(NamedTuple):
    """A position whose candidate set is to be cut.

    Attributes:
        sequence: Sequence of the position.
        line: Line of the table that receives the set.
        drafted: Drafted tokens before the position that the sequence does not hold yet.
    """

    sequence: SequenceState
    line: int
    drafted: Sequence[int] = ()


class CandidateTable:
    """One line per candidate set: first those of the sequences' own positions, then those of drafted positions.

    Args:
        policy: The policy model.
        fail: Called with each request whose logits processor or constraint raises, and the error.

    Attributes:
        token_ids: (lines, columns) int64 candidates in order of examination; columns beyond a line's count hold
            anything.
        counts: (lines,) int64, size of the set in each line.
        scores: (lines, columns) float32 scores by which candidates are ordered; see `CandidateSets`.
        accept: (lines, columns) float32 accept probabilities by agents that judge before; 0 for all others.
        asks: (lines,) bool, whether the agent is asked; False where an entropy gate skips the position.
    """

    def __init__(self, policy: Policy, fail: Callable[[Request, BaseException], None]) -> None:
        self.token_ids = torch.zeros((0, 0), dtype=torch.long, device=policy.device)
        self.counts = torch.zeros(0, dtype=torch.long, device=policy.device)
        self.scores = torch.zeros((0, 0), dtype=torch.float32, device=policy.device)
        self.accept = torch.zeros((0, 0), dtype=torch.float32, device=policy.device)
        self.asks = torch.ones(0, dtype=torch.bool, device=policy.device)
        self._policy = policy
        self._fail = fail

    def lines(self, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Candidates, sizes of sets, scores, accept probabilities and whether to ask the agent, in the first lines."""
        tables = (self.token_ids, self.counts, self.scores, self.accept, self.asks)
        return tuple(table[:count] for table in tables)  # type: ignore[return-value]

    def cut(self, positions: Sequence[PendingPosition], states: Tensor) -> None:
        """Cuts candidate sets; fewer at a time where logits take too much memory.

        Args:
            positions: Positions to cut for; the table grows as needed.
            states: (len(positions), d), state before each position.

        Raises:
            torch.OutOfMemoryError: If there is not even enough memory for one position.
        """
        error = attempt(partial(self._cut, positions, states))
        if error is None:
            return
        half = len(positions) // 2
        if isinstance(error, torch.OutOfMemoryError):
            refuse_to_part([position.sequence.request for position in positions], error)
        if not half or not isinstance(error, torch.OutOfMemoryError):
            raise error
        self.cut(positions[:half], states[:half])
        self.cut(positions[half:], states[half:])

    def _cut(self, positions: Sequence[PendingPosition], states: Tensor) -> None:
        columns = min(
            max(position.sequence.request.options.top_k for position in positions), self._policy.vocabulary_size
        )
        lines = max(position.line for position in positions) + 1
        self.token_ids = enlarged(self.token_ids, (lines, columns))
        self.counts = enlarged(self.counts, (lines,))
        self.scores = enlarged(self.scores, (lines, columns))
        self.accept = enlarged(self.accept, (lines, columns))
        self.asks = enlarged(self.asks, (lines,), fill=True)
        logits = self._policy.logits(states)
        outlook = self._outlook(positions, states, logits)

        def key(index: int) -> tuple[object, ...]:
            request = positions[index].sequence.request
            options, processed = request.options, (request.logits_processor is not None, id(request.joint_process))
            return (options.order, options.top_k, options.top_p, options.temperature, processed)

        for _, group in groupby(sorted(range(len(positions)), key=key), key=key):
            members = list(group)
            chosen = logits if members == list(range(len(positions))) else logits[members]
            self._cut_alike([positions[i] for i in members], chosen)
        if outlook is not None:
            self._judge(positions, outlook)

    def _outlook(self, positions: Sequence[PendingPosition], states: Tensor, logits: Tensor) -> Outlook | None:
        """What agents that judge before, and gates, read of the positions, or None if nobody does."""
        sequences = [position.sequence for position in positions]
        requests = [sequence.request for sequence in sequences]
        gated = any(sequence.gate.threshold is not None for sequence in sequences)
        if not gated and not any(each.judged_before or each.request.keep_states for each in sequences):
            return None
        processed = any(request.logits_processor or request.joint_process for request in requests)
        return Outlook.of(states, logits.clone() if processed else logits)

    def _judge(self, positions: Sequence[PendingPosition], outlook: Outlook) -> None:
        """Asks the agents that judge before of whole candidate sets; keeps what is known of positions at hand."""
        lines = torch.tensor([position.line for position in positions]).to(self.counts.device)
        token_ids = self.token_ids[lines]
        thresholds = [position.sequence.gate.threshold for position in positions]
        least = torch.tensor([-torch.inf if each is None else each for each in thresholds]).to(outlook.entropies)
        asks = self.asks[lines] = outlook.entropies > least
        # Looking at what a GPU has computed would make it wait, which costs more there than asking for nothing.
        heard = [True] * len(positions) if asks.is_cuda else (asks | (self.counts[lines] == 1)).tolist()
        judged = [
            position.sequence if position.sequence.judged_before and hears else None
            for position, hears in zip(positions, heard, strict=True)
        ]
        self.accept[lines] = judge_before(judged, outlook, token_ids, self.counts[lines], self._fail)
        for i, (sequence, _, _) in enumerate(positions):
            sequence.at_hand = outlook.at_hand(i, token_ids[i]) if sequence.request.keep_states else None

    def choose(self, sequences: Sequence[SequenceState], for_rows: Callable[..., None]) -> None:
        """Chooses the candidates that go through the model where agents judge before, or are not asked.

        Args:
            sequences: The running sequences; sequence i has line i.
            for_rows: Takes rows and what is to be done for each; it handles errors.
        """
        rows = [
            i
            for i, sequence in enumerate(sequences)
            if (sequence.judged_before or sequence.gate.threshold is not None) and sequence.chosen is None
        ]
        rows = [i for i in rows if not sequences[i].request.cancelled]
        if not rows:
            return
        token_ids, counts, scores, accept, asks = to_host(*self.lines(len(sequences)))

        def choose_row(i: int) -> None:
            if not asks[i] and counts[i] > 1:
                sequences[i].skip()
            elif sequences[i].judged_before:
                choose_before(sequences[i], accept[i], scores[i], counts[i], token_ids[i][0], self._policy)

        for_rows(rows, choose_row)

    def _cut_alike(self, positions: Sequence[PendingPosition], logits: Tensor) -> None:
        sequences = [position.sequence for position in positions]
        options = sequences[0].request.options
        whole = {
            i: logits[i].float().log_softmax(-1)
            for i, sequence in enumerate(sequences)
            if sequence.request.top_logprobs is not None
        }
        allowed = self._constrained(positions, logits)
        logits = _again_constrained(self._processed(sequences, logits), logits, allowed)
        self._mask_eos(positions, logits)
        sets = candidate_sets(logits, options.top_k, options.top_p)
        noise = None
        if options.order == "sampled":
            noise = torch.stack([sequence.gumbel(sets.scores.shape[1]) for sequence in sequences]).to(logits.device)
        sets = order_candidates(sets, options.order, options.temperature, noise)
        for i, logs in whole.items():
            most = min(sequences[i].request.top_logprobs or 0, len(logs))
            sequences[i].position_logs = logs[sets.token_ids[i]], logs.topk(most)
        if any(sequence.request.keep_states for sequence in sequences):
            logs = log_probabilities(logits, sets.token_ids)
            for i, sequence in enumerate(sequences):
                sequence.log_probabilities = logs[i] if sequence.request.keep_states else None
        targets = torch.tensor([position.line for position in positions]).to(self.counts.device)
        self.token_ids[targets, : sets.token_ids.shape[1]] = sets.token_ids.to(targets.device)
        self.scores[targets, : sets.scores.shape[1]] = sets.scores.to(targets.device)
        self.counts[targets] = sets.counts.to(targets.device)

    def _constrained(self, positions: Sequence[PendingPosition], logits: Tensor) -> dict[int, Tensor]:
        """Takes from the logits what constraints do not allow; returns (vocabulary,) masks of what they allow, by row.

        Processors see the logits of the allowed tokens only, so that those that compare tokens compare these.
        """
        masks: dict[int, Tensor] = {}
        for i, (sequence, _, drafted) in enumerate(positions):
            constraint = sequence.request.constraint
            if constraint is None:
                continue
            answer = [*sequence.generated, *drafted]
            error = attempt(lambda ask=constraint.allowed, i=i, so_far=answer: masks.update({i: ask(so_far)}))  # type: ignore[misc]
            if error is not None:
                self._fail(sequence.request, error)
                continue
            mask = torch.zeros(logits.shape[-1], dtype=torch.bool)
            mask[: len(masks[i])] = masks[i][: len(mask)]
            masks[i] = mask.to(logits.device)
            logits[i].masked_fill_(~masks[i], -torch.inf)
        return masks

    def _processed(self, sequences: Sequence[SequenceState], logits: Tensor) -> Tensor:
        """The logits after the requests' processors, in float32, because a narrower dtype could drop a forced token."""
        first = sequences[0].request
        if first.logits_processor is None and first.joint_process is None:
            return logits
        logits = logits.to(torch.float32, copy=True)
        if first.joint_process is not None:
            requests = [sequence.request for sequence in sequences]
            return _checked(first.joint_process, first.joint_process(requests, logits.clone()), logits)
        for i, sequence in enumerate(sequences):
            row = logits[i : i + 1]
            error = attempt(lambda row=row, sequence=sequence: row.copy_(_process(sequence, row)))  # type: ignore[misc]
            if isinstance(error, torch.OutOfMemoryError):
                raise error
            if error is not None:
                self._fail(sequence.request, error)
        return logits

    def _mask_eos(self, positions: Sequence[PendingPosition], logits: Tensor) -> None:
        """Takes the EOS from the candidates of answers that must be longer."""
        for i, (sequence, _, drafted) in enumerate(positions):
            request = sequence.request
            if len(sequence.generated) + len(drafted) < request.options.min_new_tokens:
                # A configuration may name ids that the vocabulary lacks, such as -1 for none.
                logits[i, [token for token in request.eos_token_ids if 0 <= token < logits.shape[-1]]] = -torch.inf

    def move(self, source: int, target: int) -> None:
        """Copies the set at `source` over the one at `target`."""
        self.token_ids[target] = self.token_ids[source]
        self.counts[target] = self.counts[source]
        self.scores[target] = self.scores[source]
        self.accept[target] = self.accept[source]
        self.asks[target] = self.asks[source]


def _again_constrained(processed: Tensor, constrained: Tensor, allowed: Mapping[int, Tensor]) -> Tensor:
    """Scores after processors without what they have brought back, and as before them where they leave nothing."""
    if processed is not constrained:
        for i, mask in allowed.items():
            processed[i].masked_fill_(~mask, -torch.inf)
            if not bool(processed[i].isfinite().any()):
                processed[i] = constrained[i]
    return processed


def _process(sequence: SequenceState, logits: Tensor) -> Tensor:
    """(1, vocabulary) float32 scores that a request's logits processor makes of logits."""
    processor = sequence.request.logits_processor
    ids = torch.tensor([sequence.token_ids], device=logits.device)
    return _checked(processor, processor(ids, logits.clone()), logits)  # type: ignore[misc]


def _checked(processor: object, scores: Any, logits: Tensor) -> Tensor:
    """Scores that a processor has made of logits, all of them below infinity.

    Raises:
        LogitsProcessorError: If the processor has returned something else than (rows, vocabulary) scores.
    """
    name = getattr(processor, "__name__", type(processor).__name__)
    if not isinstance(scores, Tensor) or scores.shape != logits.shape or not scores.is_floating_point():
        kind = f"{tuple(scores.shape)} {scores.dtype}" if isinstance(scores, Tensor) else type(scores).__name__
        raise LogitsProcessorError(
            f"The logits processor {name} returned {kind} instead of {tuple(logits.shape)} scores of a float dtype. "
            "Return the scores of all tokens."
        )
    scores = scores.to(logits)
    if bool((scores.isnan() & ~logits.isnan()).any()):
        raise LogitsProcessorError(
            f"The logits processor {name} returned NaN. Return a finite score for each token, -inf to forbid it, or "
            "+inf to force it."
        )
    forced = scores == torch.inf
    # A forced token forbids all others of its row.
    lowered: Tensor = scores.masked_fill(forced.any(-1, keepdim=True), -torch.inf)
    return lowered.masked_fill(forced, 0.0)
