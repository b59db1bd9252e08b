"""Messages of every writing have one form, and what no template could show is refused with its place."""

from typing import Any

import pytest
from langchain_mara_training.data.messages import with_plain_messages, without_nulls

from langchain_mara.exceptions import DataError

CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}


def plain(message: dict[str, Any]) -> Any:
    row = without_nulls({"prompt": [message]})
    return with_plain_messages(row, ("prompt",), "rows, row 3")["prompt"][0]


@pytest.mark.parametrize(
    "content", ["ab", ["a", "b"], [{"type": "text", "text": "a"}, {"text": "b"}], ["a", {"text": "b"}]]
)
def test_parts_are_one_text(content: Any) -> None:
    assert plain({"role": "user", "content": content}) == {"role": "user", "content": "ab"}


@pytest.mark.parametrize(
    "call",
    [CALL, CALL["function"], {"name": "f", "arguments": '{"a": 1}'},
     {"function": {"name": "f", "arguments": {"a": 1, "b": None}, "c": None}, "id": None}],
)  # fmt: skip
@pytest.mark.parametrize("content", [{"content": None}, {}, {"content": ""}])
def test_tool_calls_have_one_form(call: Any, content: dict[str, Any]) -> None:
    found = plain({"role": "assistant", **content, "tool_calls": [call], "name": None})
    assert found == {"role": "assistant", "content": "", "tool_calls": [CALL]}


def test_nulls_outside_messages_are_absent_columns() -> None:
    assert without_nulls({"prompt": "a", "weight": None, "other": {"kept": None}}) == {
        "prompt": "a", "other": {"kept": None},
    }  # fmt: skip
    assert without_nulls({"prompt": [{"role": "user", "content": "a", "tool_calls": []}]})["prompt"][0] == {
        "role": "user", "content": "a",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"role": "user", "content": None}, r"message 0 \(user\): content is null, and there are no tool calls"),
        ({"role": "assistant", "content": None, "tool_calls": []}, "content is null"),
        ({"role": "user", "content": [{"type": "image", "image": "x"}]}, "parts of the type image; only text is read"),
        ({"role": "user", "content": [3]}, "only text is read"),
        ({"role": "user", "content": 3}, r"content is 3 \(int\). Give a text"),
        ({"role": "assistant", "content": "", "tool_calls": "f()"}, "tool_calls is str. Give a list"),
        ({"role": "assistant", "content": "", "tool_calls": ["f()"]}, "is not a tool call. Write"),
        ({"role": "user", "tool_calls": [{"name": "f", "arguments": "a=1"}]}, "arguments of f are 'a=1'"),
    ],
)  # fmt: skip
def test_refusals(message: dict[str, Any], text: str) -> None:
    with pytest.raises(DataError, match=f"rows, row 3, prompt, .*{text}"):
        plain(message)


@pytest.mark.parametrize("tools", ["no list", {"name": "f"}, ["f"], 3])
def test_tools_that_are_refused(tools: Any) -> None:
    with pytest.raises(DataError, match="rows, row 3: tools is .*Give a list of tools"):
        with_plain_messages({"prompt": "a", "tools": tools}, ("prompt",), "rows, row 3")


@pytest.mark.parametrize("prompt", ["ab\ud800", [{"role": "user", "content": "ab\udfff"}]])
def test_half_a_character_is_refused(prompt: Any) -> None:
    with pytest.raises(DataError, match=r"row 3, prompt.*: character 2 is U\+D(800|FFF), which is half of one"):
        with_plain_messages({"prompt": prompt}, ("prompt",), "row 3")


@pytest.mark.parametrize("role", [3, ["user"], "robot", "User", ""])
def test_a_role_that_no_template_knows_is_refused(role: Any) -> None:
    with pytest.raises(DataError, match=r"Row 2, prompt, message 0: role is .*Give user, assistant"):
        with_plain_messages({"prompt": [{"role": role, "content": "Hi."}]}, ("prompt",), "Row 2")
