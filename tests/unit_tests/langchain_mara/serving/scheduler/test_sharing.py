"""Calls on one loaded model share a decoding thread and its passes, and change nothing of each other."""

import random
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from callers import SECONDS, Caller, Gate, MakeCompletion, a_request
from families import decoding_threads, tiny_model, wait_until

from langchain_mara.policy.model import PolicyModel
from langchain_mara.serving.completion import Completion, CompletionDelta, GenerationJob, acomplete, complete
from langchain_mara.serving.scheduler import BatchConfig, Scheduler


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
