"""Who leaves early frees memory within a pass: cancelled, closed, forgotten, or out of time."""

import asyncio
import gc
from collections.abc import AsyncIterator

import pytest
from callers import SECONDS, Caller, Gate, MakeCompletion, a_request, alone
from families import decoding_threads, wait_until

from langchain_mara.decoding.request import Decision
from langchain_mara.policy.model import PolicyModel
from langchain_mara.serving.completion import CompletionDelta, GenerationJob, acomplete, complete
from langchain_mara.serving.scheduler import BatchConfig


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_forgotten_generator_frees_the_rows_too(policy: PolicyModel, completion_of: MakeCompletion) -> None:
    completion = completion_of()
    with Gate(policy, passes=2) as gate:
        next(complete(GenerationJob(policy, [completion], BatchConfig(1, 4))))
        wait_until(lambda: completion.request.cancelled)
        gate.open()
        wait_until(lambda: not decoding_threads())
    assert len(gate.rows) <= 3


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
async def test_what_was_decoded_in_time_is_given_to_a_slow_reader(
    policy: PolicyModel, completion_of: MakeCompletion
) -> None:
    job = GenerationJob(policy, [completion_of(a_request())], timeout=SECONDS)
    streams = [acomplete(job), complete(GenerationJob(policy, [completion_of(a_request())], timeout=SECONDS))]
    first = await anext(streams[0]), next(streams[1])  # type: ignore[call-overload]
    await asyncio.to_thread(wait_until, lambda: not decoding_threads())
    past = asyncio.get_running_loop().time() + 2 * SECONDS
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("langchain_mara.serving.completion.time.monotonic", lambda: past)
        rest = [delta async for delta in streams[0]], list(streams[1])  # type: ignore[union-attr, call-overload]
    for first_delta, deltas in zip(first, rest, strict=True):
        assert [delta.decision.token_id for delta in (first_delta, *deltas)] == alone(policy, a_request())


@pytest.mark.slow
def test_a_loop_that_was_closed_is_not_told(policy: PolicyModel, completion_of: MakeCompletion) -> None:
    completion = completion_of(a_request())
    loop = asyncio.new_event_loop()
    with Gate(policy, passes=2) as gate:
        deltas: AsyncIterator[CompletionDelta] = acomplete(GenerationJob(policy, [completion], BatchConfig(1, 8)))
        loop.run_until_complete(anext(deltas))  # type: ignore[arg-type]
        loop.close()
        gate.open()
        wait_until(lambda: not decoding_threads())
    assert completion.finish_reason == "length"
    assert completion.request.error is None
    del deltas
    gc.collect()
