"""Conversations of LangChain's many forms as templates take them, and sentences for what no template takes."""

from typing import Any

import pytest
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    ChatMessage,
    ChatMessageChunk,
    FunctionMessage,
    HumanMessage,
    HumanMessageChunk,
    RemoveMessage,
    SystemMessage,
    SystemMessageChunk,
    ToolMessage,
    ToolMessageChunk,
)
from langchain_core.messages.tool import invalid_tool_call, tool_call

from langchain_mara import MaraLLM
from langchain_mara.chat.conversation import to_template
from langchain_mara.exceptions import PromptError

MEDIA: list[dict[str, Any]] = [
    {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}},
    {"type": "image", "base64": "aGk=", "mime_type": "image/png"},
    {"type": "audio", "base64": "aGk=", "mime_type": "audio/wav"},
    {"type": "input_audio", "input_audio": {"data": "aGk=", "format": "wav"}},
    {"type": "video", "url": "https://example.com/cat.mp4"},
    {"type": "file", "base64": "aGk=", "mime_type": "application/pdf"},
    {"type": "server_tool_call", "name": "web_search", "id": "1", "args": {}},
]
HALF = "\ud83d"


def contents(*messages: Any) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in to_template(messages)]


def test_results_in_a_user_message_become_messages_of_the_tool() -> None:
    results = [
        {"type": "tool_result", "tool_use_id": "call_1", "content": "7"},
        {"type": "tool_result", "tool_use_id": "call_2", "content": [{"type": "text", "text": "8"}], "is_error": True},
    ]
    first, second, rest = to_template([HumanMessage([*results, {"type": "text", "text": "so?"}])])
    assert first == {"role": "tool", "content": "7", "tool_call_id": "call_1"}
    assert second == {"role": "tool", "content": "8", "tool_call_id": "call_2"}
    assert (rest["role"], rest["content"]) == ("user", "so?")
    assert contents(HumanMessage(results)) == [("tool", "7"), ("tool", "8")]


def test_parts_of_an_answer_are_one_text_and_those_of_others_are_lines() -> None:
    parts: list[Any] = [{"type": "text", "text": "is "}, "it", {"type": "reasoning", "reasoning": "hm"}]
    assert contents(HumanMessage("a"), AIMessage(parts), HumanMessage(parts)) == [
        ("user", "a"),
        ("assistant", "is it"),
        ("user", "is \nit"),
    ]


def test_chunks_are_messages() -> None:
    call: Any = {"name": "f", "args": '{"a": 1}', "id": "1", "index": 0}
    parts: list[Any] = [{"type": "text", "text": "is "}, {"type": "text", "text": "it"}]
    chunks = [
        SystemMessageChunk("be nice"),
        HumanMessageChunk("hi"),
        AIMessageChunk(parts) + AIMessageChunk("", tool_call_chunks=[call]),
        ToolMessageChunk("7", tool_call_id="1"),
        ChatMessageChunk("so?", role="user"),
    ]
    whole = [
        SystemMessage("be nice"),
        HumanMessage("hi"),
        AIMessage(parts, tool_calls=[tool_call(name="f", args={"a": 1}, id="1")]),
        ToolMessage("7", tool_call_id="1"),
        ChatMessage("so?", role="user"),
    ]
    assert to_template(chunks) == to_template(whole)
    assert [message["role"] for message in to_template(chunks)] == ["system", "user", "assistant", "tool", "user"]


def test_a_result_has_the_name_of_its_tool() -> None:
    def asked(name: str) -> AIMessage:
        return AIMessage("", tool_calls=[tool_call(name=name, args={}, id="1")])

    # Ids may come again in a later turn.
    messages = [asked("f"), ToolMessage("7", tool_call_id="1"), asked("g"), ToolMessage("8", tool_call_id="1")]
    assert [message["name"] for message in to_template(messages) if message["role"] == "tool"] == ["f", "g"]
    in_content = HumanMessage([{"type": "tool_result", "tool_use_id": "1", "content": "7"}])
    assert to_template([asked("f"), in_content])[1]["name"] == "f"
    assert to_template([asked("f"), ToolMessage("7", tool_call_id="1", name="own")])[1]["name"] == "own"
    assert "name" not in to_template([asked("f"), ToolMessage("7", tool_call_id="2")])[1]
    old = FunctionMessage(name="f", content="7")
    assert to_template([old]) == [{"role": "tool", "content": "7", "name": "f"}]


def test_json_and_plain_text_are_text() -> None:
    parts: list[Any] = [{"type": "json", "json": {"a": "é"}}, {"type": "text-plain", "text": "b"}]
    assert contents(ToolMessage(parts, tool_call_id="1")) == [("tool", '{"a": "é"}\nb')]


@pytest.mark.parametrize("messages", [[], [AIMessage("")], [AIMessage([])]], ids=str)
def test_an_empty_conversation_is_refused(llm: MaraLLM, messages: list[Any]) -> None:
    with pytest.raises(PromptError, match="The conversation is empty. Give at least one message"):
        llm.as_chat().invoke(messages)


def test_an_empty_answer_at_the_end_is_where_the_answer_begins() -> None:
    assert contents(HumanMessage("a"), AIMessage("")) == [("user", "a")]
    called = AIMessage("", tool_calls=[tool_call(name="f", args={}, id="1")])
    assert len(contents(HumanMessage("a"), called)) == 2


@pytest.mark.parametrize(
    "kind", [HumanMessage, SystemMessage, AIMessage, lambda parts: ToolMessage(parts, tool_call_id="1")]
)
@pytest.mark.parametrize("part", MEDIA, ids=lambda part: part["type"])
def test_what_is_no_text_is_refused_by_name(kind: Any, part: dict[str, Any]) -> None:
    with pytest.raises(PromptError, match=rf"A message of type \w+ holds {part['type']}; this model reads text only"):
        to_template([kind([{"type": "text", "text": "hi"}, part])])


def test_media_in_the_result_of_a_tool_are_refused_by_name() -> None:
    result = {"type": "tool_result", "tool_use_id": "1", "content": [MEDIA[0]]}
    with pytest.raises(PromptError, match="type tool holds image_url"):
        to_template([HumanMessage([result])])


def test_messages_that_are_no_part_of_a_conversation_are_refused() -> None:
    with pytest.raises(PromptError, match="A message of type remove is no part of a conversation"):
        to_template([RemoveMessage(id="1")])
    assert contents(ChatMessage("hi", role="critic")) == [("critic", "hi")]


def test_calls_that_only_the_content_holds_are_kept_once() -> None:
    parts = [
        {"type": "tool_use", "name": "f", "input": {"a": 1}, "id": "1"},
        {"type": "function_call", "name": "g", "arguments": '{"b": 2}', "call_id": "2"},
    ]
    own = [tool_call(name="f", args={"a": 1}, id="1")]
    [message] = to_template([AIMessage(parts, tool_calls=own)])  # type: ignore[arg-type]
    functions = [call["function"] for call in message["tool_calls"]]
    assert functions == [{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {"b": 2}}]


def test_a_bad_call_is_kept_if_a_message_answers_it() -> None:
    bad = AIMessage("", invalid_tool_calls=[invalid_tool_call(name="f", args='{"a": ', id="1", error="no")])
    result = ToolMessage("Error: no JSON", tool_call_id="1")
    message, _ = to_template([bad, result])
    assert message["tool_calls"][0]["function"] == {"name": "f", "arguments": {}}
    assert "tool_calls" not in to_template([bad, HumanMessage("so?")])[0]


def test_a_call_without_an_id_has_its_number_for_one() -> None:
    messages = [AIMessage("", tool_calls=[tool_call(name="f", args={}, id=None)])]
    assert to_template(messages)[0]["tool_calls"][0]["id"] == "0"


@pytest.mark.parametrize(
    "message",
    [
        HumanMessage(HALF),
        HumanMessage([{"type": "text", "text": HALF}]),
        HumanMessage("hi", name=HALF),
        AIMessage(f"a{HALF}"),
    ],
    ids=["text", "part", "name", "prefill"],
)
def test_half_a_character_is_named(llm: MaraLLM, message: Any) -> None:
    chat = llm.as_chat()
    with pytest.raises(PromptError, match="a lone surrogate, which is half of a character"):
        chat.invoke([HumanMessage("hi"), message])


def test_a_trailing_message_of_the_assistant_is_continued(llm: MaraLLM) -> None:
    chat = llm.as_chat()
    rendered = chat.tokenizer.decode(chat._encode([HumanMessage("hi"), AIMessage("the end")], ()))
    assert rendered == "<s><|user|>hiassistantthe end"
    assert chat.invoke([HumanMessage("hi"), AIMessage("the end")]).text != chat.invoke("hi").text


@pytest.mark.parametrize(
    "message",
    [
        AIMessage("so", additional_kwargs={"reasoning_content": "hm"}),
        AIMessage([{"type": "reasoning", "reasoning": "hm"}, {"type": "text", "text": "so"}]),
        AIMessage([{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "so"}]),
    ],
)
def test_thoughts_are_apart_from_what_was_said(message: AIMessage) -> None:
    assert to_template([message]) == [{"role": "assistant", "content": "so", "reasoning_content": "hm"}]
