"""Callers of a scheduler and a gate before the passes of a model, for tests."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Self

from families import decoding_threads, tiny_agent, wait_until
from torch import nn

from langchain_mara.agents.agent import MaraAgent
from langchain_mara.decoding.loop import decode
from langchain_mara.decoding.request import Decision, Request
from langchain_mara.options import DecodingOptions
from langchain_mara.policy.model import PolicyModel
from langchain_mara.serving.completion import Completion
from langchain_mara.serving.scheduler import BatchConfig, RequestGroup, Scheduler

AGENT = tiny_agent(seed=3)
BATCH_CONFIG = BatchConfig(batch_size=4, width=4)
SECONDS = 120.0
"""How long a test waits for what must come at once."""


def a_request(first: int = 5, new: int = 6, length: int = 3, agent: MaraAgent | None = AGENT, **more: Any) -> Request:
    prompt = [first, *range(2, length + 1)]
    return Request(prompt, DecodingOptions.parse(top_k=8, max_new_tokens=new, **more), agent, frozenset([1]))


def alone(policy: PolicyModel, request: Request) -> list[int | None]:
    fresh = Request(request.prompt_ids, request.options, request.agent, request.eos_token_ids)
    return [decision.token_id for decision in decode(policy, [fresh], batch_size=1, width=3)]


class Caller:
    """Submits requests as one group and keeps what comes back."""

    def __init__(
        self,
        policy: PolicyModel,
        requests: Sequence[Request],
        batch_config: BatchConfig = BATCH_CONFIG,
        each: Callable[[Decision, int], None] = lambda _decision, _count: None,
    ) -> None:
        self.policy = policy
        self.requests = requests
        self.tokens: dict[Request, list[int | None]] = {request: [] for request in requests}
        self.left: list[Request] = []
        self.group = RequestGroup(policy, deque(requests), batch_config, self._take, self._leave)
        self._done = threading.Event()
        self._each = each

    def _take(self, decision: Decision) -> None:
        assert decision.request not in self.left
        self.tokens[decision.request].append(decision.token_id)
        self._each(decision, len(self.tokens[decision.request]))

    def _leave(self, request: Request) -> None:
        self.left.append(request)
        if len(self.left) == len(self.requests):
            self._done.set()

    def submit(self, **queue_size: int) -> Self:
        Scheduler.of(self.policy).submit(self.group, **queue_size)
        return self

    def wait(self) -> Self:
        assert self._done.wait(SECONDS)
        assert sorted(map(id, self.left)) == sorted(map(id, self.requests)), "every request leaves exactly once"
        return self

    def assert_as_alone(self, *requests: Request) -> None:
        for request in requests or self.requests:
            assert request.error is None
            assert self.tokens[request] == alone(self.policy, request)


class Gate:
    """Counts a model's passes, and lets through only as many as it is told to until it opens."""

    def __init__(self, policy: PolicyModel, passes: int = 0) -> None:
        self.rows: list[int] = []
        self._backbone = policy.backbone
        self._permits = threading.Semaphore(passes)
        self._opened = threading.Event()

    def _before_pass(self, _module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        self.rows.append(kwargs["input_ids"].shape[0])
        if not self._permits.acquire(timeout=SECONDS):
            raise TimeoutError("nobody opened the gate")
        if self._opened.is_set():
            self._permits.release()

    def reached(self, passes: int) -> None:
        """Waits until a pass stands at the gate, after so many that went through."""
        wait_until(lambda: len(self.rows) > passes, SECONDS)

    def open(self) -> None:
        self._opened.set()
        self._permits.release()

    def __enter__(self) -> Self:
        self._hook = self._backbone.register_forward_pre_hook(self._before_pass, with_kwargs=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.open()
        wait_until(lambda: not decoding_threads())
        self._hook.remove()


def run_joining(policy: PolicyModel, first: Caller, *joining: Caller) -> list[int]:
    """Has callers submit, in order, while the first one's prefill runs; gives the rows of every pass."""
    with Gate(policy) as gate:
        first.submit()
        gate.reached(0)
        for caller in joining:
            caller.submit()
        gate.open()
        for caller in (first, *joining):
            caller.wait()
    for caller in (first, *joining):
        caller.assert_as_alone()
    return gate.rows


MakeCompletion = Callable[..., Completion]
