"""Arguments of tool calls arrive as the model writes them, in every kind of stream, and merge to the message."""

import json
from functools import reduce
from operator import add
from typing import Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from scripted import scripted_chat
from tool_families import TOOLS

from langchain_mara import ChatMara
from langchain_mara.text.tool_formats.calls import ToolCall
from langchain_mara.text.tool_formats.table import FORMATS

PARIS = ToolCall("get_weather", {"city": "Paris"})
NOTE = ToolCall("note", {"text": "a\nb"})
HI = [HumanMessage("hi")]
IN_PARTS = {"hermes": "\n", "mistral-v3": "[/INST]", "granite": "<|end_of_role|>", "prompt": "\n"}


def chat_of(family: str, *calls: ToolCall, **fields: Any) -> Any:
    return scripted_chat(family, FORMATS[family].write(calls), after=IN_PARTS[family], **fields).bind_tools(TOOLS)


def called(message: AIMessage) -> list[tuple[str, dict[str, Any]]]:
    return [(call["name"], call["args"]) for call in message.tool_calls]


def check(chunks: list[AIMessageChunk], whole: AIMessage) -> None:
    """The chunks bring the arguments bit by bit, name first, and merge to the message."""
    parts = [part for chunk in chunks for part in chunk.tool_call_chunks]
    for index, call in enumerate(whole.tool_calls):
        own = [part for part in parts if part["index"] == index]
        assert len(own) > 10
        assert [part["name"] for part in own] == [call["name"]] + [None] * (len(own) - 1)
        assert [bool(part["id"]) for part in own] == [True] + [False] * (len(own) - 1)
        assert json.loads("".join(str(part["args"]) for part in own)) == call["args"]
    merged: AIMessageChunk = reduce(add, chunks)
    assert called(merged) == called(whole)
    assert (merged.content, merged.invalid_tool_calls) == (whole.content, whole.invalid_tool_calls) == ("", [])
    assert merged.response_metadata["finish_reason"] == "tool_calls"


@pytest.mark.slow
async def test_every_stream_brings_arguments_in_parts() -> None:
    chat = chat_of("hermes", PARIS, NOTE)
    whole = chat.invoke(HI)
    assert called(whole) == [(call.name, call.arguments) for call in (PARIS, NOTE)]
    check(list(chat.stream(HI)), whole)
    check([chunk async for chunk in chat.astream(HI)], whole)
    events = [event async for event in chat.astream_events(HI, version="v2")]
    check([event["data"]["chunk"] for event in events if event["event"] == "on_chat_model_stream"], whole)
    assert called(events[-1]["data"]["output"]) == called(whole)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["granite", "mistral-v3", "prompt"])
def test_every_json_format_brings_arguments_in_parts(family: str) -> None:
    chunks = list(chat_of(family, NOTE).stream(HI))
    merged: Any = reduce(add, chunks)
    assert called(merged) == [("note", NOTE.arguments)]
    check(chunks, merged)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(ChatMara, "stream_events"), reason="this langchain-core has no typed streams")
@pytest.mark.parametrize("length", [20, 45, 55, None])
@pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning")
def test_typed_streams_tell_of_calls_valid_and_cut(length: int | None) -> None:
    chat = chat_of("hermes", PARIS)
    message = chat.stream_events(HI, version="v3", max_new_tokens=length).output
    assert called(message) == ([] if length else [("get_weather", {"city": "Paris"})])
    assert ["ended at max_new_tokens" in call["args"] for call in message.invalid_tool_calls] == [True] * bool(length)


@pytest.mark.slow
@pytest.mark.parametrize("left", [15, 3])
def test_a_call_that_was_cut_is_none_for_whoever_merges_the_stream(left: int) -> None:
    chat = chat_of("hermes", NOTE)
    tokens = len(chat.bound.get_token_ids(FORMATS["hermes"].write([NOTE])))
    chunks = list(chat.stream(HI, max_new_tokens=tokens - left))
    assert len([chunk for chunk in chunks if chunk.tool_call_chunks]) > 3
    merged: Any = reduce(add, chunks)
    whole = chat.invoke(HI, max_new_tokens=tokens - left)
    assert merged.response_metadata["finish_reason"] == whole.response_metadata["finish_reason"] == "length"
    assert merged.tool_calls == whole.tool_calls == []
    [told], [known] = merged.invalid_tool_calls, whole.invalid_tool_calls
    assert (told["name"], known["name"]) == ("note", "note")
    assert "Raise max_new_tokens" in str(known["error"])
    assert str(known["error"]) in str(told["args"])


def test_a_call_in_a_format_without_json_comes_whole() -> None:
    chat: ChatMara = scripted_chat("glm", FORMATS["glm"].write([PARIS]), after="<|assistant|>")
    chunks = list(chat.stream(HI, tools=TOOLS))
    [part] = [part for chunk in chunks for part in chunk.tool_call_chunks]  # type: ignore[attr-defined]
    assert (part["name"], json.loads(part["args"])) == ("get_weather", PARIS.arguments)
