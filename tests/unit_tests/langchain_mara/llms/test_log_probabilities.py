"""Log-probabilities in OpenAI's form, under the policy model alone."""

from functools import reduce
from operator import add
from typing import Any

import pytest
import torch
from families import tiny_agent, tiny_model
from grammars import json_llm
from transformers import PreTrainedTokenizerFast

from langchain_mara.exceptions import OptionsError
from langchain_mara.llms import MaraLLM

PROMPT = "the end is near"


def logs_of(llm: MaraLLM, prompt: str = PROMPT, **options: Any) -> dict[str, Any]:
    return llm.generate([prompt], **options).generations[0][0].generation_info["logprobs"]


@torch.inference_mode()
def expected(llm: MaraLLM, tokens: list[int], prompt: str = PROMPT) -> torch.Tensor:
    """(tokens, vocabulary) log-probabilities of a forward pass over the whole answer."""
    ids = llm.encode(prompt)
    logits = llm.model(torch.tensor([[*ids, *tokens]])).logits[0, len(ids) - 1 : -1]
    return logits.float().log_softmax(-1)


@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 3.0}, {"order": "sampled"}, {"top_k": 3}])
def test_they_are_the_model_s_own(llm: MaraLLM, options: dict[str, Any]) -> None:
    (trace,) = llm.trace([PROMPT], top_logprobs=4, **options)
    tokens = [decision.token_id for decision, _ in trace]
    logs = expected(llm, tokens)
    for row, (decision, _) in zip(logs, trace, strict=True):
        got = decision.log_probabilities
        assert got.chosen == pytest.approx(row[decision.token_id].item(), abs=1e-5)
        assert [token for token, _ in got.top] == row.topk(4).indices.tolist()
        assert [log for _, log in got.top] == pytest.approx(row.topk(4).values.tolist(), abs=1e-5)


def test_a_grammar_does_not_change_them() -> None:
    llm = json_llm(max_new_tokens=20)
    (trace,) = llm.trace(["Hi"], logprobs=True, regex="[0-9]{4}")
    logs = expected(llm, [decision.token_id for decision, _ in trace], "Hi")
    for row, (decision, _) in zip(logs, trace, strict=True):
        assert decision.log_probabilities.chosen == pytest.approx(row[decision.token_id].item(), abs=1e-5)
        assert decision.log_probabilities.chosen < 0


def test_the_form_is_openai_s(llm: MaraLLM) -> None:
    generation = llm.generate([PROMPT], logprobs=True, top_logprobs=2).generations[0][0]
    content = generation.generation_info["logprobs"]["content"]
    assert [set(entry) for entry in content] == [{"token", "logprob", "bytes", "top_logprobs"}] * len(content)
    assert "".join(entry["token"] for entry in content if entry["bytes"]) in generation.text or "\ufffd" in str(content)
    assert all(len(entry["top_logprobs"]) == 2 for entry in content)
    assert all(bytes(entry["bytes"]).decode() == entry["token"] for entry in content if entry["bytes"])


def test_texts_of_tokens_join_to_the_answer(sentencepiece_tokenizer: PreTrainedTokenizerFast) -> None:
    llm = MaraLLM(model=tiny_model("llama-3"), tokenizer=sentencepiece_tokenizer, top_k=5, max_new_tokens=12)
    known = len(sentencepiece_tokenizer)
    llm.model.generation_config.suppress_tokens = [*range(11), *range(known, 97)]
    generation = llm.generate(["abc"], logprobs=True).generations[0][0]
    joined = "".join(entry["token"] for entry in generation.generation_info["logprobs"]["content"])
    assert " " in joined
    assert joined.removeprefix(" ") == generation.text


def test_the_eos_is_not_listed(llm: MaraLLM) -> None:
    llm = MaraLLM(model=tiny_model("llama-3"), tokenizer=llm.tokenizer, max_new_tokens=40)
    llm.model.generation_config.sequence_bias = {(1,): 30.0}
    info = llm.generate([PROMPT], logprobs=True).generations[0][0].generation_info
    assert info["finish_reason"] == "stop"
    assert info["logprobs"]["content"] == []


def test_chunks_merge_to_the_whole(llm: MaraLLM) -> None:
    chat = llm.as_chat(logprobs=True, top_logprobs=1)
    whole = chat.invoke(PROMPT).response_metadata["logprobs"]
    assert whole == logs_of(llm, logprobs=True, top_logprobs=1)
    assert reduce(add, chat.stream(PROMPT)).response_metadata["logprobs"] == whole
    assert len(whole["content"]) == 16


def test_batches_and_drafts_change_nothing(llm: MaraLLM) -> None:
    alone = logs_of(llm, top_logprobs=3)
    together = llm.generate([PROMPT, "it is", PROMPT], top_logprobs=3, draft=3)
    assert together.generations[2][0].generation_info["logprobs"] == alone


def test_without_them_nothing_is_computed(llm: MaraLLM) -> None:
    assert "logprobs" not in llm.generate([PROMPT]).generations[0][0].generation_info
    assert "logprobs" not in llm.generate([PROMPT], logprobs=False, top_logprobs=3).generations[0][0].generation_info
    (trace,) = llm.with_agent(tiny_agent(seed=1)).trace([PROMPT])
    assert all(decision.log_probabilities is None for decision, _ in trace)
    with pytest.raises(OptionsError, match="top_logprobs=21"):
        llm.invoke(PROMPT, top_logprobs=21)
