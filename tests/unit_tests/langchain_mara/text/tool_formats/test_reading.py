"""Tool calls out of answers cut anywhere: offered tools, invalid calls with their reason, the rest as text."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.utils.json import parse_partial_json
from tool_families import TOOLS

from langchain_mara.text.reasoning import ReasoningTags
from langchain_mara.text.tool_formats.call_parts import CallPart, joined
from langchain_mara.text.tool_formats.calls import InvalidToolCall, ToolCall
from langchain_mara.text.tool_formats.reading import Rest, ToolCallParser
from langchain_mara.text.tool_formats.table import FORMATS

F: dict[str, Any] = {"type": "function", "function": {"name": "f", "description": "", "parameters": {}}}
OFFERED = [*TOOLS, F]
A = ToolCall("get_weather", {"city": "Paris"})
B = ToolCall("note", {"text": "a } ] </tool_call> \\ ü", "deep": {"list": [1, {"x": None}]}})


def block(call: ToolCall) -> str:
    return "<tool_call>\n" + json.dumps({"name": call.name, "arguments": call.arguments}) + "\n</tool_call>"


def bare(call: ToolCall) -> str:
    return json.dumps({"name": call.name, "parameters": call.arguments}, ensure_ascii=False)


CODER = """Hm.
<tool_call>
<function=note>
<parameter=text>
line
  two
</parameter>
<parameter=count>
3
</parameter>
<parameter=sure>
True
</parameter>
</function>
</tool_call>"""
GLM = """<tool_call>note
<arg_key>text</arg_key>
<arg_value>5</arg_value>
<arg_key>count</arg_key>
<arg_value>5</arg_value>
</tool_call>
<tool_call>get_weather<arg_key>city</arg_key><arg_value>Paris</arg_value></tool_call><tool_call>f</tool_call>"""
GEMMA = "<start_function_call>call:note{text:<escape>a, b}<escape>,count:3,deep:{k:[1,{x:null}]}}<end_function_call>"
ANSWERS: list[tuple[str, str, str, list[ToolCall]]] = [
    ("hermes", block(A), "", [A]),
    ("hermes", f"Let me look.\n{block(A)}\n{block(B)}", "Let me look.", [A, B]),
    ("hermes", f"First.\n{block(A)}\nThen.\n{block(B)} Last.", "First.\nThen.\nLast.", [A, B]),
    ("hermes", block(B).removesuffix("\n</tool_call>"), "", [B]),
    ("hermes", '<tool_call>{"name": "f"}</tool_call>', "", [ToolCall("f", {})]),
    ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [ToolCall("f", {"a": 1})]),
    ("granite", f"<|tool_call|>[{bare(A)}, {bare(B)}]", "", [A, B]),
    ("granite", f"<tool_call>[{bare(A)}]</tool_call>", "", [A]),
    ("phi-4", f"Well.functools[{bare(A)}, {bare(B)}]", "Well.", [A, B]),
    ("phi-4", f"<|tool_call|>[{bare(A)}]<|/tool_call|>", "", [A]),
    ("llama-json", bare(A), "", [A]),
    ("llama-json", f"{bare(A)}; {bare(B)}", "", [A, B]),
    ("llama-json", f"<|python_tag|>{bare(B)}", "", [B]),
    ("llama-json", f"<|python_tag|>{bare(A)}; {bare(B)}", "", [A, B]),
    ("llama-json", '<function=get_weather>{"city": "Paris"}</function>', "", [A]),
    ("llama-pythonic", "[get_weather(city='Paris'), f(), f(a=-1, b=[true, {'c': None}])]", "",
     [A, ToolCall("f", {}), ToolCall("f", {"a": -1, "b": [True, {"c": None}]})]),
    ("llama-pythonic", '<|python_start|>[get_weather(city="Paris")]<|python_end|>', "", [A]),
    ("llama-pythonic", 'note(count="3", sure="true", text="7")', 'note(count="3", sure="true", text="7")', []),
    ("llama-pythonic", '[note(count="3", sure="true", text="7")]', "",
     [ToolCall("note", {"count": 3, "sure": True, "text": "7"})]),
    ("mistral-v3", f"[TOOL_CALLS] [{bare(A)}, {bare(B)}]", "", [A, B]),
    ("mistral-v3", f"[{bare(A)}]", "", [A]),
    ("mistral-v3", '[TOOL_CALLS][{"name": "f", "arguments": {}, "id": "abcdefghi"}]', "",
     [ToolCall("f", {}, "abcdefghi")]),
    ("mistral-v11", 'Well. [TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}', "Well.", [A]),
    ("mistral-v11", '[TOOL_CALLS]f[CALL_ID]abc[ARGS]{}[TOOL_CALLS]get_weather{"city": "Paris"}', "",
     [ToolCall("f", {}, "abc"), A]),
    ("qwen3-coder", CODER, "Hm.", [ToolCall("note", {"text": "line\n  two", "count": 3, "sure": True})]),
    ("qwen3-coder", "<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>", "", [A]),
    ("qwen3-coder", "<function=note><parameter=text>\n</parameter> is a tag\n</parameter>\n</function></tool_call>", "",
     [ToolCall("note", {"text": "</parameter> is a tag"})]),
    ("glm", GLM, "", [ToolCall("note", {"text": "5", "count": 5}), A, ToolCall("f", {})]),
    ("gemma", GEMMA, "", [ToolCall("note", {"text": "a, b}", "count": 3, "deep": {"k": [1, {"x": None}]}})]),
    ("gemma-4", 'So: <|tool_call>call:get_weather{city:<|"|>Paris<|"|>}<tool_call|>', "So:", [A]),
    ("harmony", '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city": "Paris"}<|call|>',
     "", [A]),
]  # fmt: skip
CONTENTS: list[tuple[str, str]] = [
    ("hermes", "a < b <tool and <tool_cal"),
    ("hermes", '{"name": "f", "arguments": {}}'),
    ("hermes", "  spaces and\nlines [TOOL_CALL]\n\n"),
    ("llama-json", "{not json}"),
    ("llama-json", '{"title": "a dish"}'),
    ("llama-json", '{"name": "Bob"}'),
    ("llama-json", '{"name": "Bob", "parameters": {}, "age": 3}'),
    ("llama-json", '{"name": "note", "age": 3}'),
    ("llama-json", f"Say {bare(A)}"),
    ("llama-json", f"{bare(A)} is how it goes"),
    ("llama-pythonic", "[1, 2, 3]"),
    ("llama-pythonic", "[sqrt(2), now()]"),
    ("llama-pythonic", "[see the notes]"),
    ("mistral-v3", "[1] is a footnote"),
    ("mistral-v3", '[{"name": "Ann"}, {"name": "Bob"}]'),
    ("mistral-v3", "[TOOL_CALL"),
]


def parse(name: str, chunks: list[str], opening: str = "", tools: Any = OFFERED, **finish: bool) -> Rest:
    parser = ToolCallParser(FORMATS[name], tools, opening)
    content, parts = "", list[CallPart]()
    for chunk in chunks:
        content += parser.push(chunk)
        parts += parser.parts()
    rest = parser.finish(**finish)
    check_parts([*parts, *rest.parts], rest)
    return rest._replace(content=content + rest.content, parts=())


def check_parts(parts: list[CallPart], rest: Rest) -> None:
    """Put together as LangChain does it, the parts are the calls; where LangChain guesses, it finds no others."""
    whole = joined(parts)
    assert [part.number for part in whole] == list(range(len(whole)))
    assert [part.invalid for part in whole if part.invalid and part.invalid in rest.invalid] == rest.invalid
    read = [(part.name, parse_partial_json(part.arguments)) for part in whole if not part.invalid]
    assert read == [(call.name, call.arguments) for call in rest.calls]
    for part in whole:
        assert part.invalid is None or not guessed(part.arguments)


def guessed(text: str) -> bool:
    """Whether LangChain makes an object of a text."""
    try:
        return isinstance(parse_partial_json(text), dict)
    except ValueError:
        return False


def cut(text: str, places: list[int]) -> list[str]:
    borders = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[a:b] for a, b in pairwise(borders)]


@pytest.mark.parametrize(("name", "text", "content", "calls"), ANSWERS)
@given(places=st.lists(st.integers(0, 400), max_size=30))
def test_calls_and_content_are_the_same_however_the_answer_is_cut(
    name: str, text: str, content: str, calls: list[ToolCall], places: list[int]
) -> None:
    assert parse(name, cut(text, places)) == (content, calls, [], "", ())


@pytest.mark.parametrize(("name", "text", "content", "_calls"), ANSWERS)
def test_nothing_of_a_call_is_ever_released(name: str, text: str, content: str, _calls: list[ToolCall]) -> None:
    parser = ToolCallParser(FORMATS[name], OFFERED)
    released = ""
    for letter in text:
        released += parser.push(letter)
        assert content.startswith(released)


@pytest.mark.parametrize(("name", "text"), CONTENTS)
@given(places=st.lists(st.integers(0, 100), max_size=20))
def test_what_only_looks_like_a_call_is_content(name: str, text: str, places: list[int]) -> None:
    assert parse(name, cut(text, places)) == (text, [], [], "", ())


@given(text=st.text(alphabet="ab<[{}]>_ \n", max_size=40))
@pytest.mark.parametrize("name", sorted(FORMATS))
def test_text_without_markers_is_content_to_the_letter(name: str, text: str) -> None:
    assert parse(name, list(text)) == (text, [], [], "", ())


@pytest.mark.parametrize(("name", "text"), [answer[:2] for answer in ANSWERS])
def test_without_tools_nothing_is_a_call(name: str, text: str) -> None:
    assert parse(name, list(text), tools=()) == (text, [], [], "", ())


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_a_tool_that_was_not_offered_is_invalid_and_does_not_spoil_the_others(name: str) -> None:
    other = ToolCall("erase", {"path": "/"})
    found = parse(name, [FORMATS[name].write([A, other])])
    assert (found.content, found.calls) == ("", [A])
    error = "erase is none of the tools offered in this call: get_weather, note, f."
    assert found.invalid == [InvalidToolCall('{"path": "/"}', error, "erase")]


def test_content_is_released_as_it_comes() -> None:
    parser = ToolCallParser(FORMATS["hermes"], OFFERED)
    assert [parser.push(chunk) for chunk in ["It ", "is", " <", "b>", " so"]] == ["It", " is", "", " <b>", " so"]


@pytest.mark.parametrize(
    ("name", "text", "error", "tool"),
    [
        ("hermes", '<tool_call>\n{"name": "f", "arguments": {"a": \n</tool_call>', "Expecting value", "f"),
        ("hermes", "<tool_call>oh</tool_call>", "Expecting value", "oh"),
        ("hermes", '<tool_call>{"arguments": {}}</tool_call>', 'no object with a "name"', None),
        ("hermes", '<tool_call>{"name": "f", "arguments": [1]}</tool_call>', "arguments of f are not an object", "f"),
        ("hermes", r'<tool_call>{"name": "f", "arguments": {"a": "\ud83d"}}</tool_call>', "half of a character", "f"),
        ("qwen3-coder", r'<function=f><parameter=a>{"b": "\udc00"}</parameter></function>', "half of a character", "f"),
        ("llama-json", '<|python_tag|>brave_search.call(query="x")', "Expecting value", None),
        ("mistral-v3", '[TOOL_CALLS][{"name": "f", "argu', "Unterminated string", "f"),
        ("qwen3-coder", "<tool_call>\n<function=f>\n<parameter=a>\n1", "do not end with </function>", "f"),
        ("glm", "<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>1", "do not end with </tool_call>", "f"),
        ("gemma", "<start_function_call>call:f{a:<escape>x}", "does not end with <escape>", "f"),
        ("gemma", "<start_function_call>call:f{a}<end_function_call>", "'a' has no value", "f"),
        ("harmony", "<|channel|>commentary to=functions.f <|message|>oh<|call|>", "Expecting value", "f"),
    ],
)  # fmt: skip
def test_announced_calls_that_are_none_are_invalid(name: str, text: str, error: str, tool: str | None) -> None:
    found = parse(name, [text])
    assert (found.content, found.calls) == ("", [])
    assert error in found.invalid[0].error
    assert found.invalid[0].name == tool
    assert found.invalid[0].text in text


def test_a_broken_call_does_not_spoil_the_next() -> None:
    found = parse("hermes", ["<tool_call>oh</tool_call>", block(A), " And so on."])
    assert (found.content, found.calls, len(found.invalid)) == ("And so on.", [A], 1)


@pytest.mark.parametrize("name", sorted(FORMATS))
@given(place=st.integers(0, 400))
def test_a_call_that_the_length_limit_cut_is_never_executed(name: str, place: int) -> None:
    text = FORMATS[name].write([B])
    place %= len(text)
    found = parse(name, [text[:place]], truncated=True)
    assert found.calls in ([], [B])
    if found.calls:  # all that is missing is the end marker
        assert '"' not in text[place:]
    elif place > 45 and name not in ("llama-json", "llama-pythonic"):
        assert "ended at max_new_tokens" in found.invalid[0].error


@pytest.mark.parametrize("name", [name for name, form in FORMATS.items() if form.json_heads and form.openings])
def test_a_call_that_was_cut_has_its_arguments_as_far_as_they_go(name: str) -> None:
    text = FORMATS[name].write([A, B])
    end = text.index('{"list"') + 5
    found = parse(name, [text[:end]], truncated=True)
    if name == "llama-json":  # it has no marker, and may be an answer up to its end
        assert found.invalid[0].text == text[:end]
        return
    names = [call.name for call in found.calls] + [call.name for call in found.invalid]
    assert names == ["get_weather", "note"]
    assert found.invalid[-1].text == text[text.index('{"text"') : end]
    assert {call.error for call in found.invalid} == {
        "The answer ended at max_new_tokens before this tool call did. Raise max_new_tokens."
    }


def test_arguments_of_a_broken_call_are_not_taken_for_those_of_a_valid_one() -> None:
    text = '<tool_call>{"name": "f", "arguments": {"a": 1} oh</tool_call>'
    assert parse("hermes", [text]).invalid[0].text == text


@pytest.mark.parametrize("name", sorted(FORMATS))
@given(missing=st.integers(0, 30))
def test_no_part_of_a_marker_that_the_length_limit_cut_is_content(name: str, missing: int) -> None:
    text = FORMATS[name].write([A])
    found = parse(name, [text[: len(text) - missing]], truncated=True)
    assert found.content == "" or not found.calls + found.invalid


@pytest.mark.parametrize(("name", "text"), [("llama-json", bare(A)[:-4]), ("llama-pythonic", "[get_weather(city='Par")])
def test_a_call_without_marker_that_was_cut_is_invalid(name: str, text: str) -> None:
    found = parse(name, [text], truncated=True)
    assert (found.content, found.calls, found.invalid[0].name) == ("", [], "get_weather")


@pytest.mark.parametrize("names", [["get_weather"], ["note", "get_weather"]])
@pytest.mark.parametrize("name", sorted(FORMATS))
def test_a_forced_call_is_read_with_its_opening(name: str, names: list[str]) -> None:
    whole = FORMATS[name].write([A])
    opening = FORMATS[name].forced(names)
    # Some formats allow blanks, or leave out an id, where the opening has none.
    start = whole.find(A.name) + (len(A.name) if names[1:] == [] else 0)
    tail = whole[whole.find("{", start) :] if len(names) == 1 and name not in SPELLED else whole[start:]
    tail = SPELLED[name](whole) if len(names) == 1 and name in SPELLED else tail
    assert parse(name, [tail], opening) == ("", [A], [], "", ())


SPELLED: dict[str, Any] = {
    "qwen3-coder": lambda whole: whole.partition("<function=get_weather>\n")[2],
    "glm": lambda whole: whole.partition("get_weather\n")[2],
    "llama-pythonic": lambda whole: whole.partition("(")[2],
    "gemma": lambda whole: whole.partition("{")[2],
    "gemma-4": lambda whole: whole.partition("{")[2],
}
"""What follows the opening of a named call where this is more than the arguments as an object."""


def test_reasoning_between_calls_is_not_searched_for_calls() -> None:
    parser = ToolCallParser(FORMATS["hermes"], OFFERED, tags=ReasoningTags())
    content = parser.push(f"{block(A)}<think>or {block(B)}?</think>Done.")
    rest = parser.finish()
    assert (content + rest.content, rest.calls, rest.reasoning) == ("Done.", [A], f"or {block(B)}?")
