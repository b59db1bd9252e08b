"""What ends an answer: stop strings, special tokens named as such, token ids; and the names that people type."""

from typing import Any

import pytest
from families import tiny_model
from transformers import PreTrainedTokenizerFast

from langchain_mara.exceptions import OptionsError
from langchain_mara.llms import MaraLLM

PROMPT = "the end is near, it is"
CALLS = {"llm": lambda llm, **options: llm.invoke(PROMPT, **options)}
CALLS["chat"] = lambda llm, **options: llm.as_chat().invoke(PROMPT, **options).text
CALLS["stream"] = lambda llm, **options: "".join(llm.stream(PROMPT, **options))
CALLS["chat stream"] = lambda llm, **options: "".join(chunk.text for chunk in llm.as_chat().stream(PROMPT, **options))
CALLS["instance"] = lambda llm, **options: llm._configured(options).invoke(PROMPT)


@pytest.fixture
def plain(tokenizer: PreTrainedTokenizerFast) -> MaraLLM:
    """Its ninth token is the special token `<|user|>`, which ends nothing by itself."""
    model = tiny_model("llama-3")
    model.generation_config.forced_eos_token_id = tokenizer.convert_tokens_to_ids("<|user|>")
    return MaraLLM(model=model, tokenizer=tokenizer, max_new_tokens=9)


def reason(llm: MaraLLM, **options: Any) -> str:
    return llm.generate([PROMPT], **options).generations[0][0].generation_info["finish_reason"]


def test_a_special_token_given_as_stop_ends_the_answer(plain: MaraLLM) -> None:
    assert reason(plain) == "length"
    assert reason(plain, stop=["<|user|>"]) == "stop"
    assert plain.invoke(PROMPT, stop=["<|user|>"]) == plain.invoke(PROMPT)
    assert reason(plain, stop=["<|system|>"]) == "length"


@pytest.mark.parametrize("call", CALLS)
def test_a_token_id_ends_the_answer_and_is_not_part_of_it(plain: MaraLLM, call: str) -> None:
    ids = [decision.token_id for decision, _ in plain.trace([PROMPT])[0]]
    expected = plain.tokenizer.decode(ids[:3])
    assert ids[3] not in ids[:3]
    assert CALLS[call](plain, stop_token_ids=[ids[3], 96]) == expected
    assert reason(plain, stop_token_ids=[ids[3]]) == "stop"
    assert plain._configured({"stop_token_ids": [3]})._identity() != plain._identity()


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("given", "ours"),
    [
        ({"max_tokens": 4}, {"max_new_tokens": 4}),
        ({"max_completion_tokens": 4}, {"max_new_tokens": 4}),
        ({"stop_sequences": ["h"]}, {"stop": ["h"]}),
    ],
    ids=str,
)
def test_other_names_mean_the_same(plain: MaraLLM, call: str, given: dict[str, Any], ours: dict[str, Any]) -> None:
    assert CALLS[call](plain, **given) == CALLS[call](plain, **ours) != CALLS[call](plain)


def test_a_chat_model_of_an_llm_takes_other_names_and_refuses_two_for_one(plain: MaraLLM) -> None:
    assert plain.as_chat(max_tokens=5).max_new_tokens == 5
    with pytest.raises(OptionsError, match="max_tokens and max_completion_tokens mean the same"):
        plain.as_chat(max_tokens=5, max_completion_tokens=5)
    with pytest.raises(OptionsError, match="stop_sequences and stop mean the same"):
        plain._configured({"stop": ["a"], "stop_sequences": ["a"]})


@pytest.mark.parametrize("call", list(CALLS)[:4])
def test_two_names_for_the_stop_of_a_call_are_refused(plain: MaraLLM, call: str) -> None:
    with pytest.raises(OptionsError, match="stop_sequences and stop mean the same"):
        CALLS[call](plain, stop=["a"], stop_sequences=["h"])
