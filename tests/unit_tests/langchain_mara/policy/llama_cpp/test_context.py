"""A context of llama.cpp: what fits, what is shared, and passes that end early."""

import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from families import tiny_agent

from langchain_mara.decoding.loop import decode
from langchain_mara.decoding.request import Request
from langchain_mara.options import DecodingOptions
from langchain_mara.policy.llama_cpp.context import PASS_TOKENS, LlamaContext, TokenInPass
from langchain_mara.policy.llama_cpp.model import LlamaCppModel
from langchain_mara.policy.llama_cpp.policy import LlamaCppPolicy

Load = Callable[..., LlamaCppModel]


@pytest.fixture
def context(loaded: Load) -> LlamaContext:
    return loaded("llama-3").context


@pytest.fixture
def sequence(context: LlamaContext) -> Iterator[int]:
    """A sequence that is given back."""
    taken = context.take_sequence()
    assert taken is not None
    yield taken
    context.give_back(taken)


def tokens(count: int, sequence: int) -> list[TokenInPass]:
    return [TokenInPass(5 + i % 90, i, sequence) for i in range(count)]


def test_states_do_not_depend_on_how_tokens_are_cut_into_passes(context: LlamaContext, sequence: int) -> None:
    given = tokens(PASS_TOKENS + 20, sequence)
    together, keys = context.evaluate(given)
    context.cut(sequence, 0)
    assert context.fill(given[:-1]) == 2
    last, more = context.evaluate(given[-1:])
    np.testing.assert_allclose(last[0], together[-1], atol=1e-4)
    context.known.release([*keys, *more])


def test_logits_outlive_the_pass_that_computed_them(context: LlamaContext, sequence: int) -> None:
    given = tokens(6, sequence)
    context.fill(given[:4])
    (first, keys), known = context.evaluate(given[4:5]), context.known
    expected = known.of(torch.from_numpy(first))
    second, more = context.evaluate(given[5:])
    after, other = known.of(torch.from_numpy(first)), known.of(torch.from_numpy(second))
    assert expected is not None
    assert other is not None
    torch.testing.assert_close(after, expected, atol=0.0, rtol=0.0)
    assert not torch.equal(other, expected)
    known.release([*keys, *more])
    assert known.of(torch.from_numpy(first)) is None


def test_what_was_read_can_be_written(context: LlamaContext, sequence: int) -> None:
    given = tokens(40, sequence)
    context.fill(given[:-1])
    kept = context.read(sequence)
    expected, keys = context.evaluate(given[-1:])
    context.cut(sequence, 0)
    context.write(sequence, kept)
    assert context.length(sequence) == 39
    states, more = context.evaluate(given[-1:])
    np.testing.assert_allclose(states, expected, atol=1e-5)
    context.known.release([*keys, *more])


def test_a_pass_that_does_not_fit_is_out_of_memory(loaded: Load) -> None:
    small = loaded("llama-3", 256).context
    sequence = small.take_sequence()
    assert sequence is not None
    with pytest.raises(torch.OutOfMemoryError, match="larger n_ctx"):
        small.fill(tokens(300, sequence))
    small.give_back(sequence)


def test_another_thread_interrupts_a_pass(context: LlamaContext, sequence: int) -> None:
    done = threading.Event()

    def interrupt() -> None:
        while not done.wait(0.0005):
            context.interrupt()

    def run_until_interrupted() -> None:
        for _ in range(100):
            context.cut(sequence, 0)
            context.fill(tokens(2000, sequence))

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(InterruptedError):
            run_until_interrupted()
    finally:
        done.set()
        thread.join()
    context.cut(sequence, 0)
    assert context.fill(tokens(20, sequence)) == 1


def test_other_threads_run_during_a_pass(context: LlamaContext, sequence: int, monkeypatch: pytest.MonkeyPatch) -> None:
    decode_call, done, counted, during = context._lib.llama_decode, threading.Event(), [0], list[int]()

    def count() -> None:
        while not done.wait(0.0001):
            counted[0] += 1

    def watched(*args: object) -> int:
        before = counted[0]
        code = int(decode_call(*args))
        during.append(counted[0] - before)  # nothing is given up to other threads in between, unless the call does
        return code

    monkeypatch.setattr(context._lib, "llama_decode", watched)
    thread = threading.Thread(target=count)
    thread.start()
    try:
        for _ in range(20):
            context.cut(sequence, 0)
            context.fill(tokens(2000, sequence))
    finally:
        done.set()
        thread.join()
    assert sum(during) > len(during)


@pytest.mark.parametrize("others", [0, 1])
def test_a_pass_ends_early_if_nobody_waits_for_it(loaded: Load, others: int, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = LlamaCppPolicy(loaded("llama-3"))
    options = DecodingOptions(max_new_tokens=6)
    cancelled, *staying = (Request([5, 6, 7, 8 + i], options, tiny_agent(seed=3)) for i in range(1 + others))
    inputs, codes = policy.model.context._inputs, []
    original, decode_call = inputs.batch, policy.model.context._lib.llama_decode

    def cancel_in_pass(*args: object) -> object:
        cancelled.cancel()
        return original(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(inputs, "batch", cancel_in_pass)
    monkeypatch.setattr(
        policy.model.context._lib, "llama_decode", lambda *args: codes.append(decode_call(*args)) or codes[-1]
    )
    left: list[Request] = []
    decisions = list(decode(policy, [cancelled, *staying], on_leave=left.append))
    assert codes[0] == (0 if others else 2)
    assert cancelled.error is None
    assert set(left) == {cancelled, *staying}
    assert {decision.request for decision in decisions} == set(staying)
    assert len(decisions) == 6 * others
