"""The accept/reject loop: prompts of token ids in, decisions out. It knows no text and no LangChain.

`decode` is the only decode path of the library; everything that generates drains it. Each pass
evaluates a chunk of siblings for every row of the batch at once: one row may examine its second
chunk of candidates while another is already at its next position (ALGORITHM.md section 3).

    candidates.py  which tokens may come next       policy.py  a pass over rows and siblings
    rows.py        the rule, one row at a time      batch.py   rows side by side on the device
    table.py       their candidate sets             passes.py  what goes through the model together
    drafts.py      tokens likely to come next       widths.py  how many siblings pay
    prefixes.py    beginnings kept for later prompts
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice, takewhile

import torch

from langchain_mara.decoding.batch import Batch
from langchain_mara.decoding.request import Decision, Request
from langchain_mara.options import BATCH_DEFAULTS
from langchain_mara.policy.model import PolicyModel
from langchain_mara.policy.prefix_cache import PrefixCache


@torch.inference_mode()
def decode(
    policy: PolicyModel,
    requests: Iterable[Request | None],
    *,
    batch_size: int = BATCH_DEFAULTS.batch_size,
    width: int | None = BATCH_DEFAULTS.width,
    draft: int = BATCH_DEFAULTS.draft,
    on_leave: Callable[[Request], None] | None = None,
    prefix_cache: PrefixCache | None = None,
) -> Iterator[Decision]:
    """Decodes requests by accept/reject, yielding every decision as soon as its pass is done.

    Continuous batching: up to `batch_size` rows run together; a finished or cancelled row leaves at
    once and the next waiting request takes its place. Results are independent of `batch_size`,
    `width`, `draft`, `prefix_cache`, and of which requests share the batch, up to the rounding of the model's
    dtype. Where memory does not suffice, half of the rows wait, with a warning. Closing the generator
    frees everything.

    Args:
        policy: The policy model.
        requests: Decoded in this order. A sequence is checked as a whole before the first pass, any
            other iterable request by request as rows become free; None from it means that none is
            waiting at this moment, and ends decoding only where no row runs.
        batch_size: Most rows at a time.
        width: Most siblings of a row in one pass; None chooses it pass by pass, by measuring (`widths.py`).
        draft: Most tokens of a row drafted ahead in one pass, by looking up in its prompt and answer what followed the
            last tokens before; 0 drafts none.
        on_leave: Told once of every request that has ended, after its last decision. With it, a request
            that fails on its own (its prompt, agent or logits processor) fails alone and holds its
            `error`; without it, the error is raised here.
        prefix_cache: Where the beginnings of prompts and answers are kept for later prompts; by default they are not.

    Yields:
        Decisions; those of one request in order, of different requests interleaved.

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
    batch = Batch(policy, width, prefix_cache, draft=draft, raising=on_leave is None)
    waiting = iter(requests)
    while True:
        entering = _until_none(islice(waiting, batch.room(batch_size)))
        batch.admit(entering)
        if batch.rows:
            yield from _until_cancelled(batch.step())
        elif not (entering or batch.parked or batch.left):
            return
        while batch.left:
            request = batch.left.pop()
            if on_leave is not None:
                on_leave(request)


def _until_none(requests: Iterable[Request | None]) -> list[Request]:
    return list(takewhile(lambda request: request is not None, requests))  # type: ignore[arg-type]


def _until_cancelled(decisions: Iterable[Decision]) -> Iterator[Decision]:
    """Leaves out what a row has decided in the pass after the reader cancelled it."""
    return (decision for decision in decisions if not (decision.drafted and decision.request.cancelled))
