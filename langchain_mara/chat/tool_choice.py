"""Which tools a model may or must call."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool

from langchain_mara.exceptions import OptionsError

Tool = dict[str, Any] | type | Callable[..., Any] | BaseTool
_DESCRIBED = {"function", "parameters", "input_schema", "properties"}
"""What of these a tool has that runs where its caller is."""
_OWN_TYPES = (None, "function", "object")
Choice = str | dict[str, Any] | bool | None


def tool_schemas(tools: Sequence[Tool], *, strict: bool | None = None) -> list[dict[str, Any]]:
    """Tools in OpenAI's format.

    Args:
        tools: Functions, pydantic models, LangChain tools, or JSON in a format that LangChain knows.
        strict: Whether the arguments have to match the schema; None leaves it open.

    Raises:
        OptionsError: If a tool runs at a provider, or is none.
    """
    return [_schema(tool, strict=strict) for tool in tools]


def _schema(tool: Tool, *, strict: bool | None) -> dict[str, Any]:
    if isinstance(tool, dict) and tool.get("type") not in _OWN_TYPES and not _DESCRIBED.intersection(tool):
        raise OptionsError(
            f"The tool {tool.get('name') or tool['type']!s} runs on its provider's servers, and a local model has none."
            " Give a function that does the same."
        )
    try:
        schema = convert_to_openai_tool(tool, strict=strict)
        _check_name(schema)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise OptionsError(
            f"Invalid options: tools={tool!r:.80} is not a tool: {error!s:.200} Give a function with type hints and a "
            "docstring, a pydantic model, a LangChain tool, or OpenAI's JSON."
        ) from None
    return schema


def _check_name(schema: Mapping[str, Any]) -> None:
    """Looks for the name of a tool, because LangChain passes some formats on as they are."""
    if not isinstance(schema["function"]["name"], str):
        raise TypeError("Its name is no text.")


def forced_names(tools: Sequence[dict[str, Any]], choice: Choice) -> list[str]:
    """Names of the tools of which the model must call one; empty if it may answer freely.

    Args:
        tools: Tools in OpenAI's format.
        choice: The name of a tool, or OpenAI's or Anthropic's form of it; `any`, `required` or True for any tool;
            `auto`, `none`, False or None for a free choice.

    Raises:
        OptionsError: If no tool has the chosen name, or the choice has no form that is known.
    """
    names = [str(tool["function"]["name"]) for tool in tools]
    name = chosen(choice)
    if name in (None, False, "auto", "none"):
        return []
    if name in (True, "any", "required"):
        return names
    if name not in names:
        raise OptionsError(
            f"tool_choice={name!r} is none of the tools: {', '.join(names) or 'there are none'}. Give one."
        )
    return [str(name)]


def chosen(choice: Choice) -> str | bool | None:
    """A tool choice without the dictionary that some providers put around it.

    Args:
        choice: See `forced_names`.

    Raises:
        OptionsError: If a dictionary has no form that is known.
    """
    if isinstance(choice, str | bool) or choice is None:
        return choice
    if isinstance(choice, dict):
        function = choice.get("function")
        named = function.get("name") if isinstance(function, dict) else choice.get("name")
        kind = choice.get("type")
        if isinstance(named, str):
            return named
        if isinstance(kind, str) and kind in ("auto", "none", "any", "required"):
            return kind
    raise OptionsError(
        f"tool_choice={choice!r:.120} has no form that is known. Give the name of a tool, 'any', 'auto' or 'none', or "
        'OpenAI\'s {"type": "function", "function": {"name": …}}.'
    )
