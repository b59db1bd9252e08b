"""Tools of a call beside a promised form, in formats with markers and in those that are plain JSON."""

import json
from collections.abc import Iterator
from functools import reduce
from operator import add
from typing import Any

import pytest
from grammars import promised
from langchain_core.exceptions import OutputParserException
from scripted import scripted_chat
from tool_families import TOOLS, tokenizer_of

from langchain_mara import ChatMara
from langchain_mara.chat.offer import ToolOffer

BOB = {"name": "Bob", "age": "3"}
PERSON = {
    "type": "object",
    "properties": {key: {"type": "string"} for key in BOB},
    "required": [*BOB],
    "title": "Person",
}
FORMAT = promised(PERSON)
CALL = '{"name": "get_weather", "parameters": {"city": "Paris"}}'


def scripted(family: str, answer: str, **fields: Any) -> ChatMara:
    return scripted_chat(family, answer, after="<|start|>assistant" if family == "harmony" else "\n", **fields)


def answers(chat: Any, **kwargs: Any) -> Iterator[Any]:
    yield chat.invoke("hi", **kwargs)
    yield reduce(add, chat.stream("hi", **kwargs))


@pytest.mark.parametrize("tools", [[], TOOLS], ids=["alone", "beside tools"])
@pytest.mark.parametrize("family", ["hermes", "llama-json", "deepseek", "harmony"])
def test_an_answer_of_a_promised_form_is_text(family: str, tools: list[Any]) -> None:
    for answer in answers(scripted(family, json.dumps(BOB)), response_format=FORMAT, tools=tools):
        assert json.loads(answer.content) == BOB
        assert (answer.tool_calls, answer.invalid_tool_calls, answer.additional_kwargs) == ([], [], {})
        assert answer.response_metadata["finish_reason"] == "stop"


@pytest.mark.parametrize("schema", [PERSON, {"type": "object", "properties": {"age": {"type": "integer"}}}])
def test_a_call_that_is_json_may_come_instead(schema: dict[str, Any]) -> None:
    for answer in answers(scripted("llama-json", CALL), response_format=promised(schema), tools=TOOLS):
        assert [(call["name"], call["args"]) for call in answer.tool_calls] == [("get_weather", {"city": "Paris"})]
        assert (answer.content, answer.response_metadata["finish_reason"]) == ("", "tool_calls")


def test_schemas_with_definitions_may_stand_beside_calls() -> None:
    schema = {"$defs": {"Age": {"type": "integer"}}, "type": "object", "properties": {"age": {"$ref": "#/$defs/Age"}}}
    answer = scripted("llama-json", '{"age": 3}').invoke("hi", response_format=promised(schema), tools=TOOLS)
    assert json.loads(answer.content) == {"age": 3}


def test_thoughts_that_the_template_opens_are_closed_before_a_promised_form() -> None:
    chat = scripted("deepseek", json.dumps(BOB))
    assert chat.invoke("hi").additional_kwargs  # without a promise, the same text is thoughts
    assert json.loads(chat.invoke("hi", response_format=FORMAT).content) == BOB
    assert chat.invoke("hi", choice=["yes"]).content == "yes"


def test_a_value_of_a_schema_is_promised_and_a_cut_one_is_an_error() -> None:
    chat = scripted("llama-json", json.dumps(BOB))
    assert chat.with_structured_output(PERSON, method="json_schema").invoke("hi") == BOB
    assert chat.with_structured_output(PERSON, method="json_mode").invoke("hi") == BOB
    cut = chat.with_structured_output(PERSON, method="json_schema", max_tokens=9)
    with pytest.raises(OutputParserException, match="reached max_new_tokens"):
        cut.invoke("hi")
    both = chat.with_structured_output(PERSON, method="json_schema", include_raw=True, max_tokens=9).invoke("hi")
    assert both["parsed"] is None
    assert "reached max_new_tokens" in str(both["parsing_error"])


def test_a_call_that_was_cut_is_no_value() -> None:
    chat = scripted("llama-json", '{"name": "Bob", "age": "3"}}')
    both = chat.with_structured_output(PERSON, include_raw=True, max_tokens=12).invoke("hi")
    assert both["raw"].response_metadata["finish_reason"] == "length"
    assert [call["name"] for call in both["raw"].invalid_tool_calls] == ["Person"]
    assert "reached max_new_tokens" in str(both["parsing_error"])


def test_only_response_formats_leave_room_for_calls() -> None:
    chat = scripted("llama-json", "hi")
    offer = ToolOffer.of(chat.tokenizer, None, {"tools": TOOLS})
    assert offer.instead_of(chat) is None
    assert offer.instead_of(chat.model_copy(update={"choice": ["yes"]})) == []
    formatted = chat.model_copy(update={"response_format": FORMAT})
    assert offer.instead_of(formatted) == [f'{{"name": "{name}", "parameters": ' for name in ("get_weather", "note")]
    assert ToolOffer.of(chat.tokenizer, None, {"tools": TOOLS, "tool_choice": "any"}).instead_of(formatted) is None
    assert ToolOffer.of(tokenizer_of("hermes"), None, {}).instead_of(formatted) == []
