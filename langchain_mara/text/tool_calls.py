"""Tool calls as text: detects the format of a chat template, forces a call, and parses calls from a growing answer."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jinja2
import jinja2.meta
from transformers import PreTrainedTokenizerBase

from langchain_mara.exceptions import PromptError
from langchain_mara.text.detokenizer import overlap

ToolFormat = Literal["hermes", "llama", "mistral"]
"""Format in which a model writes tool calls."""

MARKERS = ("<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]")
"""Text that belongs to tool calls and is a special token of some models."""

_OPENINGS = ("<tool_call>", "<|python_tag|>", "[TOOL_CALLS]", "<function=")
_BARE = {"hermes": "", "llama": "{", "mistral": "["}
_FORCED = {
    "hermes": ('<tool_call>\n{"name": ', ', "arguments": '),
    "llama": ('{"name": ', ', "parameters": '),
    "mistral": ('[TOOL_CALLS][{"name": ', ', "arguments": '),
}
_NAMED = re.compile(r"\s*(?P<name>[\w.-]+)\s*(?:\[CALL_ID\](?P<id>\w+))?\s*(?:\[ARGS\])?\s*(?=\{)")
_FUNCTION = re.compile(r"<function=(?P<name>[\w.-]+)>\s*(?=\{)")


@dataclass(frozen=True)
class ToolCall:
    """A tool call that the model requests.

    Attributes:
        name: Name of the tool.
        arguments: Arguments as the model wrote them, not checked against the tool's schema.
        id: Id that the model gave the call, or None.
    """

    name: str
    arguments: dict[str, Any]
    id: str | None = None


@dataclass(frozen=True)
class InvalidToolCall:
    """Text that begins like a tool call but is not a valid one.

    Attributes:
        text: What the model wrote.
        error: What is wrong with it.
        name: Name of the tool, or None if it cannot be read.
    """

    text: str
    error: str
    name: str | None = None


def detect_tool_format(tokenizer: PreTrainedTokenizerBase) -> ToolFormat:
    """Detects the format in which a model's chat template writes tool calls.

    Raises:
        PromptError: If there is no template, if it takes no tools, or if its format is unknown.
    """
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("tool_use") or template.get("default")
    if not template or not _takes_tools(template):
        raise PromptError(
            "The model's chat template takes no tools. Use an instruct model that was trained to call tools "
            "(Qwen 2.5 and 3, Hermes, Llama 3.1 and later, Mistral v0.3 and later)."
        )
    if "<tool_call>" in template:
        return "hermes"
    if "[TOOL_CALLS]" in template:
        return "mistral"
    if "python_tag" in template or "ipython" in template:
        return "llama"
    raise PromptError(
        "The model's chat template takes tools, but in a format this library does not read. Use a model with the "
        "format of Hermes and Qwen (<tool_call>), Llama 3.1 (<|python_tag|>) or Mistral ([TOOL_CALLS])."
    )


def _takes_tools(template: str) -> bool:
    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=True)
    try:
        return "tools" in jinja2.meta.find_undeclared_variables(environment.parse(template))
    except jinja2.TemplateError:  # a tag that only transformers knows, such as `generation`
        return re.search(r"\btools\b", template) is not None


def forced_opening(tool_format: ToolFormat, names: Sequence[str]) -> str:
    """Beginning of an answer that can only continue as a call of one of the tools.

    Args:
        tool_format: Format of the chat template.
        names: Names of the tools. A single name is written out.

    Raises:
        PromptError: If a name that is to be written out holds more than letters, digits, `_`, `.` and `-`.
    """
    if len(names) == 1 and not re.fullmatch(r"[\w.-]+", names[0]):
        raise PromptError(f"The tool name {names[0]!r:.80} cannot be forced. Use letters, digits, _, . and - only.")
    before, after = _FORCED[tool_format]
    return before + json.dumps(names[0]) + after if len(names) == 1 else before + '"'


def call_openings(tool_format: ToolFormat | None, tools: Sequence[dict[str, Any]]) -> list[str]:
    """Beginnings of calls, one for each tool.

    Args:
        tool_format: Format of the chat template; None if there are no tools.
        tools: Tools in OpenAI's format.

    Raises:
        PromptError: If the name of a tool cannot be written out.
    """
    return [forced_opening(tool_format, [str(tool["function"]["name"])]) for tool in tools if tool_format]


class ToolCallParser:
    """Separates tool calls from the content of an answer while it grows.

    Args:
        tool_format: Format of the chat template. Markers of the other formats are read as well, but calls without a
            marker only if this format has them.
        opening: Beginning that was forced on the answer.
    """

    def __init__(self, tool_format: ToolFormat, opening: str = "") -> None:
        self._tool_format = tool_format
        self._started = False
        self._calling = False
        self._held = ""
        self.push(opening)

    def push(self, text: str) -> str:
        """Takes text of the answer and returns what is certainly content."""
        self._held += text
        if self._calling or self._may_be_bare():
            return ""
        starts = [start for start in map(self._held.find, _OPENINGS) if start >= 0]
        if starts:
            self._calling = True
            end = len(self._held[: min(starts)].rstrip())
        else:
            held_length = max(overlap(self._held, opening) for opening in _OPENINGS)
            end = len(self._held[: len(self._held) - held_length].rstrip())
        released, self._held = self._held[:end], self._held[end:]
        self._started = self._started or bool(released)
        return released

    def finish(self) -> tuple[str, list[ToolCall], list[InvalidToolCall]]:
        """Returns the rest of the content, the calls, and the invalid calls. Call it at the end of the answer."""
        text, self._held = self._held, ""
        if self._calling:
            return _marked_calls(text)
        calls = _bare_calls(text) if self._may_be_bare(text) else []
        return ("" if calls else text), calls, []

    def _may_be_bare(self, text: str | None = None) -> bool:
        """Whether the answer begins like a call without a marker."""
        beginning = (self._held if text is None else text).lstrip()
        bracket = _BARE[self._tool_format]
        # "[TOOL_CALLS]" begins with a bracket, too, but is a marker.
        marked = beginning.startswith(_OPENINGS)
        return not self._started and bool(bracket) and beginning.startswith(bracket) and not marked


def _bare_calls(text: str) -> list[ToolCall]:
    """Calls without markers that make up the whole text; none if any part of it is not a call."""
    calls: list[ToolCall] = []
    rest = text.strip()
    while rest:
        try:
            value, end = json.JSONDecoder().raw_decode(rest)
            calls += [_call(item) for item in (value if isinstance(value, list) else [value])]
        except (ValueError, RecursionError):
            return []
        rest = rest[end:].lstrip().removeprefix(";").lstrip()
    return calls


def _marked_calls(text: str) -> tuple[str, list[ToolCall], list[InvalidToolCall]]:
    content: list[str] = []
    calls: list[ToolCall] = []
    invalid: list[InvalidToolCall] = []
    while text.strip():
        marker = next((opening for opening in _OPENINGS if text.lstrip().startswith(opening)), None)
        if marker is None:
            stop = min((start for start in map(text.find, _OPENINGS) if start >= 0), default=len(text))
            content.append(text[:stop].strip())
            text = text[stop:]
            continue
        body = text.lstrip().removeprefix("" if marker == "<function=" else marker)
        try:
            next_calls, text = _read_calls(body)
            calls += next_calls
        except (ValueError, RecursionError) as error:
            # A broken call ends at the next marker; there is no other way to find its end.
            stop = min((start for start in map(body[1:].find, _OPENINGS) if start >= 0), default=len(body)) + 1
            name = re.search(r'"name"\s*:\s*"([^"]*)"', body[:stop])
            broken = (marker + body[:stop]).strip()
            invalid.append(InvalidToolCall(broken, f"This is not a tool call: {error}", name[1] if name else None))
            text = body[stop:]
    return "\n".join(filter(None, content)), calls, invalid


def _read_calls(body: str) -> tuple[list[ToolCall], str]:
    """Calls directly after a marker, and the text after them."""
    named = _FUNCTION.match(body) or _NAMED.match(body)
    if named:
        arguments, end = json.JSONDecoder().raw_decode(body, named.end())
        calls = [_call({"name": named["name"], "arguments": arguments, "id": named.groupdict().get("id")})]
    else:
        start = len(body) - len(body.lstrip())
        value, end = json.JSONDecoder().raw_decode(body, start)
        calls = [_call(item) for item in (value if isinstance(value, list) else [value])]
    rest = body[end:].lstrip()
    for closing in ("</tool_call>", "</function>", ";"):
        rest = rest.removeprefix(closing)
    if rest.lstrip().startswith("{"):
        more, rest = _read_calls(rest)
        calls += more
    return calls, rest


def _call(value: Any) -> ToolCall:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise ValueError('there is no object with a "name".')  # noqa: TRY004 - bad text is a ValueError, like bad JSON
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    if not isinstance(arguments, dict):
        raise ValueError(f"the arguments of {value['name']} are not an object.")  # noqa: TRY004
    identity = value.get("id")
    return ToolCall(value["name"], arguments, identity if isinstance(identity, str) else None)
