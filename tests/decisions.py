"""Runs the decode loop over requests."""

from typing import Any

from langchain_mara.decoding.loop import decode
from langchain_mara.decoding.request import Decision, Request
from langchain_mara.policy.model import PolicyModel


def run(policy: PolicyModel, requests: list[Request], **how: Any) -> list[list[Decision]]:
    """The decisions of each request, in order of the requests."""
    decisions: dict[Request, list[Decision]] = {request: [] for request in requests}
    for decision in decode(policy, requests, **how):
        decisions[decision.request].append(decision)
    return list(decisions.values())


def tokens(decisions: list[Decision]) -> list[int]:
    """The tokens that were emitted."""
    return [decision.token_id for decision in decisions]
