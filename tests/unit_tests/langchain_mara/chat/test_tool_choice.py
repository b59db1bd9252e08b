"""Tools and tool choices in the forms that people type, and sentences for those that a local model cannot have."""

import re
from typing import Any

import pytest
from pydantic import BaseModel

from langchain_mara.chat.tool_choice import forced_names, tool_schemas
from langchain_mara.exceptions import OptionsError


class Weather(BaseModel):
    """Weather of a city."""

    city: str


def say(what: str) -> str:
    """Say it."""
    return what


TOOLS = tool_schemas([Weather, say])


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        (None, []),
        (False, []),
        ("auto", []),
        ("none", []),
        ({"type": "auto"}, []),
        ({"type": "none"}, []),
        (True, ["Weather", "say"]),
        ("any", ["Weather", "say"]),
        ("required", ["Weather", "say"]),
        ({"type": "any"}, ["Weather", "say"]),
        ("say", ["say"]),
        ({"type": "function", "function": {"name": "say"}}, ["say"]),
        ({"type": "tool", "name": "say"}, ["say"]),
    ],
    ids=str,
)
def test_a_choice_has_many_forms(choice: Any, names: list[str]) -> None:
    assert forced_names(TOOLS, choice) == names


@pytest.mark.parametrize(
    "choice", [{}, {"function": {}}, {"function": "say"}, {"type": "tool"}, {"type": 7}, 7, ["say"]]
)
def test_a_choice_of_no_form_is_quoted(choice: Any) -> None:
    with pytest.raises(OptionsError, match=rf"tool_choice={re.escape(repr(choice))} has no form that is known"):
        forced_names(TOOLS, choice)


@pytest.mark.parametrize("choice", ["sing", {"type": "function", "function": {"name": "sing"}}])
def test_a_choice_that_is_no_tool_is_named_with_the_tools(choice: Any) -> None:
    with pytest.raises(OptionsError, match="tool_choice='sing' is none of the tools: Weather, say. Give one."):
        forced_names(TOOLS, choice)


@pytest.mark.parametrize(
    ("tool", "name"),
    [
        ({"type": "web_search_20250305", "name": "web_search", "max_uses": 2}, "web_search"),
        ({"type": "web_search_preview"}, "web_search_preview"),
        ({"type": "code_interpreter", "container": {"type": "auto"}}, "code_interpreter"),
        ({"type": "mcp", "server_url": "https://example.com"}, "mcp"),
    ],
)
def test_a_tool_that_runs_at_its_provider_is_refused_by_name(tool: dict[str, Any], name: str) -> None:
    with pytest.raises(
        OptionsError, match=f"The tool {name} runs on its provider's servers, and a local model has none"
    ):
        tool_schemas([tool])


@pytest.mark.parametrize(
    "tool", [{}, {"nothing": 1}, {"type": "function"}, {"type": "object"}, 7, "say", None], ids=str
)
def test_what_is_no_tool_is_quoted(tool: Any) -> None:
    with pytest.raises(OptionsError, match=rf"{re.escape(repr(tool))} is not a tool: "):
        tool_schemas([tool])


def test_strict_tools_are_marked() -> None:
    assert tool_schemas([say], strict=True)[0]["function"]["strict"] is True
    assert "strict" not in TOOLS[0]["function"]
