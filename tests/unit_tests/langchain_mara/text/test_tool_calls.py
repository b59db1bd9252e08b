"""Tool calls as text: templates' formats, forced beginnings, and calls out of answers cut anywhere."""

import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from langchain_mara.exceptions import PromptError
from langchain_mara.text.detokenizer import IncrementalDetokenizer
from langchain_mara.text.tool_calls import (
    MARKERS,
    InvalidToolCall,
    ToolCall,
    ToolCallParser,
    ToolFormat,
    detect_tool_format,
    forced_opening,
)

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
QWEN = (
    "{%- if tools %}{{- '# Tools\\n<tools>' }}{%- for tool in tools %}{{- tool | tojson }}{%- endfor %}"
    '{{- \'</tools>\\n<tool_call>\\n{"name": <function-name>, "arguments": <args-json-object>}\\n</tool_call>\' }}'
    "{%- endif %}" + CHATML
)
LLAMA = (
    "{%- if custom_tools is defined %}{%- set tools = custom_tools %}{%- endif %}"
    "{%- if not tools is defined %}{%- set tools = none %}{%- endif %}"
    "{%- if tools is not none %}{{- 'Environment: ipython' }}{%- for t in tools %}{{- t | tojson }}{%- endfor %}"
    '{{- \'{"name": function name, "parameters": dictionary}\' }}{%- endif %}' + CHATML
)
MISTRAL = (
    "{%- if tools is not none %}{{- '[AVAILABLE_TOOLS] [' }}{%- for tool in tools %}{{- tool | tojson }}{%- endfor %}"
    "{{- '[/AVAILABLE_TOOLS]' }}{%- endif %}{%- for m in messages %}{%- if m.tool_calls is defined %}"
    "{{- '[TOOL_CALLS] [' }}{%- endif %}{%- endfor %}"
)
UNKNOWN = "{%- for tool in tools %}{{ tool.name }}{%- endfor %}" + CHATML

A = ToolCall("get_weather", {"city": "Paris"})
B = ToolCall("note", {"text": "a } ] </tool_call> \\ ü", "deep": {"list": [1, {"x": None}]}})


def block(call: ToolCall) -> str:
    return "<tool_call>\n" + json.dumps({"name": call.name, "arguments": call.arguments}) + "\n</tool_call>"


def bare(call: ToolCall) -> str:
    return json.dumps({"name": call.name, "parameters": call.arguments}, ensure_ascii=False)


ANSWERS: list[tuple[ToolFormat, str, str, list[ToolCall]]] = [
    ("hermes", block(A), "", [A]),
    ("hermes", f"Let me look.\n{block(A)}\n{block(B)}", "Let me look.", [A, B]),
    ("hermes", block(B).removesuffix("\n</tool_call>"), "", [B]),
    ("hermes", '<tool_call>{"name": "f"}</tool_call>', "", [ToolCall("f", {})]),
    ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [ToolCall("f", {"a": 1})]),
    ("llama", bare(A), "", [A]),
    ("llama", f"{bare(A)}; {bare(B)}", "", [A, B]),
    ("llama", f"<|python_tag|>{bare(B)}", "", [B]),
    ("llama", f"<|python_tag|>{bare(A)}; {bare(B)}", "", [A, B]),
    ("llama", '<function=get_weather>{"city": "Paris"}</function>', "", [A]),
    ("mistral", f"[TOOL_CALLS] [{bare(A)}, {bare(B)}]", "", [A, B]),
    ("mistral", f"[{bare(A)}]", "", [A]),
    (
        "mistral",
        '[TOOL_CALLS][{"name": "f", "arguments": {}, "id": "abcdefghi"}]',
        "",
        [ToolCall("f", {}, "abcdefghi")],
    ),
    ("mistral", 'Well. [TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}', "Well.", [A]),
    (
        "mistral",
        '[TOOL_CALLS]f[CALL_ID]abc[ARGS]{}[TOOL_CALLS]get_weather{"city": "Paris"}',
        "",
        [ToolCall("f", {}, "abc"), A],
    ),
]
CONTENTS: list[tuple[ToolFormat, str]] = [
    ("hermes", "a < b <tool and <tool_cal"),
    ("hermes", '{"name": "f", "arguments": {}}'),
    ("hermes", "  spaces and\nlines [TOOL_CALL]\n\n"),
    ("llama", "{not json}"),
    ("llama", '{"title": "a dish"}'),
    ("llama", f"Say {bare(A)}"),
    ("mistral", "[1] is a footnote"),
    ("mistral", "[TOOL_CALL"),
]


def parse(
    tool_format: ToolFormat, chunks: list[str], opening: str = ""
) -> tuple[str, list[ToolCall], list[InvalidToolCall]]:
    parser = ToolCallParser(tool_format, opening)
    content = "".join(parser.push(chunk) for chunk in chunks)
    rest, calls, invalid = parser.finish()
    return content + rest, calls, invalid


def cut(text: str, places: list[int]) -> list[str]:
    borders = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[a:b] for a, b in pairwise(borders)]


@pytest.mark.parametrize(("tool_format", "text", "content", "calls"), ANSWERS)
@given(places=st.lists(st.integers(0, 400), max_size=30))
def test_calls_and_content_are_the_same_however_the_answer_is_cut(
    tool_format: ToolFormat, text: str, content: str, calls: list[ToolCall], places: list[int]
) -> None:
    assert parse(tool_format, cut(text, places)) == (content, calls, [])


@pytest.mark.parametrize(("tool_format", "text", "content", "_calls"), ANSWERS)
def test_nothing_of_a_call_is_ever_released(
    tool_format: ToolFormat, text: str, content: str, _calls: list[ToolCall]
) -> None:
    parser = ToolCallParser(tool_format)
    released = ""
    for letter in text:
        released += parser.push(letter)
        assert content.startswith(released)


@pytest.mark.parametrize(("tool_format", "text"), CONTENTS)
@given(places=st.lists(st.integers(0, 100), max_size=20))
def test_what_only_looks_like_a_call_is_content(tool_format: ToolFormat, text: str, places: list[int]) -> None:
    assert parse(tool_format, cut(text, places)) == (text, [], [])


@given(text=st.text(alphabet="ab<[{}]>_ \n", max_size=40))
@pytest.mark.parametrize("tool_format", ["hermes", "llama", "mistral"])
def test_text_without_markers_is_content_to_the_letter(tool_format: ToolFormat, text: str) -> None:
    assert parse(tool_format, list(text)) == (text, [], [])


def test_content_is_released_as_it_comes() -> None:
    parser = ToolCallParser("hermes")
    assert [parser.push(chunk) for chunk in ["It ", "is", " <", "b>", " so"]] == ["It", " is", "", " <b>", " so"]


@pytest.mark.parametrize(
    ("tool_format", "text", "error", "name"),
    [
        ("hermes", '<tool_call>\n{"name": "f", "arguments": {"a": \n</tool_call>', "Expecting value", "f"),
        ("hermes", "<tool_call>oh</tool_call>", "Expecting value", None),
        ("hermes", '<tool_call>{"arguments": {}}</tool_call>', 'no object with a "name"', None),
        ("hermes", '<tool_call>{"name": "f", "arguments": [1]}</tool_call>', "arguments of f are not an object", "f"),
        ("llama", '<|python_tag|>brave_search.call(query="x")', "Expecting value", None),
        ("mistral", '[TOOL_CALLS][{"name": "f", "argu', "Unterminated string", "f"),
    ],
)
def test_announced_calls_that_are_none_are_invalid(
    tool_format: ToolFormat, text: str, error: str, name: str | None
) -> None:
    content, calls, invalid = parse(tool_format, [text])
    assert (content, calls) == ("", [])
    assert error in invalid[0].error
    assert invalid[0].name == name
    assert text.strip().startswith(invalid[0].text[:10])


def test_a_broken_call_does_not_spoil_the_next() -> None:
    content, calls, invalid = parse("hermes", ["<tool_call>oh</tool_call>", block(A), " And so on."])
    assert (content, calls, len(invalid)) == ("And so on.", [A], 1)


@pytest.mark.parametrize("tool_format", ["hermes", "llama", "mistral"])
def test_a_forced_call_is_read_with_its_opening(tool_format: ToolFormat) -> None:
    end = {"hermes": "\n</tool_call>", "llama": "", "mistral": "]"}[tool_format]
    named_opening = forced_opening(tool_format, [A.name])
    assert parse(tool_format, [json.dumps(A.arguments) + "}" + end], named_opening) == ("", [A], [])
    key = "parameters" if tool_format == "llama" else "arguments"
    open_opening = forced_opening(tool_format, ["note", A.name])
    rest = f'{A.name}", "{key}": {json.dumps(A.arguments)}}}{end}'
    assert parse(tool_format, [rest], open_opening) == ("", [A], [])
    assert named_opening.startswith(open_opening)


@pytest.mark.parametrize(
    ("template", "tool_format"),
    [
        (QWEN, "hermes"),
        (LLAMA, "llama"),
        (MISTRAL, "mistral"),
        ({"default": CHATML, "tool_use": QWEN}, "hermes"),
        ("{% generation %}{% endgeneration %}" + QWEN, "hermes"),
    ],
)
def test_format_is_read_off_the_template(
    make_tokenizer: Callable[[], PreTrainedTokenizerFast], template: Any, tool_format: ToolFormat
) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    assert detect_tool_format(tokenizer) == tool_format


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "takes no tools. Use an instruct model"),
        (CHATML, "takes no tools. Use an instruct model"),
        (CHATML + "{# tools are not for us #}", "takes no tools"),
        (UNKNOWN, "in a format this library does not read"),
    ],
)
def test_templates_without_tools_are_refused(
    make_tokenizer: Callable[[], PreTrainedTokenizerFast], template: str | None, message: str
) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(PromptError, match=message):
        detect_tool_format(tokenizer)


def test_markers_that_are_special_tokens_stay_in_the_text(
    make_tokenizer: Callable[[], PreTrainedTokenizerFast],
) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["[TOOL_CALLS]"]})
    ids = tokenizer("[TOOL_CALLS]hi</s>", add_special_tokens=False).input_ids
    detokenizers = [IncrementalDetokenizer(tokenizer, (), markers) for markers in ((), MARKERS)]
    texts = ["".join(detokenizer.push(token) for token in ids) + detokenizer.finish() for detokenizer in detokenizers]
    assert texts == ["hi", "[TOOL_CALLS]hi"]
