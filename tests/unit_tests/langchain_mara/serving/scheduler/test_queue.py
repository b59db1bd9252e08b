"""Calls wait their turn: fairness between groups, groups with other settings, a full queue, withdrawal."""

import threading
from collections import deque
from collections.abc import Sequence

import pytest
from callers import SECONDS, Caller, Gate, MakeCompletion, a_request, run_joining

from langchain_mara.decoding.request import Request
from langchain_mara.exceptions import QueueFullError
from langchain_mara.policy.model import PolicyModel
from langchain_mara.serving.completion import GenerationJob, complete
from langchain_mara.serving.scheduler import BatchConfig


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


def test_a_full_queue_refuses_a_call_and_loses_nothing(policy: PolicyModel) -> None:
    batch_config = BatchConfig(batch_size=1, width=4)
    waiting = Caller(policy, [a_request(5 + n) for n in range(3)], batch_config)
    refused = Caller(policy, [a_request(20)], batch_config)
    with Gate(policy) as gate:
        waiting.submit(queue_size=2)
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


def test_a_call_for_more_than_may_run_and_wait_is_refused(policy: PolicyModel) -> None:
    caller = Caller(policy, [a_request(5 + n) for n in range(4)], BatchConfig(batch_size=1, width=4))
    text = r"One call asks for 4 answers, but 3 may run and wait \(batch_size \+ queue_size\)\. Ask for fewer"
    with pytest.raises(QueueFullError, match=text):
        caller.submit(queue_size=2)
    caller.submit(queue_size=3).wait().assert_as_alone()


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
