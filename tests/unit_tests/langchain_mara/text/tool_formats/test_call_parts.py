"""Calls told in parts: which formats can, where it begins, and what happens to a call that turns out to be none."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.utils.json import parse_partial_json
from tool_families import TOOLS

from langchain_mara.text.tool_formats.call_parts import CallPart, CallStream, GrowingObject, joined
from langchain_mara.text.tool_formats.calls import InvalidToolCall, ToolCall
from langchain_mara.text.tool_formats.reading import ToolCallParser
from langchain_mara.text.tool_formats.table import FORMATS

A = ToolCall("get_weather", {"city": "Paris"})
B = ToolCall("note", {"text": 'a } ] </tool_call> \\ "ü"', "deep": {"list": [1, {"x": None}], "no": -1.5e3}})
IN_PARTS = {
    "deepseek", "deepseek-v3.1", "granite", "harmony", "hermes", "mistral-v3", "mistral-v11", "phi-4", "prompt",
}  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from([0.5, -1.5e300]) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def told(name: str, text: str, opening: str = "", **options: Any) -> list[list[CallPart]]:
    """The parts that each letter of an answer brings; the last ones come at its end."""
    parser = ToolCallParser(FORMATS[name], TOOLS, opening, single=options.pop("single", False))
    steps = []
    for letter in text:
        parser.push(letter)
        steps.append(parser.parts())
    return [*steps, list(parser.finish(**options).parts)]


def arguments(parts: list[CallPart]) -> list[Any]:
    return [(part.name, json.loads(part.arguments)) for part in joined(parts) if not part.invalid]


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_calls_come_in_parts_where_their_arguments_are_json(name: str) -> None:
    steps = told(name, FORMATS[name].write([A, B]))
    parts = [part for step in steps for part in step]
    assert arguments(parts) == [(call.name, call.arguments) for call in (A, B)]
    early = [part for step in steps[:-1] for part in step]
    assert (len(early) > 60) == (name in IN_PARTS)
    assert early == [] or early[0] == CallPart(0, "{", "get_weather")  # the name comes first
    assert all(len(step) <= 2 for step in steps)


@pytest.mark.parametrize("name", ["llama-json", "mistral-v3"])
def test_a_call_without_a_marker_comes_in_parts_only_where_it_is_forced(name: str) -> None:
    whole = json.dumps({"name": "get_weather", "arguments": {"city": "Paris"}})
    text = whole if name == "llama-json" else f"[{whole}]"
    assert [len(step) for step in told(name, text) if step] == [1]
    opening = FORMATS["llama-json"].forced(["get_weather"])
    assert len([1 for step in told("llama-json", '{"city": "Paris"}}', opening) if step]) > 10


def test_an_id_before_the_arguments_is_told_with_the_name() -> None:
    parts = joined(
        part for step in told("mistral-v11", '[TOOL_CALLS]note[CALL_ID]abc[ARGS]{"count": 3}') for part in step
    )
    assert parts == [CallPart(0, '{"count": 3}', "note", "abc")]


def test_control_characters_are_escaped_and_missing_brackets_added() -> None:
    text = '<tool_call>{"name": "note", "arguments": {"text": "one\ntwo\t", "deep": {"a": [1]}</tool_call>'
    [part] = joined(part for step in told("hermes", text) for part in step)
    assert part.arguments == '{"text": "one\\ntwo\\t", "deep": {"a": [1]}}'


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('{"city": "Par', "Raise max_new_tokens"),
        ('{"city": "Par\\', "Raise max_new_tokens"),
        ('{"city": ["Paris"', "Raise max_new_tokens"),
        ('{"city": ["Paris"}}', "Raise max_new_tokens"),
        ('{"city": tr', "Raise max_new_tokens"),
        ("{", "Raise max_new_tokens"),
    ],
)
def test_a_call_that_was_cut_is_broken_for_all_who_merge_its_parts(text: str, error: str) -> None:
    steps = told("hermes", '<tool_call>\n{"name": "get_weather", "arguments": ' + text, truncated=True)
    parts = [part for step in steps for part in step]
    assert parts[0].invalid is None
    [whole] = joined(parts)
    assert whole.invalid is not None
    assert error in whole.invalid.error
    assert error in whole.arguments
    assert parse_partial_json(whole.arguments) is None  # LangChain guesses nothing


def test_arguments_that_come_twice_are_invalid() -> None:
    text = '<tool_call>{"name": "note", "arguments": {"count": 1}, "arguments": {"count": 2}}</tool_call>'
    parts = joined(part for step in told("hermes", text) for part in step)
    assert [bool(part.invalid) for part in parts] == [True, False]
    assert parts[0].invalid
    assert "are broken" in parts[0].invalid.error


def test_unknown_tools_and_what_follows_them_are_told_at_the_end() -> None:
    text = FORMATS["hermes"].write([A, ToolCall("erase", {"path": "/"}), B])
    steps = told("hermes", text)
    assert {part.number for step in steps[:-1] for part in step} == {0}
    ends = [(part.number, part.name, bool(part.invalid)) for part in steps[-1]]
    assert ends == [(1, "note", False), (2, "erase", True)]


def test_only_the_first_of_several_calls_counts_where_one_may_be_made() -> None:
    steps = told("hermes", FORMATS["hermes"].write([A, B]), single=True)
    parts = [part for step in steps for part in step]
    assert {part.number for part in parts} == {0}
    assert arguments(parts) == [("get_weather", A.arguments)]


def test_a_call_that_the_reading_does_not_confirm_is_invalid() -> None:
    stream = CallStream(FORMATS["hermes"], {"note"})
    begun = stream.follow('<tool_call>{"name": "note", "arguments": {"count": 1}}')
    other = ToolCall("note", {"count": 2})
    parts = joined([*begun, *stream.settle([other], [])])
    assert [(part.name, part.invalid is None) for part in parts] == [("note", False), ("note", True)]
    stream = CallStream(FORMATS["hermes"], {"note"})
    begun = stream.follow('<tool_call>{"name": "note", "arguments": {"count": 1}}')
    fault = InvalidToolCall("text", "reason", "note")
    [part] = joined([*begun, *stream.settle([], [fault])])
    assert part.invalid == fault


@given(
    value=st.dictionaries(st.text(max_size=4), VALUES, max_size=4), cut=st.integers(0, 200), after=st.text(max_size=5)
)
def test_an_object_grows_to_its_end(value: dict[str, Any], cut: int, after: str) -> None:
    text = json.dumps(value, ensure_ascii=False)
    growing = GrowingObject()
    cut %= len(text) + 1
    assert growing.take(text[:cut], 0) == cut
    assert growing.is_over == (cut == len(text))
    if not growing.is_over:
        broken = parse_partial_json(growing.text + growing.breaking) if growing.text else None
        assert broken is None
    assert growing.take(text + after, cut) == len(text)
    assert growing.is_over
    assert json.loads(growing.text) == value
    assert growing.rest(value) == ""
    assert growing.rest({**value, "other": 1}) is None
    assert parse_partial_json(growing.text + growing.breaking) is None
