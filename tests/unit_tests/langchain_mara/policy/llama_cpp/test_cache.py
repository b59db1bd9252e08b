"""Rows as sequences: what is kept, moved and given back, also when many callers come and go."""

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from families import decoding_threads, wait_until

from langchain_mara import MaraLLM
from langchain_mara.exceptions import UnsupportedModelError
from langchain_mara.policy.llama_cpp.model import LlamaCppModel
from langchain_mara.policy.llama_cpp.policy import LlamaCppPolicy

PROMPTS = ["hi", "the end", "is it so?", "a", "no one here", "it is the end of the road", "e", "so"]


def commit(cache: object, *tokens: tuple[int, int, int]) -> None:
    cache.commit(tokens)  # type: ignore[attr-defined]


@pytest.fixture
def policy(loaded: Callable[..., LlamaCppModel]) -> LlamaCppPolicy:
    return LlamaCppPolicy(loaded("llama-3"))


def test_the_first_candidate_takes_no_further_sequence(policy: LlamaCppPolicy) -> None:
    cache = policy.new_cache()
    policy.prefill(cache, 0, [[0, 5, 6]])
    own = cache._rows[0].main
    policy.siblings(cache, torch.tensor([[7]]), [[3]], [3], 4)
    commit(cache, (0, 3, 3))
    assert (cache._rows[0].main, own.length) == (own, 4)
    policy.siblings(cache, torch.tensor([[8, 9]]), [[4, 5]], [4], 6)
    commit(cache, (0, 5, 4))
    assert cache._rows[0].main is not own
    assert cache._rows[0].candidates == {}


def test_a_candidate_that_had_to_make_room_can_still_be_chosen(policy: LlamaCppPolicy) -> None:
    cache, tokens = policy.new_cache(), [0, 5, 6]
    policy.prefill(cache, 0, [tokens])
    policy.siblings(cache, torch.tensor([[7, 8, 9]]), [[3, 4, 5]], [3], 6)
    cache.make_room()
    commit(cache, (0, 5, 3))
    state = policy.siblings(cache, torch.tensor([[11]]), [[3]], [4], 6)
    alone, _ = policy.cache_free([*tokens, 9], torch.tensor([11]))
    torch.testing.assert_close(state[0], alone, atol=1e-5, rtol=1e-5)


def test_rows_move_and_make_room(policy: LlamaCppPolicy) -> None:
    cache = policy.new_cache()
    policy.prefill(cache, 0, [[0, 5], [0, 6, 7], [0, 8, 9, 10]])
    cache.move_row(2, 0, 4)
    state = policy.siblings(cache, torch.tensor([[11]]), [[4]], [4], 5)
    alone, _ = policy.cache_free([0, 8, 9, 10], torch.tensor([11]))
    torch.testing.assert_close(state[0], alone, atol=1e-5, rtol=1e-5)
    cache.keep_rows(1)
    assert list(cache._rows) == [0]


def test_prefixes_of_a_sliding_window_are_not_kept(policy: LlamaCppPolicy) -> None:
    cache = policy.new_cache()
    policy.prefill(cache, 0, [[0, 5, 6]])
    assert cache.read(0, [0, 1])[0][0].numel() > 0
    cache._keeps_prefixes = False
    with pytest.raises(UnsupportedModelError, match="sliding window"):
        cache.read(0, [0, 1])


@pytest.mark.slow
def test_callers_that_come_and_go_disturb_nobody(gguf_llm: MaraLLM) -> None:
    expected = {prompt: gguf_llm.invoke(prompt) for prompt in PROMPTS}
    drawn = random.Random(0)
    jobs = [(drawn.choice(PROMPTS), drawn.choice(["whole", "whole", "stop", "leave"])) for _ in range(200)]

    def call(job: tuple[str, str]) -> bool:
        prompt, kind = job
        if kind == "leave":
            stream = gguf_llm.stream(prompt)
            first = next(stream, "")
            stream.close()  # type: ignore[attr-defined]
            return expected[prompt].startswith(first)
        middle = expected[prompt][len(expected[prompt]) // 2 :][:2]
        stop = [middle] if kind == "stop" and middle else None
        answer = gguf_llm.invoke(prompt, stop=stop, prefix_memory=2**20)
        return answer == (expected[prompt].partition(stop[0])[0] if stop else expected[prompt])

    with ThreadPoolExecutor(24) as pool:
        assert all(pool.map(call, jobs))
    wait_until(lambda: decoding_threads() == 0)
    context = gguf_llm.model.context  # type: ignore[attr-defined]
    context.give_back(context.take_sequence())
    assert sorted(context._free) == list(range(context.most_sequences))
    assert len(context.known) == 0
