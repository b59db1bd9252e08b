"""Penalties of a call: those of transformers are transformers' own, OpenAI's two count the answer's tokens."""

from collections import Counter
from typing import Any

import pytest
import torch
from families import tiny_agent, tiny_model
from langchain_core.caches import InMemoryCache
from transformers import PreTrainedTokenizerFast

from langchain_mara.exceptions import OptionsError
from langchain_mara.llms import MaraLLM
from langchain_mara.serving.generation_config import CountPenalty

PROMPT = "the end is near, it is"


@pytest.fixture
def llm(tokenizer: PreTrainedTokenizerFast) -> MaraLLM:
    model = tiny_model("llama-3")
    model.generation_config.pad_token_id = 1
    return MaraLLM(model=model, tokenizer=tokenizer, agent=tiny_agent(bias=100.0), max_new_tokens=24)


def answer(llm: MaraLLM, **changes: Any) -> list[int]:
    return [decision.token_id for decision, _ in llm.trace([PROMPT], **changes)[0]]


@pytest.mark.parametrize("option", [{"repetition_penalty": 2.5}, {"no_repeat_ngram_size": 1}])
def test_they_are_those_of_generate(llm: MaraLLM, option: dict[str, Any]) -> None:
    ids = torch.tensor([llm.encode(PROMPT)])
    expected = llm.model.generate(ids, max_new_tokens=24, do_sample=False, **option)[0, ids.shape[1] :].tolist()
    assert answer(llm, **option) == expected != answer(llm)
    assert "".join(llm.stream(PROMPT, **option)) == llm.invoke(PROMPT, **option)
    assert llm.as_chat(**option).invoke(PROMPT).text == llm.invoke(PROMPT, **option)


def test_they_replace_the_checkpoint_s(llm: MaraLLM) -> None:
    plain = answer(llm)
    llm.model.generation_config.repetition_penalty = 2.5
    assert answer(llm) != plain
    assert answer(llm, repetition_penalty=1.0) == plain
    llm.model.generation_config = None
    assert answer(llm, repetition_penalty=2.5) != plain == answer(llm)


@pytest.mark.parametrize(("presence", "frequency"), [(1.5, 0.0), (0.0, 0.7), (-2.0, 1.0)])
def test_counts_of_the_answer_lower_the_scores(presence: float, frequency: float) -> None:
    prompt, reply = [3, 3, 9], [4, 4, 7, 4]
    scores = torch.zeros(1, 12)
    lowered = CountPenalty(len(prompt), presence, frequency)(torch.tensor([prompt + reply]), scores)[0]
    counts = Counter(reply)
    expected = [-presence * (token in counts) - frequency * counts[token] for token in range(12)]
    assert lowered.tolist() == pytest.approx(expected)
    assert not scores.any()


def test_openai_s_penalties_reach_the_answer(llm: MaraLLM) -> None:
    plain = answer(llm)
    most = max(Counter(plain).values())
    assert most > 1
    favored = answer(llm, frequency_penalty=-2.0)
    assert max(Counter(favored).values()) > most
    assert len(set(answer(llm, presence_penalty=2.0))) >= len(set(plain))
    assert answer(llm, presence_penalty=0.0, frequency_penalty=0.0) == plain


def test_min_p_limits_the_candidates(llm: MaraLLM) -> None:
    (trace,) = llm.trace([PROMPT], min_p=0.4, logprobs=True, top_logprobs=20)
    sizes = []
    for decision, _ in trace:
        logs = dict(decision.log_probabilities.top)
        best = max(logs.values())
        least = best + torch.tensor(0.4).log().item()
        near = [token for token, log in logs.items() if log >= least]
        assert set(decision.candidates) <= set(near)
        sizes.append(len(decision.candidates))
    (wide,) = llm.trace([PROMPT])
    assert max(sizes) > 1
    assert sum(sizes) < sum(len(decision.candidates) for decision, _ in wide)


def test_they_are_part_of_the_cache_key(tokenizer: PreTrainedTokenizerFast) -> None:
    cache = InMemoryCache()
    llm = MaraLLM(model=tiny_model("llama-3"), tokenizer=tokenizer, max_new_tokens=4, cache=cache)
    for options in ({}, {"repetition_penalty": 2.0}, {"presence_penalty": 1.0}, {"min_p": 0.5}, {"logprobs": True}):
        llm.invoke(PROMPT, **options)
    assert len(cache._cache) == 5


@pytest.mark.parametrize("option", [{"repetition_penalty": 0}, {"min_p": 1.5}, {"presence_penalty": 3}])
def test_what_is_out_of_range_is_refused(llm: MaraLLM, option: dict[str, Any]) -> None:
    with pytest.raises(OptionsError, match=next(iter(option))):
        llm.invoke(PROMPT, **option)
