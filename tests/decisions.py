"""Runs the decode loop over requests, and checks what holds for all of them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from langchain_mara.decoding.loop import decode
from langchain_mara.decoding.request import Decision, Request
from langchain_mara.policy.model import PolicyModel
from langchain_mara.policy.prefix_cache import PrefixCache


def run(policy: PolicyModel, requests: list[Request], **how: Any) -> list[list[Decision]]:
    """The decisions of each request, in order of the requests."""
    decisions: dict[Request, list[Decision]] = {request: [] for request in requests}
    for decision in decode(policy, requests, **how):
        decisions[decision.request].append(decision)
    return list(decisions.values())


@contextmanager
def computed_tokens(backbone: nn.Module) -> Iterator[list[int]]:
    """Numbers of tokens of the passes that a model's backbone makes meanwhile."""
    counts: list[int] = []
    hook = backbone.register_forward_pre_hook(
        lambda _module, _args, kwargs: counts.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    try:
        yield counts
    finally:
        hook.remove()


def tokens(decisions: list[Decision]) -> list[int]:
    """The tokens that were emitted."""
    return [decision.token_id for decision in decisions]


def facts_with_one_cancelled(
    policy: PolicyModel, requests: list[Request], facts: Callable[[list[Decision]], Any]
) -> list[Any]:
    """Facts of the decisions of each request, of which the second is cancelled after four."""
    got: dict[Request, list[Decision]] = {request: [] for request in requests}
    for decision in decode(policy, requests, draft=4):
        got[decision.request].append(decision)
        if len(got[requests[1]]) == 4:
            requests[1].cancel()
    return [facts(decisions) for decisions in got.values()]


def check_independence(
    policy: PolicyModel, requests: Callable[[], list[Request]], facts: Callable[[list[Decision]], Any]
) -> list[Any]:
    """Checks that decisions are those of each request alone, in any batch and width, with drafts and kept prefixes.

    Returns:
        The facts of each request alone.
    """
    alone = [facts(run(policy, [request], width=1)[0]) for request in requests()]
    prefixes = PrefixCache(2**24)
    for how in ({"batch_size": 2, "width": 5}, {"draft": 5, "width": 2, "prefix_cache": prefixes}):
        assert [facts(decisions) for decisions in run(policy, requests(), **how)] == alone
    again = requests()
    assert [facts(decisions) for decisions in run(policy, again, prefix_cache=prefixes)] == alone
    assert sum(request.reused_tokens for request in again) > 0
    return alone
