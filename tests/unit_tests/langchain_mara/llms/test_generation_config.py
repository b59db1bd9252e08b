"""The checkpoint's generation config counts in `MaraLLM` as in `mara_generate`; options replace it."""

from typing import Any

import pytest
import torch
from families import tiny_agent, tiny_model
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from langchain_mara import mara_generate
from langchain_mara.llms import MaraLLM

PROMPT = "the end is near, it is"
ALWAYS = tiny_agent(bias=100.0)
CONFIGS: dict[str, dict[str, Any]] = {
    "repetition_penalty": {"repetition_penalty": 2.5},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
    "bad words": {"bad_words_ids": [[n] for n in range(10, 60)]},
    "suppressed": {"suppress_tokens": list(range(10, 60))},
    "suppressed at first": {"begin_suppress_tokens": list(range(5, 90))},
    "forced at the end": {"forced_eos_token_id": 1},
    "bias": {"sequence_bias": {(20,): 50.0}},
    "least length": {"eos_token_id": list(range(1, 97, 3)), "min_new_tokens": 7},
    "prompt repeated": {"encoder_repetition_penalty": 3.0},
}


def answer(llm: MaraLLM, **changes: Any) -> list[int]:
    return [decision.token_id for decision, _ in llm.trace([PROMPT], **changes)[0]]


@pytest.fixture
def llm(tokenizer: PreTrainedTokenizerFast) -> MaraLLM:
    model = tiny_model("llama-3")
    model.generation_config.pad_token_id = 1
    return MaraLLM(model=model, tokenizer=tokenizer, agent=ALWAYS, max_new_tokens=14)


@pytest.mark.parametrize("setting", CONFIGS)
def test_it_counts_as_in_generate(llm: MaraLLM, setting: str) -> None:
    model: PreTrainedModel = llm.model
    plain = answer(llm)
    for name, value in CONFIGS[setting].items():
        setattr(model.generation_config, name, value)
    before = model.generation_config.to_dict()
    ids = torch.tensor([llm.encode(PROMPT)])
    arguments = {"max_new_tokens": 14, "do_sample": False}
    expected = model.generate(ids, **arguments)[0, ids.shape[1] :].tolist()
    ours = model.generate(ids, **arguments, custom_generate=mara_generate, agent=ALWAYS)
    assert answer(llm) == expected == ours[0, ids.shape[1] :].tolist()
    assert answer(llm) != plain
    assert model.generation_config.to_dict() == before
    assert llm.as_chat().invoke(PROMPT).text == llm.invoke(PROMPT)


def test_every_answer_has_processors_of_its_own(llm: MaraLLM) -> None:
    llm.model.generation_config.no_repeat_ngram_size = 1
    alone = [answer(llm), [d.token_id for d, _ in llm.trace(["hi"])[0]]]
    together = llm.trace([PROMPT, "hi"])
    assert [[decision.token_id for decision, _ in trace] for trace in together] == alone


def test_options_replace_it(llm: MaraLLM) -> None:
    config = llm.model.generation_config
    config.eos_token_id, config.min_new_tokens = list(range(1, 97, 3)), 9
    assert len(answer(llm)) >= 9
    assert len(answer(llm, min_new_tokens=1)) < 9
    config.min_new_tokens, config.eos_token_id = None, 1
    whole = llm.invoke(PROMPT)
    config.stop_strings = [whole[3:5]]
    assert llm.invoke(PROMPT) == whole[: whole.index(whole[3:5])]
    assert llm.invoke(PROMPT, stop=["\0"]) == whole


def test_how_candidates_are_drawn_is_up_to_the_options(llm: MaraLLM) -> None:
    plain = answer(llm)
    config = llm.model.generation_config
    config.do_sample, config.temperature, config.top_k, config.top_p = True, 0.3, 1, 0.2
    assert answer(llm) == plain
    assert answer(llm, temperature=2.0, top_p=1.0) != plain
