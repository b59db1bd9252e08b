"""What fails, fails alone: requests, callers, agents and models that raise."""

import asyncio
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from callers import BATCH_CONFIG, Caller, Gate, MakeCompletion, a_request, alone
from families import decoding_threads, tiny_agent, wait_until
from torch import Tensor, nn

from langchain_mara.agents.agent import MaraAgent
from langchain_mara.decoding.request import Decision, Request
from langchain_mara.exceptions import AgentMismatchError, PromptError
from langchain_mara.policy.model import PolicyModel
from langchain_mara.serving.completion import CompletionDelta, GenerationJob, acomplete, complete
from langchain_mara.serving.scheduler import BatchConfig, Scheduler


def raising(_ids: Tensor, _scores: Tensor) -> Tensor:
    raise KeyError("a processor's own error")


def raising_later(ids: Tensor, scores: Tensor) -> Tensor:
    if ids.shape[1] > 5:
        raise KeyError("a processor's own error, later")
    return scores


class RaisingAgent(MaraAgent):
    def accept_probability(self, states: Tensor, accept_action: int = 1) -> Tensor:
        raise ZeroDivisionError("an agent's own error")


@pytest.mark.slow
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
@pytest.mark.parametrize("passes", [1, 10**6], ids=["once", "from then on"])
def test_a_model_that_raises_fails_those_that_fail_alone(policy: PolicyModel, at: int, passes: int) -> None:
    requests = [a_request(5 + n, agent=None) for n in range(5)]
    count = 0

    def broken(*_: Any) -> None:
        nonlocal count
        count += 1
        if at < count <= at + passes:
            raise RuntimeError("device-side assert triggered")

    hook = policy.backbone.register_forward_pre_hook(broken)
    with pytest.warns(RuntimeWarning, match="device-side assert.*each alone") if passes == 1 else nullcontext():
        caller = Caller(policy, requests, BatchConfig(2, 4)).submit().wait()
    hook.remove()
    if passes == 1:
        caller.assert_as_alone()
    else:
        assert all(isinstance(request.error, RuntimeError) for request in requests)
        for request in requests[:2]:
            assert caller.tokens[request] == alone(policy, request)[: max(0, at - 1)]
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
    assert [type(request.error) for request in caller.requests] == [SystemExit, type(None)]
    caller.assert_as_alone(caller.requests[1])
    Caller(policy, [a_request()]).submit().wait().assert_as_alone()


def test_a_request_without_memory_for_its_prompt_leaves(policy: PolicyModel) -> None:
    def too_long(_module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs["input_ids"].shape[1] > 40:
            raise torch.OutOfMemoryError

    hook = policy.backbone.register_forward_pre_hook(too_long, with_kwargs=True)
    with pytest.warns(RuntimeWarning, match="Out of memory on cpu with 1 sequences"):
        caller = Caller(policy, [a_request(length=60)]).submit().wait()
    hook.remove()
    with pytest.raises(torch.OutOfMemoryError, match="single sequence of 60 tokens"):
        raise caller.requests[0].error or AssertionError


@pytest.mark.slow
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
        await asyncio.to_thread(wait_until, lambda: len(Scheduler.of(policy)._groups) == 2)
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
