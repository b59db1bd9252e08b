"""JSON as models write it: what is unambiguous is repaired, the rest is refused."""

from typing import Any

import pytest

from langchain_mara.text.tool_formats.calls import Offer, ToolCall, arguments_of, call_of, read_json


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": "one\ntwo\t"}', {"a": "one\ntwo\t"}),
        ('{"a": {"b": [1, 2]}', {"a": {"b": [1, 2]}}),
        ('[{"a": 1', [{"a": 1}]),
        ('{"a": [1, "x\ny"', {"a": [1, "x\ny"]}),
        ('  {"a": 1} and more', {"a": 1}),
    ],
)
def test_raw_line_breaks_and_missing_brackets_are_repaired(text: str, value: Any) -> None:
    assert read_json(text, 0, (), Offer())[0] == value


@pytest.mark.parametrize("text", ['{"a": "x', '{"a": tr', '{"a": 1,', '{"a":', "{'a': 1}", "oh", "", '{"a": 1]'])
def test_what_would_have_to_be_guessed_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"Expecting|Unterminated|Invalid|delimiter"):
        read_json(text, 0, (), Offer())


def test_nothing_is_added_to_an_answer_that_was_cut() -> None:
    assert read_json('{"a": 1', 0, (), Offer())[0] == {"a": 1}
    with pytest.raises(ValueError, match="Expecting"):
        read_json('{"a": 1', 0, (), Offer(truncated=True))


def test_a_value_ends_before_the_end_of_its_call() -> None:
    text = '<x>{"a": {"b": 1}</x> {"c": 2}'
    assert read_json(text, 3, ("</x>",), Offer()) == ({"a": {"b": 1}}, text.index("</x>"))


@pytest.mark.parametrize("written", [None, "", "  ", "null", {}, "{}"])
def test_no_arguments_are_written_in_many_ways(written: Any) -> None:
    assert arguments_of(written, "f") == {}
    assert call_of({"name": "f", "arguments": written}) == ToolCall("f", {})


@pytest.mark.parametrize("written", [[1], 3, "[1]", "3", '"x"'])
def test_other_arguments_are_no_object(written: Any) -> None:
    with pytest.raises(ValueError, match="arguments of f are not an object"):
        arguments_of(written, "f")


def test_a_call_may_be_nested_as_in_openais_format() -> None:
    nested = {"type": "function", "id": "abc", "function": {"name": "f", "arguments": '{"a": "x\ny"}'}}
    assert call_of(nested) == ToolCall("f", {"a": "x\ny"}, "abc")
    assert call_of({"name": "f", "parameters": {"a": 1}}) == ToolCall("f", {"a": 1})
