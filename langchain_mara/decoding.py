"""The accept/reject loop: prompts of token ids in, decisions out. It knows no text and no LangChain.

`decode` is the only decode path of the library; everything that generates drains it. Each pass
evaluates a chunk of siblings for every row of the batch at once: one row may examine its second
chunk of candidates while another is already at its next position (ALGORITHM.md section 3).

    candidates.py  which tokens may come next       policy.py  a pass over rows and siblings
    rows.py        the rule, one row at a time      batch.py   rows side by side on the device
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import torch

from langchain_mara.batch import Batch
from langchain_mara.policy import PolicyModel
from langchain_mara.requests import Decision, Request

DEFAULT_BATCH_SIZE = 8
DEFAULT_WIDTH = 8


@torch.inference_mode()
def decode(
    policy: PolicyModel,
    requests: Iterable[Request],
    *,
    batch_size: int = DEFAULT_BATCH_SIZE,
    width: int = DEFAULT_WIDTH,
) -> Iterator[Decision]:
    """Decodes requests by accept/reject, yielding every decision as soon as its pass is done.

    Continuous batching: up to `batch_size` rows run together; a finished or cancelled row leaves at
    once and the next waiting request takes its place. Results are independent of `batch_size`,
    `width`, and of which requests share the batch, up to the rounding of the model's dtype.
    Closing the generator frees everything.

    Args:
        policy: The policy model.
        requests: Decoded in this order. A sequence is checked as a whole before the first pass, any
            other iterable request by request as rows become free.
        batch_size: Most rows at a time.
        width: Most siblings of a row in one pass.

    Yields:
        Decisions; those of one request in order, of different requests interleaved.

    Raises:
        PromptError: If a prompt is empty or too long.
        AgentMismatchError: If an agent does not fit the policy model.
        ValueError: If `batch_size` or `width` is below 1.
    """
    if batch_size < 1 or width < 1:
        raise ValueError(f"batch_size and width must be at least 1, not {batch_size} and {width}.")
    if isinstance(requests, Sequence):
        for request in requests:
            request.check(policy)
    batch = Batch(policy, width)
    waiting = iter(requests)
    while True:
        batch.admit(_admissible(policy, islice(waiting, batch_size - len(batch.rows))))
        if not batch.rows:
            return
        yield from batch.step()


def _admissible(policy: PolicyModel, requests: Iterable[Request]) -> list[Request]:
    admitted = [request for request in requests if not request.cancelled]
    for request in admitted:
        request.check(policy)
    return admitted
