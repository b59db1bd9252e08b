"""MaraLLM refuses what it cannot do, by name and with the way out, at construction, loading and call."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from families import tiny_agent
from tokenizers import processors
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from langchain_mara import MaraLLM
from langchain_mara.exceptions import AgentMismatchError, LoadingError, OptionsError, PromptError

TYPING_ERRORS = {"topk": "top_k", "max_token": "max_new_tokens", "temprature": "temperature"}


@pytest.mark.parametrize(("name", "nearest"), [*TYPING_ERRORS.items(), ("batchsize", "batch_size"), ("agnt", "agent")])
def test_unknown_argument_is_refused_at_construction(llm: MaraLLM, name: str, nearest: str) -> None:
    with pytest.raises(OptionsError, match=rf"{name} is unknown \(did you mean {nearest}\?\)"):
        MaraLLM(model=llm.model, tokenizer=llm.tokenizer, **{name: 1})


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        *TYPING_ERRORS.items(),
        pytest.param("batch_siz", "batch_size"),
        pytest.param("devise", "device"),
    ],
)
def test_unknown_argument_is_refused_before_anything_is_loaded(name: str, nearest: str) -> None:
    with pytest.raises(OptionsError, match=rf"{name} is unknown \(did you mean {nearest}\?\)"):
        MaraLLM.from_model_id("./nowhere", **{name: 1})


@pytest.mark.parametrize(("name", "nearest"), TYPING_ERRORS.items())
def test_unknown_argument_is_refused_on_every_call(llm: MaraLLM, name: str, nearest: str) -> None:
    calls: list[Callable[..., Any]] = [
        lambda **unknown: llm.invoke("hi", **unknown),
        lambda **unknown: llm.batch(["hi"], **unknown),
        lambda **unknown: next(llm.stream("hi", **unknown)),
        lambda **unknown: llm.bind(**unknown).invoke("hi"),
        lambda **unknown: llm.trace(["hi"], **unknown),
    ]
    for call in calls:
        with pytest.raises(OptionsError, match=rf"{name} is unknown \(did you mean {nearest}\?\)"):
            call(**{name: 1})


@pytest.mark.parametrize("name", ["cache", "model_id", "model"])
def test_what_is_fixed_at_construction_is_unknown_to_a_call(llm: MaraLLM, name: str) -> None:
    with pytest.raises(OptionsError, match=f"{name} is unknown"):
        llm.invoke("hi", **{name: 1})


@pytest.mark.parametrize(
    ("name", "value"),
    [("top_k", 0), ("top_p", 1.5), ("batch_size", 0), ("width", 0), ("draft", -1), ("stop", "end"), ("order", "up")],
)
def test_value_out_of_bounds_is_refused_at_construction(llm: MaraLLM, name: str, value: Any) -> None:
    with pytest.raises(OptionsError, match=f"{name}={value!r} should be "):
        MaraLLM(model=llm.model, tokenizer=llm.tokenizer, **{name: value})


def test_value_out_of_bounds_is_refused_before_loading_and_at_a_call(llm: MaraLLM) -> None:
    with pytest.raises(OptionsError, match="top_k=0 should be greater than or equal to 1"):
        MaraLLM.from_model_id("./nowhere", top_k=0)
    with pytest.raises(OptionsError, match="accept_threshold=2 should be less than or equal to 1"):
        llm.invoke("hi", accept_threshold=2)
    llm.top_k = 0
    with pytest.raises(OptionsError, match="top_k=0 should"):
        llm.invoke("hi")


def test_missing_model_and_wrong_types_are_refused_in_one_sentence(llm: MaraLLM) -> None:
    with pytest.raises(OptionsError, match="model is required; tokenizer is required"):
        MaraLLM()
    with pytest.raises(OptionsError, match=r"model='gpt2' should be an .* \(from_model_id loads one by its name\)"):
        MaraLLM(model="gpt2", tokenizer=llm.tokenizer)
    with pytest.raises(OptionsError, match=r"agent='actor\.pth' should be an instance of Agent"):
        MaraLLM(model=llm.model, tokenizer=llm.tokenizer, agent="actor.pth")


@pytest.mark.parametrize("name", ["tokenizer", "model"])
def test_loaded_parts_given_to_from_model_id_are_refused_by_name(llm: MaraLLM, model_folder: Path, name: str) -> None:
    with pytest.raises(OptionsError, match=name):
        MaraLLM.from_model_id(model_folder, **{name: getattr(llm, name)})


def test_missing_model_folder_is_refused() -> None:
    with pytest.raises(LoadingError, match=r"no folder \./nowhere"):
        MaraLLM.from_model_id("./nowhere")


def test_agent_of_another_size_is_refused_everywhere(llm: MaraLLM) -> None:
    message = "reads states of size 16, but .* gives 32. Use an agent trained on a model of hidden size 32"
    small = tiny_agent(16)
    with pytest.raises(AgentMismatchError, match=message):
        MaraLLM(model=llm.model, tokenizer=llm.tokenizer, agent=small)
    with pytest.raises(AgentMismatchError, match=message):
        llm.with_agent(small)
    with pytest.raises(AgentMismatchError, match=message):
        llm.invoke("hi", agent=small)
    assert llm.invoke("hi")


def test_prompt_beyond_the_context_is_refused_with_both_lengths(llm: MaraLLM) -> None:
    length = len(llm.encode("a b " * 100))
    with pytest.raises(PromptError, match=f"has {length} tokens, but LlamaForCausalLM holds 128.*Shorten"):
        llm.batch(["hi", "a b " * 100])
    assert llm.invoke("hi")


@pytest.mark.parametrize(("length", "room"), [(127, 1), (124, 4)])
def test_prompt_that_just_fits_is_answered_to_the_end_of_the_context(llm: MaraLLM, length: int, room: int) -> None:
    prompt = "x" * (length - 3)
    assert len(llm.encode(prompt)) == length
    decisions = llm.trace([prompt], agent=None, min_new_tokens=9)[0]
    assert len(decisions) == room
    assert decisions[-1][0].finish_reason == "length"
    with pytest.raises(PromptError, match="has 128 tokens"):
        llm.invoke("x" * 125)


def test_prompt_without_any_token_is_refused(
    make_tokenizer: Callable[[], PreTrainedTokenizerFast], model: PreTrainedModel
) -> None:
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel()
    llm = MaraLLM(model=model, tokenizer=tokenizer, use_chat_template=False, max_new_tokens=3)
    assert llm.invoke("hi")
    with pytest.raises(PromptError, match="no tokens. Give text, or a tokenizer that adds a BOS"):
        llm.invoke("")


def test_empty_batch_is_empty(llm: MaraLLM) -> None:
    assert llm.batch([]) == []
    assert llm.trace([]) == []
    assert llm.generate([]).generations == []


def test_system_prompt_without_template_is_refused(llm: MaraLLM) -> None:
    with pytest.raises(PromptError, match="system_prompt needs a chat template"):
        MaraLLM(model=llm.model, tokenizer=llm.tokenizer, use_chat_template=False, system_prompt="be nice")


def test_template_that_refuses_the_system_prompt_is_quoted(
    make_tokenizer: Callable[[], PreTrainedTokenizerFast], model: PreTrainedModel
) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% if 'nice' in messages[0]['content'] %}{{ raise_exception('No!') }}{% endif %}hi"
    assert MaraLLM(model=model, tokenizer=tokenizer, max_new_tokens=2).invoke("hi")
    llm = MaraLLM(model=model, tokenizer=tokenizer, system_prompt="be nice")
    with pytest.raises(PromptError, match="roles system, user: No!"):
        llm.invoke("hi")


@pytest.mark.parametrize("kwargs", [{"stop": [""]}, {"stop": ["end", ""]}])
def test_empty_stop_string_is_refused_at_a_call(llm: MaraLLM, kwargs: dict[str, list[str]]) -> None:
    with pytest.raises(OptionsError, match="stop string must not be empty"):
        llm.invoke("hi", **kwargs)


def test_empty_stop_string_is_refused_at_construction(llm: MaraLLM) -> None:
    with pytest.raises(OptionsError, match="at least 1 character"):
        MaraLLM(model=llm.model, tokenizer=llm.tokenizer, stop=[""])


def test_stop_string_outside_a_list_is_refused_or_taken_whole(llm: MaraLLM) -> None:
    free = llm.invoke("hi")
    absent = free[4:6] + "zq"
    try:
        text = llm.invoke("hi", stop=absent)
    except OptionsError:
        return
    assert text == free
