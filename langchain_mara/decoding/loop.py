"""The accept/reject loop: prompts of token ids in, decisions out. It knows no text and no LangChain.

`decode` is the only decode path of the library; everything that generates drains it. Each pass evaluates a chunk of
siblings for every sequence in the batch: one sequence may examine its second chunk of candidates while another is
already at its next position (docs/algorithm.md, "Why aligned decoding costs about one pass per token").

    candidates.py       which tokens may come next    sequence.py    the rule, one sequence at a time
    candidate_table.py  the sets of all sequences     step.py        what goes through the model together
    batch.py            sequences side by side        pass_width.py  how many siblings pay
    ngram.py            tokens likely to come next    recovery.py    what happens when a pass fails
    cutting/            what requests do to logits    judging/       what agents say of candidates
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice, takewhile

import torch

from langchain_mara.decoding.batch import Batch
from langchain_mara.decoding.request import Decision, Request
from langchain_mara.options import BATCH_DEFAULTS
from langchain_mara.policy.contract import Policy
from langchain_mara.policy.prefix_cache import PrefixCache


@torch.inference_mode()
def decode(
    policy: Policy,
    requests: Iterable[Request | None],
    *,
    batch_size: int = BATCH_DEFAULTS.batch_size,
    width: int | None = BATCH_DEFAULTS.width,
    draft: int = BATCH_DEFAULTS.draft,
    on_leave: Callable[[Request], None] | None = None,
    prefix_cache: PrefixCache | None = None,
) -> Iterator[Decision]:
    """Decodes requests by accept/reject, yielding every decision as soon as its pass is done.

    Continuous batching: up to `batch_size` sequences run together. When one is finished or cancelled, the next waiting
    request takes its place. Results do not depend on `batch_size`, `width`, `draft` or `prefix_cache`, nor on which
    requests share the batch, up to the rounding of the model's dtype. If memory runs out, half of the sequences wait,
    with a warning. Closing the generator frees everything.

    Args:
        policy: The policy model.
        requests: Decoded in this order. A list or tuple is checked as a whole before the first pass, any other
            iterable request by request when there is room. None from an iterable means that no request is waiting at
            this moment; it ends decoding only when nothing is running.
        batch_size: Most sequences at a time.
        width: Most siblings of a sequence in one pass; None chooses the width pass by pass, by measuring
            (`pass_width.py`).
        draft: Most tokens of a sequence drafted ahead in one pass, by looking up what followed its last tokens earlier
            in its prompt and answer; 0 drafts none.
        on_leave: Called once with each request that has ended, after its last decision. If it is given, a request that
            fails because of its own prompt, agent or logits processor fails alone and holds its `error`; otherwise the
            error is raised here.
        prefix_cache: Keeps the beginnings of prompts and answers for later prompts; by default nothing is kept.

    Yields:
        Decisions: those of one request in order, those of different requests interleaved.

    Raises:
        PromptError: If a prompt is empty or too long.
        AgentMismatchError: If an agent does not fit the policy model.
        ValueError: If `batch_size` or `width` is below 1, or `draft` below 0.
    """
    if batch_size < 1 or (width is not None and width < 1) or draft < 0:
        raise ValueError(
            f"batch_size and width must be at least 1 and draft at least 0, not {batch_size}, {width} and {draft}."
        )
    if isinstance(requests, Sequence) and on_leave is None:
        for request in requests:
            request.check(policy)
    batch = Batch(policy, width, prefix_cache, draft=draft, raise_errors=on_leave is None)
    try:
        yield from _run(batch, iter(requests), batch_size, on_leave)
    finally:
        for sequence in (*batch.sequences, *batch.preempted):
            sequence.request.close()
        batch.cache.keep_rows(0)


def _run(
    batch: Batch, waiting: Iterator[Request | None], batch_size: int, on_leave: Callable[[Request], None] | None
) -> Iterator[Decision]:
    while True:
        entering = _until_none(islice(waiting, batch.room(batch_size)))
        for request in entering:
            request.on_cancel = partial(_interrupt, batch)
        batch.admit(entering)
        if batch.sequences:
            yield from _until_cancelled(batch.step())
        elif not (entering or batch.preempted or batch.finished):
            return
        while batch.finished:
            request = batch.finished.pop()
            request.close()
            if on_leave is not None:
                on_leave(request)


def _interrupt(batch: Batch) -> None:
    """Ends the running pass if nobody waits for it any more."""
    if batch.policy.loaded.interrupt and all(sequence.request.cancelled for sequence in batch.sequences):
        batch.policy.loaded.interrupt()


def _until_none(requests: Iterable[Request | None]) -> list[Request]:
    return list(takewhile(lambda request: request is not None, requests))  # type: ignore[arg-type]


def _until_cancelled(decisions: Iterable[Decision]) -> Iterator[Decision]:
    """Leaves out what a pass has decided for a request after the reader cancelled it."""
    return (decision for decision in decisions if not (decision.drafted and decision.request.cancelled))
