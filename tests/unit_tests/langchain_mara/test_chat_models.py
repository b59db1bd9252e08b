"""ChatMara: one answer however it is run, messages in the model's template, options, cache, tools."""

import asyncio
import copy
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from families import decoding_threads, tiny_agent, wait_until
from langchain_core.caches import InMemoryCache
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.messages.tool import tool_call
from langchain_core.runnables import ConfigurableField
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from langchain_mara import ChatMara, MaraLLM
from langchain_mara._base import LocalModel
from langchain_mara.chat.conversation import to_template
from langchain_mara.exceptions import OptionsError, PromptError
from langchain_mara.loading import models

DRAWN: dict[str, Any] = {"order": "sampled", "temperature": 1.5}
OPTIONS: list[dict[str, Any]] = [
    {"top_k": 3},
    {"accept_threshold": 0.7},
    {"max_tokens": 3},
    {"agent": None},
    {"stop": ["n"]},
    {**DRAWN, "seed": 3},
]
"""Each changes the answer."""
EACH_OPTION = [OPTIONS[0], *(pytest.param(options, marks=pytest.mark.slow) for options in OPTIONS[1:])]
CONVERSATION = [
    SystemMessage("be nice"),
    HumanMessage("hi", name="ann"),
    AIMessage("the end"),
    HumanMessage([{"type": "text", "text": "is it "}, "so?"]),
]


@pytest.fixture
def chat(llm: MaraLLM) -> ChatMara:
    return llm.as_chat()


def texts(result: Any) -> list[str]:
    return [generation.message.text for generation in result.generations[0]]


def test_a_chat_model_shares_the_loaded_model_and_the_settings(llm: MaraLLM) -> None:
    chat = llm.as_chat(top_k=7)
    assert chat.model is llm.model
    assert chat.agent is llm.agent
    assert (chat.max_new_tokens, chat.top_k, llm.top_k) == (16, 7, 40)
    assert llm.as_chat().invoke("hi").text == llm.invoke("hi")


def test_from_llm_is_as_chat(llm: MaraLLM) -> None:
    llm = MaraLLM(**{**dict(llm), "stop": ["n"], "top_k": 7, "seed": 3})
    for changes in ({}, {"top_k": 5, "streaming": True}):
        chat, expected = ChatMara.from_llm(llm, **changes), llm.as_chat(**changes)
        assert dict(chat) == dict(expected)
        assert chat.tokenizer is expected.tokenizer is llm.tokenizer
    assert dict(ChatMara.from_llm(llm.as_chat())) == dict(llm.as_chat())
    settings = dict(LocalModel(**{name: getattr(llm, name) for name in LocalModel.model_fields}))
    assert {name: getattr(ChatMara.from_llm(llm), name) for name in settings} == settings


def test_from_model_id_loads_a_folder(chat: ChatMara, model_folder: Path, agent_folder: Path) -> None:
    loaded = ChatMara.from_model_id(model_folder, agent=agent_folder, device="cpu", max_tokens=16)
    assert loaded.invoke(CONVERSATION).text == chat.invoke(CONVERSATION).text


async def test_an_event_loop_needs_no_threads(chat: ChatMara, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("a thread of the loop was asked for")

    monkeypatch.setattr(asyncio.get_running_loop(), "run_in_executor", refuse)
    expected = chat.invoke("hi").text
    answers = [await chat.ainvoke("hi"), *await chat.abatch(["hi", "hi"])]
    assert {answer.text for answer in answers} == {expected}
    assert "".join([chunk.text async for chunk in chat.astream("hi")]) == expected


@pytest.mark.parametrize("options", [{}, *EACH_OPTION], ids=str)
async def test_every_way_of_running_gives_the_same_text(chat: ChatMara, options: dict[str, Any]) -> None:
    expected = chat.invoke(CONVERSATION, **options).text
    assert (expected != chat.invoke(CONVERSATION).text) == bool(options)
    assert "".join(chunk.text for chunk in chat.stream(CONVERSATION, **options)) == expected
    assert chat.batch([CONVERSATION, "hi"], **options)[0].text == expected
    assert texts(chat.generate([CONVERSATION], **options)) == [expected]
    assert (await chat.ainvoke(CONVERSATION, **options)).text == expected
    assert (await chat.abatch([CONVERSATION, "hi"], **options))[0].text == expected
    assert "".join([chunk.text async for chunk in chat.astream(CONVERSATION, **options)]) == expected
    assert chat.bind(**options).invoke(CONVERSATION).text == expected


def test_messages_are_in_the_template_once(chat: ChatMara) -> None:
    rendered = chat.tokenizer.decode(chat._encode(CONVERSATION, ()))
    assert rendered == "<s><|system|>be nice<|user|>hiassistantthe end<|user|>is it \nso?<|model|>"
    assert chat.get_num_tokens_from_messages(CONVERSATION) == len(chat._encode(CONVERSATION, ()))


def test_stream_and_whole_agree_on_metadata(chat: ChatMara) -> None:
    whole = chat.invoke(CONVERSATION, include_accept_probabilities=True)
    chunks = list(chat.stream(CONVERSATION, include_accept_probabilities=True))
    merged = chunks[0]
    for chunk in chunks[1:]:
        merged += chunk
    assert len(chunks) > 5
    assert merged.usage_metadata == whole.usage_metadata
    assert merged.response_metadata == whole.response_metadata
    assert len(whole.response_metadata["accept_probabilities"]) == 16
    assert whole.response_metadata["finish_reason"] == "length"
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["input_tokens"] == chat.get_num_tokens_from_messages(CONVERSATION)
    assert whole.usage_metadata["output_tokens"] == 16


def test_reused_prefix_is_told_as_cache_read(chat: ChatMara) -> None:
    long = [HumanMessage("the end is it so " * 5)]
    first, second = chat.invoke(long), chat.invoke(long)
    assert second.text == first.text
    assert second.usage_metadata is not None
    assert second.usage_metadata["input_token_details"]["cache_read"] >= 32


def test_n_answers_are_n_generations(chat: ChatMara) -> None:
    assert len(set(texts(chat.generate([[HumanMessage("hi")]], n=3, **DRAWN)))) == 3
    with pytest.raises(OptionsError, match="A stream is one answer, not n=2"):
        list(chat.stream("hi", n=2, **DRAWN))


@pytest.mark.parametrize("options", EACH_OPTION, ids=str)
async def test_no_cache_entry_serves_another_call(chat: ChatMara, options: dict[str, Any]) -> None:
    cached = ChatMara(**{**dict(chat), "cache": InMemoryCache()})
    plain = cached.invoke("hi").text
    for _ in range(2):
        assert cached.invoke("hi", **options).text == chat.invoke("hi", **options).text
        assert (await cached.ainvoke("hi", **options)).text == chat.invoke("hi", **options).text
        assert cached.invoke("hi").text == plain
    for seed in (4, 5):
        agent = tiny_agent(seed=seed)
        assert cached.invoke("hi", agent=agent).text == chat.invoke("hi", agent=agent).text


def test_configurable_fields_reload_nothing(chat: ChatMara) -> None:
    configurable = chat.configurable_fields(max_new_tokens=ConfigurableField(id="length"))
    short = configurable.with_config(configurable={"length": 3})
    assert short.invoke("hi").text == chat.invoke("hi", max_tokens=3).text


def test_copies_share_the_model_and_pickling_is_refused(chat: ChatMara) -> None:
    assert copy.deepcopy(chat).model is chat.model
    with pytest.raises(pickle.PicklingError, match="ChatMara.from_model_id in the other process"):
        pickle.dumps(chat)


@pytest.mark.parametrize(("name", "nearest"), [("tempurature", "temperature"), ("max_token", "max_new_tokens")])
def test_unknown_arguments_are_refused_by_name(chat: ChatMara, name: str, nearest: str) -> None:
    for call in (lambda **unknown: chat.invoke("hi", **unknown), lambda **unknown: list(chat.stream("hi", **unknown))):
        with pytest.raises(OptionsError, match=rf"{name} is unknown \(did you mean {nearest}\?\)"):
            call(**{name: 1})


async def test_a_bad_conversation_fails_alone(chat: ChatMara) -> None:
    good, bad = chat.batch(["hi", "x" * 300], return_exceptions=True)
    assert good.text == chat.invoke("hi").text
    assert isinstance(bad, PromptError)
    good, bad = await asyncio.gather(chat.ainvoke("hi"), chat.ainvoke("x" * 300), return_exceptions=True)
    assert isinstance(bad, PromptError)
    wait_until(lambda: decoding_threads() == 0)


def test_model_can_be_another_for_a_call(chat: ChatMara, model_folder: Path) -> None:
    answer = chat.invoke("hi", model=str(model_folder))
    assert answer.response_metadata["model_name"] == str(model_folder)
    assert answer.text == chat.invoke("hi").text
    assert chat.invoke("hi", model=chat.model_id).response_metadata["model_name"] == chat.model_id
    assert chat._get_ls_params(model="other")["ls_model_name"] == "other"


@pytest.fixture
def _no_model_stays_loaded() -> Iterator[None]:
    models.load_model_once.cache_clear()
    yield
    models.load_model_once.cache_clear()


@pytest.mark.usefixtures("_no_model_stays_loaded")
@pytest.mark.parametrize("offline", [True, False])
@pytest.mark.parametrize("changes", [{}, {"revision": "v2"}], ids=str)
def test_another_model_is_loaded_with_the_token_of_the_first(
    monkeypatch: pytest.MonkeyPatch, model_folder: Path, offline: bool, changes: dict[str, str]
) -> None:
    first = ChatMara.from_model_id(
        model_folder, token="mine", local_files_only=offline, device="cpu", max_tokens=3, packed=False
    )
    calls: list[tuple[str, dict[str, Any]]] = []

    def recorded(model_id: str, **options: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        calls.append((model_id, options))
        return first.model, first.tokenizer

    monkeypatch.setattr(models, "load_model", recorded)
    answer = first.invoke("hi", model="org/other", **changes)
    assert answer.response_metadata["model_name"] == "org/other"
    [(model_id, options)] = calls
    assert (model_id, options["revision"]) == ("org/other", changes.get("revision"))
    assert (options["token"], options["local_files_only"]) == ("mine", offline)
    assert (options["device"], options["dtype"], options["packed"]) == (first.model.device, first.model.dtype, False)


def test_a_tokenizer_without_template_is_refused(
    model: PreTrainedModel, make_tokenizer: Callable[[], PreTrainedTokenizerFast]
) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(PromptError, match="has no chat template. Use an instruct model"):
        ChatMara(model=model, tokenizer=tokenizer)


def test_a_template_without_tools_gets_them_in_its_first_message(chat: ChatMara) -> None:
    tool: dict[str, Any] = {"name": "f", "description": "", "parameters": {}}
    bound: Any = chat.bind_tools([tool])
    text = chat.tokenizer.decode(chat._encode([HumanMessage("hi")], bound.kwargs["tools"]))
    # This tokenizer knows letters only.
    assert text.index("name f") < text.index("<|user|>hi")
    with pytest.raises(OptionsError, match="tool_format='xml' is unknown. Give one of"):
        chat.bind_tools([tool], tool_format="xml")


def test_tool_conversations_come_as_templates_want_them() -> None:
    messages = [
        AIMessage("", tool_calls=[tool_call(name="f", args={"a": 1}, id="call_1234567890")]),
        ToolMessage("2", tool_call_id="call_1234567890", name="f"),
        AIMessage([{"type": "tool_call", "name": "f", "args": {}, "id": "1"}, {"type": "text", "text": "so"}]),
    ]
    call, result, listed = to_template(messages)
    assert call["tool_calls"][0]["function"] == {"name": "f", "arguments": {"a": 1}}
    assert (result["role"], result["content"], result["name"]) == ("tool", "2", "f")
    assert result["tool_call_id"] == call["tool_calls"][0]["id"] == "call_1234567890"
    assert listed["content"] == "so"
