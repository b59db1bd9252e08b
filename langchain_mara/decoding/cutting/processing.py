"""Cuts the candidate sets of requests whose options are alike, after what each request does to its logits."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from langchain_mara.decoding.candidates import CandidateSets, candidate_sets, log_probabilities, order_candidates
from langchain_mara.decoding.recovery import attempt
from langchain_mara.decoding.request import Request
from langchain_mara.decoding.sequence import SequenceState
from langchain_mara.exceptions import LogitsProcessorError

Fail = Callable[[Request, BaseException], None]
"""Takes each request whose logits processor or constraint raises, and the error."""


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


def cut_alike(positions: Sequence[PendingPosition], logits: Tensor, fail: Fail) -> CandidateSets:
    """Cuts the candidate sets of positions whose sequences have the same `cut_like`.

    What requests ask to know of their positions besides is kept in the sequences.

    Args:
        positions: The positions.
        logits: (positions, vocabulary) logits, which may be overwritten.
        fail: See `Fail`.
    """
    sequences = [position.sequence for position in positions]
    options = sequences[0].request.options
    whole = {
        i: logits[i].float().log_softmax(-1)
        for i, sequence in enumerate(sequences)
        if sequence.request.top_logprobs is not None
    }
    allowed = _constrained(positions, logits, fail)
    logits = _again_constrained(_processed(sequences, logits, fail), logits, allowed)
    _mask_eos(positions, logits)
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
    return sets


def _constrained(positions: Sequence[PendingPosition], logits: Tensor, fail: Fail) -> dict[int, Tensor]:
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
            fail(sequence.request, error)
            continue
        mask = torch.zeros(logits.shape[-1], dtype=torch.bool)
        mask[: len(masks[i])] = masks[i][: len(mask)]
        masks[i] = mask.to(logits.device)
        logits[i].masked_fill_(~masks[i], -torch.inf)
    return masks


def _processed(sequences: Sequence[SequenceState], logits: Tensor, fail: Fail) -> Tensor:
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
            fail(sequence.request, error)
    return logits


def _mask_eos(positions: Sequence[PendingPosition], logits: Tensor) -> None:
    """Takes the EOS from the candidates of answers that must be longer."""
    for i, (sequence, _, drafted) in enumerate(positions):
        request = sequence.request
        if request.eos_token_ids and len(sequence.generated) + len(drafted) < request.options.min_new_tokens:
            # A configuration may name ids that the vocabulary lacks, such as -1 for none.
            logits[i, [token for token in request.eos_token_ids if 0 <= token < logits.shape[-1]]] = -torch.inf


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
