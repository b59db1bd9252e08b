"""One decoding thread per loaded model: groups share passes, take turns, and fail, leave and end on their own."""

import asyncio
import copy
import gc
import random
import threading
import weakref
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import pytest
import torch
from families import decoding_threads, tiny_agent, tiny_model, wait_until
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from langchain_mara.agents.agent import MaraAgent
from langchain_mara.decoding.loop import decode
from langchain_mara.decoding.request import Decision, Request
from langchain_mara.exceptions import AgentMismatchError, PromptError, QueueFullError
from langchain_mara.options import DecodingOptions
from langchain_mara.policy.model import PolicyModel
from langchain_mara.serving.completion import Completion, CompletionDelta, GenerationJob, acomplete, complete
from langchain_mara.serving.scheduler import BatchConfig, RequestGroup, Scheduler
from langchain_mara.text.detokenizer import IncrementalDetokenizer

AGENT = tiny_agent(seed=3)
BATCH_CONFIG = BatchConfig(batch_size=4, width=4)
SECONDS = 20.0
"""How long a test waits for what must come at once."""


@pytest.fixture(scope="module")
def policy() -> PolicyModel:
    return PolicyModel(tiny_model("llama-3"))


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    wait_until(lambda: not decoding_threads())


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

    def _before_pass(self, _module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        self.rows.append(kwargs["input_ids"].shape[0])
        if not self._permits.acquire(timeout=SECONDS):
            raise TimeoutError("nobody opened the gate")

    def reached(self, passes: int) -> None:
        """Waits until a pass stands at the gate, after so many that went through."""
        wait_until(lambda: len(self.rows) > passes, SECONDS)

    def open(self) -> None:
        self._permits.release(10**6)

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


@pytest.fixture
def completion_of(tokenizer: PreTrainedTokenizerFast) -> MakeCompletion:
    """A completion that has not begun."""

    def make(request: Request | None = None, stop: Sequence[str] = ()) -> Completion:
        return Completion(request or a_request(new=40), IncrementalDetokenizer(tokenizer, stop))

    return make


# ---------------------------------------------------------------- sharing


def test_calls_of_several_threads_share_passes_and_change_nothing(policy: PolicyModel) -> None:
    callers = [Caller(policy, [a_request(5 + n, order="sampled", seed=n)]) for n in range(4)]
    before = policy.passes
    for caller in callers:
        caller.submit().wait()
        wait_until(lambda: not decoding_threads())
    apart = policy.passes - before
    again = [Caller(policy, [a_request(5 + n, order="sampled", seed=n)]) for n in range(4)]
    with Gate(policy) as gate, ThreadPoolExecutor(4) as threads:
        again[0].submit()
        gate.reached(0)
        list(threads.map(Caller.submit, again[1:]))
        gate.open()
        for caller in again:
            caller.wait()
    assert max(gate.rows) == 4
    assert len(gate.rows) < apart / 2
    for caller in (*callers, *again):
        caller.assert_as_alone()


def test_one_thread_decodes_and_none_is_left_when_idle(policy: PolicyModel) -> None:
    names: set[str] = set()
    inside = most = 0

    def enter(*_: Any) -> None:
        nonlocal inside, most
        names.add(threading.current_thread().name)
        inside += 1
        most = max(most, inside)

    def leave(*_: Any) -> None:
        nonlocal inside
        inside -= 1

    hooks = [policy.backbone.register_forward_pre_hook(enter), policy.backbone.register_forward_hook(leave)]
    for _ in range(3):
        with ThreadPoolExecutor(6) as threads:
            callers = [Caller(policy, [a_request(5 + n, new=3)], BatchConfig(1 + n % 2, 4)) for n in range(6)]
            list(threads.map(lambda caller: caller.submit().wait(), callers))
        wait_until(lambda: not decoding_threads())
    for hook in hooks:
        hook.remove()
    assert names == {"mara-decoding"}
    assert most == 1


def test_a_scheduler_belongs_to_the_model_not_to_the_policy(policy: PolicyModel) -> None:
    assert Scheduler.of(policy) is Scheduler.of(PolicyModel(policy.model))


def test_two_models_decode_side_by_side(policy: PolicyModel) -> None:
    other = PolicyModel(tiny_model("gpt-2"))
    both = threading.Barrier(2)
    met = []

    def meet(*_: Any) -> None:
        if not met:
            both.wait(SECONDS)
            met.append(True)

    hooks = [each_policy.backbone.register_forward_pre_hook(meet) for each_policy in (policy, other)]
    callers = [Caller(each_policy, [a_request()]).submit() for each_policy in (policy, other)]
    for caller in callers:
        caller.wait()
    for hook in hooks:
        hook.remove()
    for caller in callers:
        caller.assert_as_alone()


# ---------------------------------------------------------------- turns


def begun(callers: Sequence[Caller], order: list[Request]) -> list[int]:
    """Whose requests began, in order."""
    return [next(i for i, caller in enumerate(callers) if r in caller.tokens) for r in dict.fromkeys(order)]


def test_a_single_request_does_not_wait_for_a_group_of_many(policy: PolicyModel) -> None:
    order: list[Request] = []
    batch_config = BatchConfig(batch_size=2, width=4)
    many = [a_request(5 + n, new=3, agent=None) for n in range(12)]
    callers = [Caller(policy, many, batch_config, lambda decision, _: order.append(decision.request))]
    callers.append(Caller(policy, [a_request(60, new=3, agent=None)], batch_config, callers[0]._each))
    run_joining(policy, *callers)
    assert begun(callers, order).index(1) <= 2 * batch_config.batch_size


def test_calls_take_turns(policy: PolicyModel) -> None:
    order: list[Request] = []
    batch_config = BatchConfig(batch_size=2, width=4)
    callers = [
        Caller(
            policy,
            [a_request(10 * n + m, new=2, agent=None) for m in range(5)],
            batch_config,
            lambda decision, _: order.append(decision.request),
        )
        for n in (1, 2, 3)
    ]
    run_joining(policy, *callers)
    # The first group had the batch to itself while it was alone; then each gets every third place.
    assert begun(callers, order) == [0, 0, 0, 1, 2, 0, 1, 2, 0, 1, 2, 1, 2, 1, 2]
    for caller in callers:
        assert list(dict.fromkeys(r for r in order if r in caller.tokens)) == list(caller.requests)


def test_a_group_with_other_settings_waits_for_the_batch_to_end(policy: PolicyModel) -> None:
    order: list[Request] = []
    first = Caller(
        policy, [a_request(5 + n) for n in range(2)], BatchConfig(2, 4), lambda d, _: order.append(d.request)
    )
    narrow = Caller(policy, [a_request(10 + n) for n in range(3)], BatchConfig(1, 2), first._each)
    late = Caller(policy, [a_request(20)], BatchConfig(2, 4), first._each)
    run_joining(policy, first, narrow, late)
    last = max(i for i, request in enumerate(order) if request in first.tokens)
    assert not any(request in narrow.tokens for request in order[:last])
    running = [request for request in order if request in narrow.tokens]
    assert begun([first, narrow, late], running) == [1, 1, 1]
    assert [r for i, r in enumerate(running) if r in running[:i] and r is not running[i - 1]] == [], "one at a time"


def test_two_large_groups_with_different_settings_both_fill_their_batches(policy: PolicyModel) -> None:
    same = {"new": 3, "min_new_tokens": 3, "agent": None}
    callers = [Caller(policy, [a_request(10 * n + m, **same) for m in range(8)], BatchConfig(4, n)) for n in (1, 2)]
    # Sixteen answers of three tokens in batches of four take twelve passes and a prefill for each batch.
    assert len(run_joining(policy, *callers)) == 16


# ---------------------------------------------------------------- the queue


def test_a_full_queue_refuses_a_call_and_loses_nothing(policy: PolicyModel) -> None:
    batch_config = BatchConfig(batch_size=1, width=4)
    waiting = Caller(policy, [a_request(5 + n) for n in range(3)], batch_config)
    refused = Caller(policy, [a_request(20)], batch_config)
    with Gate(policy) as gate:
        waiting.submit(queue_size=1)
        gate.reached(0)
        text = (
            "2 requests are waiting for LlamaForCausalLM already. Try again later, limit the callers "
            r"\(max_concurrency\), or raise queue_size."
        )
        with pytest.raises(QueueFullError, match=text):
            refused.submit(queue_size=2)
        accepted = Caller(policy, [a_request(21)], batch_config).submit(queue_size=3)
        gate.open()
        waiting.wait().assert_as_alone()
        accepted.wait().assert_as_alone()
    assert refused.left == []
    refused.submit(queue_size=1).wait().assert_as_alone()


def test_what_has_not_begun_can_be_withdrawn(policy: PolicyModel) -> None:
    caller = Caller(policy, [a_request(5 + n) for n in range(3)], BatchConfig(1, 4))
    other = Caller(policy, [a_request(20)], BatchConfig(1, 4))
    with Gate(policy) as gate:
        caller.submit()
        gate.reached(0)
        other.submit()
        for _ in range(2):
            caller.group.withdrawn = True
        gate.open()
        other.wait().assert_as_alone()
    assert caller.left == list(caller.requests[:1])
    caller.assert_as_alone(caller.requests[0])
    assert [caller.tokens[request] for request in caller.requests[1:]] == [[], []]


def test_a_withdrawn_group_with_other_settings_keeps_nobody_waiting(policy: PolicyModel) -> None:
    first, gone, last = (Caller(policy, [a_request(5 + n)], BatchConfig(1 + n % 2, 4)) for n in range(3))
    with Gate(policy) as gate:
        first.submit()
        gate.reached(0)
        gone.submit()
        last.submit()
        gone.group.withdrawn = True
        gate.open()
        first.wait().assert_as_alone()
        last.wait().assert_as_alone()
    assert gone.left == []


def test_an_abandoned_answer_may_be_collected_while_the_queue_is_locked(
    policy: PolicyModel, completion_of: MakeCompletion
) -> None:
    """The garbage collector runs wherever objects are made; closing a generator must not wait for its own thread."""
    abandoned = complete(GenerationJob(policy, [completion_of() for _ in range(2)], BatchConfig(1, 4)))

    class Collecting(deque[Request]):
        def __len__(self) -> int:
            abandoned.close()
            return super().__len__()

    callers = [Caller(policy, [a_request(9 + n)], BatchConfig(1, 4)) for n in range(2)]
    callers[0].group.waiting = Collecting(callers[0].requests)
    with Gate(policy, passes=2) as gate:
        next(abandoned)
        gate.reached(2)
        for caller in callers:
            thread = threading.Thread(target=caller.submit, daemon=True)
            thread.start()
            thread.join(SECONDS)
            assert not thread.is_alive()
        gate.open()
        for caller in callers:
            caller.wait().assert_as_alone()


def test_an_abandoned_answer_may_be_collected_while_the_queue_is_read(
    policy: PolicyModel, completion_of: MakeCompletion
) -> None:
    abandoned = complete(GenerationJob(policy, [completion_of(a_request(new=2)) for _ in range(3)], BatchConfig(1, 4)))

    class Collecting(BatchConfig):
        def __eq__(self, other: object) -> bool:
            abandoned.close()
            return super().__eq__(other)

        __hash__ = BatchConfig.__hash__

    with Gate(policy, passes=2) as gate:
        next(abandoned)
        gate.reached(2)
        callers = [
            Caller(policy, [a_request(9 + n)], settings)
            for n, settings in enumerate([BatchConfig(1, 4), Collecting(1, 4)])
        ]
        for caller in callers:
            caller.submit()
        gate.open()
        for caller in callers:
            caller.wait().assert_as_alone()


# ---------------------------------------------------------------- failures


def raising(_ids: Tensor, _scores: Tensor) -> Tensor:
    raise KeyError("a processor's own error")


def raising_later(ids: Tensor, scores: Tensor) -> Tensor:
    if ids.shape[1] > 5:
        raise KeyError("a processor's own error, later")
    return scores


class RaisingAgent(MaraAgent):
    def accept_probability(self, states: Tensor, accept_action: int = 1) -> Tensor:
        raise ZeroDivisionError("an agent's own error")


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_what_concerns_one_request_fails_it_alone(policy: PolicyModel, batch_size: int) -> None:
    broken = RaisingAgent(32, width=16)
    bad: dict[Request, tuple[type[Exception], str]] = {
        Request([]): (PromptError, "The prompt has no tokens"),
        Request([5] * 128): (PromptError, "128 tokens"),
        a_request(agent=tiny_agent(16)): (AgentMismatchError, "size 16"),
        a_request(agent=broken): (ZeroDivisionError, "an agent's own error"),
        a_request(9, agent=broken): (ZeroDivisionError, "an agent's own error"),
        a_request(): (KeyError, "a processor's own error"),
        a_request(length=4): (KeyError, "a processor's own error, later"),
    }
    list(bad)[-2].logits_processor, list(bad)[-1].logits_processor = raising, raising_later
    good = [a_request(20 + n) for n in range(8)]
    mixed = [request for pair in zip(good, bad, strict=False) for request in pair] + good[len(bad) :]
    caller = Caller(policy, mixed, BatchConfig(batch_size, 4)).submit().wait()
    caller.assert_as_alone(*good)
    for request, (kind, text) in bad.items():
        assert type(request.error) is kind
        assert text in str(request.error)
        expected = [] if request is not list(bad)[-1] else alone(policy, request)[:1]
        assert caller.tokens[request] == expected


def test_a_caller_that_raises_fails_its_request_alone(policy: PolicyModel) -> None:
    def refuse(decision: Decision, count: int) -> None:
        if decision.request is victim and count == 3:
            raise OSError("nobody reads this any more")

    victim, other = a_request(new=20), a_request(9)
    caller = Caller(policy, [victim, other], each=refuse).submit().wait()
    assert isinstance(victim.error, OSError)
    assert caller.tokens[victim] == alone(policy, victim)[:3]
    caller.assert_as_alone(other)


@pytest.mark.parametrize("at", [0, 1, 4])
def test_a_model_that_raises_fails_what_runs_and_goes_on_with_what_waits(policy: PolicyModel, at: int) -> None:
    requests = [a_request(5 + n, agent=None) for n in range(5)]
    passes = 0

    def broken_once(*_: Any) -> None:
        nonlocal passes
        passes += 1
        if passes == at + 1:
            raise RuntimeError("device-side assert triggered")

    hook = policy.backbone.register_forward_pre_hook(broken_once)
    caller = Caller(policy, requests, BatchConfig(2, 4)).submit().wait()
    hook.remove()
    for request in requests[:2]:
        assert isinstance(request.error, RuntimeError)
        assert caller.tokens[request] == alone(policy, request)[: max(0, at - 1)]
    caller.assert_as_alone(*requests[2:])
    Caller(policy, [a_request()]).submit().wait().assert_as_alone()


def test_what_fails_before_any_request_runs_ends_all_the_same(
    policy: PolicyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_device(*_: object) -> None:
        raise RuntimeError("the device has fallen off the bus")

    requests = [a_request(5 + n) for n in range(3)]
    with monkeypatch.context() as patch:
        patch.setattr(policy, "new_cache", no_device)
        caller = Caller(policy, requests).submit().wait()
    assert [str(request.error) for request in requests] == ["the device has fallen off the bus"] * 3
    assert caller.tokens == {request: [] for request in requests}
    Caller(policy, [a_request()]).submit().wait().assert_as_alone()


class ExitingAgent(MaraAgent):
    def accept_probability(self, states: Tensor, accept_action: int = 1) -> Tensor:
        raise SystemExit("not an Exception")


def test_not_even_an_exit_leaves_callers_waiting(policy: PolicyModel) -> None:
    caller = Caller(policy, [a_request(agent=ExitingAgent(32, width=16)), a_request()]).submit().wait()
    assert [type(request.error) for request in caller.requests] == [SystemExit] * 2
    Caller(policy, [a_request()]).submit().wait().assert_as_alone()


def test_a_request_without_memory_for_its_prompt_leaves(policy: PolicyModel) -> None:
    def too_long(_module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs["input_ids"].shape[1] > 40:
            raise torch.OutOfMemoryError

    hook = policy.backbone.register_forward_pre_hook(too_long, with_kwargs=True)
    with pytest.warns(RuntimeWarning, match="Out of memory on cpu with 1 rows"):
        caller = Caller(policy, [a_request(length=60)]).submit().wait()
    hook.remove()
    with pytest.raises(torch.OutOfMemoryError, match="single row of 60 tokens"):
        raise caller.requests[0].error or AssertionError


# ---------------------------------------------------------------- leaving


def test_a_cancelled_request_frees_its_row_within_a_pass(policy: PolicyModel) -> None:
    def cancel(decision: Decision, count: int) -> None:
        if count == 3:
            decision.request.cancel()

    before = policy.passes
    caller = Caller(policy, [a_request(new=50, agent=None)], each=cancel).submit().wait()
    wait_until(lambda: not decoding_threads())
    assert policy.passes - before == 1 + 3
    # With another one waiting, its prompt takes the next pass.
    requests = [a_request(new=50, agent=None), a_request(9, new=2, agent=None)]
    before = policy.passes
    caller = Caller(policy, requests, BatchConfig(1, 4), cancel).submit().wait()
    wait_until(lambda: not decoding_threads())
    assert policy.passes - before == 1 + 3 + 1 + 2
    assert caller.left == requests


def test_closing_early_frees_the_rows_and_ends_the_thread(policy: PolicyModel, completion_of: MakeCompletion) -> None:
    completions = [completion_of() for _ in range(3)]
    steps = complete(GenerationJob(policy, completions, BatchConfig(2, 4)))
    with Gate(policy, passes=3) as gate:
        next(steps)
        gate.reached(3)
        steps.close()
        gate.open()
        wait_until(lambda: not decoding_threads())
    assert len(gate.rows) == 4, "the pass that ran when it was closed was the last"
    assert all(completion.request.cancelled for completion in completions)
    assert completions[2].statistics.tokens == 0


def test_a_forgotten_generator_frees_the_rows_too(policy: PolicyModel, completion_of: MakeCompletion) -> None:
    completion = completion_of()
    with Gate(policy, passes=2) as gate:
        next(complete(GenerationJob(policy, [completion], BatchConfig(1, 4))))
        wait_until(lambda: completion.request.cancelled)
        gate.open()
        wait_until(lambda: not decoding_threads())
    assert len(gate.rows) <= 3


async def test_breaking_out_frees_the_rows(policy: PolicyModel, completion_of: MakeCompletion) -> None:
    completions = [completion_of(), completion_of()]
    with Gate(policy, passes=2) as gate:
        async for delta in acomplete(GenerationJob(policy, completions, BatchConfig(1, 4))):
            assert delta.completion is completions[0]
            break
        await asyncio.to_thread(wait_until, lambda: all(completion.request.cancelled for completion in completions))
        gate.open()
        await asyncio.to_thread(wait_until, lambda: not decoding_threads())
    assert len(gate.rows) <= 3
    assert completions[1].statistics.tokens == 0


async def test_cancelling_the_task_frees_the_rows(policy: PolicyModel, completion_of: MakeCompletion) -> None:
    completions = [completion_of(), completion_of()]
    deltas: list[CompletionDelta] = []

    async def read() -> None:
        deltas.extend([delta async for delta in acomplete(GenerationJob(policy, completions, BatchConfig(1, 4)))])

    with Gate(policy, passes=3) as gate:
        task = asyncio.create_task(read())
        await asyncio.to_thread(gate.reached, 3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.open()
        await asyncio.to_thread(wait_until, lambda: not decoding_threads())
    assert len(gate.rows) == 4
    assert [completion.request.cancelled for completion in completions] == [True, True]
    assert deltas == []
    assert completions[1].statistics.tokens == 0


TIMEOUT = r"LlamaForCausalLM did not answer within timeout=0\.02 seconds"


def test_a_timeout_frees_the_rows(policy: PolicyModel, completion_of: MakeCompletion) -> None:
    completions = [completion_of(), completion_of()]
    with Gate(policy, passes=2) as gate:
        with pytest.raises(TimeoutError, match=TIMEOUT):
            list(complete(GenerationJob(policy, completions, BatchConfig(1, 4), timeout=0.02)))
        gate.reached(0)
        gate.open()
        wait_until(lambda: not decoding_threads())
    assert len(gate.rows) <= 3
    assert [completion.request.cancelled for completion in completions] == [True, True]
    assert completions[1].statistics.tokens == 0


async def test_an_async_timeout_frees_the_rows(policy: PolicyModel, completion_of: MakeCompletion) -> None:
    work = GenerationJob(policy, [completion_of(), completion_of()], BatchConfig(1, 4), timeout=0.02)
    with Gate(policy, passes=2) as gate:
        with pytest.raises(TimeoutError, match=TIMEOUT):
            _ = [delta async for delta in acomplete(work)]
        await asyncio.to_thread(gate.reached, 0)
        gate.open()
        await asyncio.to_thread(wait_until, lambda: not decoding_threads())
    assert len(gate.rows) <= 3
    assert work.completions[1].statistics.tokens == 0


def test_a_timeout_includes_waiting_for_a_row(policy: PolicyModel, completion_of: MakeCompletion) -> None:
    batch_config = BatchConfig(1, 4)
    running = Caller(policy, [a_request()], batch_config)
    late = completion_of()
    with Gate(policy) as gate:
        running.submit()
        gate.reached(0)
        with pytest.raises(TimeoutError, match=TIMEOUT):
            list(complete(GenerationJob(policy, [late], batch_config, timeout=0.02)))
        gate.open()
        running.wait().assert_as_alone()
    assert late.statistics.tokens == 0


async def test_what_was_decoded_in_time_is_given_to_a_slow_reader(
    policy: PolicyModel, completion_of: MakeCompletion
) -> None:
    job = GenerationJob(policy, [completion_of(a_request())], timeout=0.5)
    streams = [acomplete(job), complete(GenerationJob(policy, [completion_of(a_request())], timeout=0.5))]
    first = await anext(streams[0]), next(streams[1])  # type: ignore[call-overload]
    await asyncio.to_thread(wait_until, lambda: not decoding_threads())
    past = asyncio.get_running_loop().time() + 10.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("langchain_mara.serving.completion.time.monotonic", lambda: past)
        rest = [delta async for delta in streams[0]], list(streams[1])  # type: ignore[union-attr, call-overload]
    for first_delta, deltas in zip(first, rest, strict=True):
        assert [delta.decision.token_id for delta in (first_delta, *deltas)] == alone(policy, a_request())


def test_a_loop_that_was_closed_is_not_told(policy: PolicyModel, completion_of: MakeCompletion) -> None:
    completion = completion_of(a_request())
    loop = asyncio.new_event_loop()
    with Gate(policy, passes=2) as gate:
        deltas: AsyncIterator[CompletionDelta] = acomplete(GenerationJob(policy, [completion]))
        loop.run_until_complete(anext(deltas))  # type: ignore[arg-type]
        loop.close()
        gate.open()
        wait_until(lambda: not decoding_threads())
    assert completion.finish_reason == "length"
    assert completion.request.error is None
    del deltas
    gc.collect()


async def test_async_deltas_are_those_of_complete(policy: PolicyModel, completion_of: MakeCompletion) -> None:
    def job() -> GenerationJob:
        return GenerationJob(policy, [completion_of(a_request(5 + n, new=4 + n)) for n in range(5)], BatchConfig(2, 4))

    def facts(deltas: list[CompletionDelta], completions: Sequence[Completion]) -> list[Any]:
        of = {id(completion): n for n, completion in enumerate(completions)}
        return [(of[id(delta.completion)], delta.decision.token_id, delta.text, delta.last) for delta in deltas]

    job_of_async, job_of_sync = job(), job()
    got = facts([delta async for delta in acomplete(job_of_async)], job_of_async.completions)
    assert got == facts(list(complete(job_of_sync)), job_of_sync.completions)
    assert Counter(n for n, *_, last in got if last) == dict.fromkeys(range(5), 1)
    assert (
        [delta async for delta in acomplete(GenerationJob(policy, []))]
        == list(complete(GenerationJob(policy, [])))
        == []
    )


async def test_the_error_of_a_request_reaches_its_caller_and_no_other(
    policy: PolicyModel, completion_of: MakeCompletion
) -> None:
    def failing() -> GenerationJob:
        sick = completion_of(a_request(agent=RaisingAgent(32, width=16)))
        return GenerationJob(
            policy, [completion_of(a_request(5, new=60)), sick, completion_of(a_request(6, new=60))], BATCH_CONFIG
        )

    with Gate(policy) as gate:
        healthy = Caller(policy, [a_request(9, new=12)]).submit()
        gate.reached(0)
        works = [failing(), failing()]
        tasks = [
            asyncio.create_task(asyncio.to_thread(lambda: list(complete(works[0])))),
            asyncio.create_task(collected(works[1])),
        ]
        await asyncio.to_thread(wait_until, lambda: len(Scheduler.of(policy)._calls) == 2)
        gate.open()
        for task in tasks:
            with pytest.raises(ZeroDivisionError, match="an agent's own error"):
                await task
        await asyncio.to_thread(healthy.wait)
    healthy.assert_as_alone()
    # The other answers of the same call are not wanted any more.
    assert all(completion.request.cancelled for work in works for completion in work.completions)


async def collected(work: GenerationJob) -> list[CompletionDelta]:
    return [delta async for delta in acomplete(work)]


def test_a_bad_prompt_is_refused_before_anything_is_queued(policy: PolicyModel, completion_of: MakeCompletion) -> None:
    before = policy.passes
    with pytest.raises(PromptError, match="no tokens"):
        next(complete(GenerationJob(policy, [completion_of(), completion_of(Request([]))])))
    assert (decoding_threads(), policy.passes) == (0, before)


# ---------------------------------------------------------------- what is kept between calls


def change_in_place(model: PreTrainedModel) -> None:
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(model.get_input_embeddings().weight.roll(1, 0))


def replace(model: PreTrainedModel) -> None:
    embeddings = model.get_input_embeddings()
    embeddings.weight = nn.Parameter(embeddings.weight.detach().roll(1, 0))


def load(model: PreTrainedModel) -> None:
    model.load_state_dict({name: one * 1.1 for name, one in model.state_dict().items()})


@pytest.mark.parametrize("change", [change_in_place, replace, load])
def test_prefixes_are_kept_until_weights_change(change: Callable[[PreTrainedModel], None]) -> None:
    policy = PolicyModel(tiny_model("llama-3"))
    reused = []
    for _ in range(2):
        caller = Caller(policy, [a_request(length=70)]).submit().wait()
        wait_until(lambda: not decoding_threads())
        caller.assert_as_alone()
        reused.append(caller.requests[0].reused_tokens)
    change(policy.model)
    changed = Caller(policy, [a_request(length=70)]).submit().wait()
    reused.append(changed.requests[0].reused_tokens)
    assert reused == [0, 64, 0]
    (request,) = changed.requests
    assert changed.tokens[request] == alone(PolicyModel(copy.deepcopy(policy.model)), request)
    assert changed.tokens[request] != caller.tokens[caller.requests[0]]


def test_prefix_memory_is_that_of_the_batch_settings(policy: PolicyModel) -> None:
    def reused(prefix_memory: int) -> int:
        caller = Caller(policy, [a_request(length=70)], BatchConfig(2, 4, prefix_memory)).submit().wait()
        wait_until(lambda: not decoding_threads())
        caller.assert_as_alone()
        return caller.requests[0].reused_tokens

    assert [reused(memory) for memory in (2**26, 2**26, 0, 2**26, 2**26)][1:] == [64, 0, 0, 64]


def broken_pass(*_: Any) -> None:
    raise RuntimeError("broken")


@pytest.mark.parametrize("broken", [False, True])
def test_a_model_that_is_done_with_can_be_collected(completion_of: MakeCompletion, broken: bool) -> None:
    policy = PolicyModel(tiny_model("llama-3"))
    references = [weakref.ref(policy.model), weakref.ref(Scheduler.of(policy)), weakref.ref(policy)]
    assert list(complete(GenerationJob(policy, [completion_of(a_request(length=70))])))
    if broken:
        policy.backbone.register_forward_pre_hook(broken_pass)
        with pytest.raises(RuntimeError, match="broken"):
            list(complete(GenerationJob(policy, [completion_of()])))
    del policy
    wait_until(lambda: not any(reference() for reference in references))


# ---------------------------------------------------------------- all at once

KINDS: list[dict[str, Any]] = [
    {"first": 5, "new": 3},
    {"first": 6, "new": 9, "order": "sampled", "seed": 7},
    {"first": 7, "new": 14, "agent": None},
    {"first": 8, "new": 6, "length": 40},
    {"first": 8, "new": 6, "length": 44, "strategy": "random"},
    {"first": 9, "new": 12, "length": 70, "order": "reversed"},
    {"first": 9, "new": 5, "length": 72, "strategy": "max-prob"},
]


def test_many_callers_at_once_get_what_each_gets_alone(policy: PolicyModel, completion_of: MakeCompletion) -> None:
    texts = []
    for kind in KINDS:
        completion = completion_of(a_request(**kind))
        list(complete(GenerationJob(policy, [completion])))
        texts.append(completion.detokenizer.text)
    assert min(map(len, texts)) > 2

    def call(seed: int) -> list[tuple[int, Completion, bool]]:
        draw = random.Random(seed)
        ended = []
        for _ in range(5):
            kinds = [draw.randrange(len(KINDS)) for _ in range(2)]
            completions = [
                completion_of(a_request(**KINDS[kind]), [texts[kind][2:]] if draw.random() < 0.3 else [])
                for kind in kinds
            ]
            batch_config = BatchConfig(3, 4, draw.choice([0, 2**26])) if draw.random() < 0.2 else BatchConfig(5, 3)
            steps = complete(GenerationJob(policy, completions, batch_config))
            closing = draw.random() < 0.3
            for n, _piece in enumerate(steps):
                if closing and n == draw.randrange(6):
                    break
            steps.close()
            ended += [(kind, completion, closing) for kind, completion in zip(kinds, completions, strict=True)]
        return ended

    with ThreadPoolExecutor(8) as threads:
        ended = [result for many in threads.map(call, range(8)) for result in many]
    assert len(ended) == 80
    finished = [(kind, completion) for kind, completion, closed in ended if completion.finish_reason or not closed]
    assert len(finished) > 40
    for kind, completion in finished:
        stopped = completion.detokenizer.stopped
        assert completion.detokenizer.text == (texts[kind][:2] if stopped else texts[kind])
        assert completion.finish_reason == ("stop" if stopped else "length")
    assert any(completion.detokenizer.stopped for _, completion in finished)
