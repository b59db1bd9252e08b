"""Tool calls as text: which format a chat template speaks, how a call is forced, and calls out of a growing answer."""

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

MARKERS = ("<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]")
"""Special tokens, in one model or another, that belong to the text of a tool call."""

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
    """A call the model wants made.

    Attributes:
        name: The tool's name.
        arguments: As the model wrote them; not checked against the tool's schema.
        id: The model's own name for the call, if it gave one.
    """

    name: str
    arguments: dict[str, Any]
    id: str | None = None


@dataclass(frozen=True)
class InvalidToolCall:
    """Text that was announced as a tool call and is none.

    Attributes:
        text: What the model wrote.
        error: What is wrong with it.
        name: The tool's name, as far as it can be read.
    """

    text: str
    error: str
    name: str | None = None


def tool_format(tokenizer: PreTrainedTokenizerBase) -> ToolFormat:
    """The format in which the model's chat template has tools called.

    Raises:
        PromptError: If there is no template, it takes no tools, or its format is none of those known.
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
        "The model's chat template takes tools, but in a format this library does not read; it reads those of "
        "Hermes and Qwen (<tool_call>), Llama 3.1 (<|python_tag|>) and Mistral ([TOOL_CALLS])."
    )


def _takes_tools(template: str) -> bool:
    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=True)
    try:
        return "tools" in jinja2.meta.find_undeclared_variables(environment.parse(template))
    except jinja2.TemplateError:  # a tag of transformers' own, such as generation
        return re.search(r"\btools\b", template) is not None


def forced_opening(form: ToolFormat, names: Sequence[str]) -> str:
    """Beginning of an answer that can only be a call of one of the tools.

    Args:
        form: Format of the chat template.
        names: Of the tools; a single one is written out.
    """
    before, after = _FORCED[form]
    return before + json.dumps(names[0]) + after if len(names) == 1 else before + '"'


class ToolCallParser:
    """Takes the calls out of an answer while it grows; what it releases is content and nothing else.

    Args:
        form: Format of the chat template. Markers of the other formats are read as well, calls without
            any marker only where the format has them.
        opening: What the answer was made to begin with.
    """

    def __init__(self, form: ToolFormat, opening: str = "") -> None:
        self._form = form
        self._started = False
        self._calling = False
        self._held = ""
        self.push(opening)

    def push(self, text: str) -> str:
        """Takes text of the answer and returns what of it is certainly content."""
        self._held += text
        if self._calling or self._may_be_bare():
            return ""
        places = [place for place in map(self._held.find, _OPENINGS) if place >= 0]
        if places:
            self._calling = True
            end = len(self._held[: min(places)].rstrip())
        else:
            kept = max(overlap(self._held, opening) for opening in _OPENINGS)
            end = len(self._held[: len(self._held) - kept].rstrip())
        released, self._held = self._held[:end], self._held[end:]
        self._started = self._started or bool(released)
        return released

    def finish(self) -> tuple[str, list[ToolCall], list[InvalidToolCall]]:
        """Returns the rest of the content, the calls, and what was announced as a call and is none."""
        text, self._held = self._held, ""
        if self._calling:
            return _marked_calls(text)
        calls = _bare_calls(text) if self._may_be_bare(text) else []
        return ("" if calls else text), calls, []

    def _may_be_bare(self, text: str | None = None) -> bool:
        """Whether the answer begins as a call without a marker does."""
        beginning = (self._held if text is None else text).lstrip()
        sign = _BARE[self._form]
        # Of "[TOOL_CALLS]" the marker decides, not the bracket.
        marked = beginning.startswith(_OPENINGS)
        return not self._started and bool(sign) and beginning.startswith(sign) and not marked


def _bare_calls(text: str) -> list[ToolCall]:
    """Calls that are the whole text; none where any part of it is something else."""
    calls: list[ToolCall] = []
    rest = text.strip()
    while rest:
        try:
            value, end = json.JSONDecoder().raw_decode(rest)
            calls += [_call(one) for one in (value if isinstance(value, list) else [value])]
        except ValueError:
            return []
        rest = rest[end:].lstrip().removeprefix(";").lstrip()
    return calls


def _marked_calls(text: str) -> tuple[str, list[ToolCall], list[InvalidToolCall]]:
    content: list[str] = []
    calls: list[ToolCall] = []
    invalid: list[InvalidToolCall] = []
    while text.strip():
        marker = next((one for one in _OPENINGS if text.lstrip().startswith(one)), None)
        if marker is None:
            stop = min((place for place in map(text.find, _OPENINGS) if place >= 0), default=len(text))
            content.append(text[:stop].strip())
            text = text[stop:]
            continue
        body = text.lstrip().removeprefix("" if marker == "<function=" else marker)
        try:
            found, text = _read_calls(body)
            calls += found
        except ValueError as error:
            # Nothing behind a broken call can be told from it but by the next marker.
            stop = min((place for place in map(body[1:].find, _OPENINGS) if place >= 0), default=len(body)) + 1
            name = re.search(r'"name"\s*:\s*"([^"]*)"', body[:stop])
            broken = (marker + body[:stop]).strip()
            invalid.append(InvalidToolCall(broken, f"This is not a tool call: {error}", name[1] if name else None))
            text = body[stop:]
    return "\n".join(filter(None, content)), calls, invalid


def _read_calls(body: str) -> tuple[list[ToolCall], str]:
    """Calls right behind a marker, and the text behind them."""
    named = _FUNCTION.match(body) or _NAMED.match(body)
    if named:
        arguments, end = json.JSONDecoder().raw_decode(body, named.end())
        calls = [_call({"name": named["name"], "arguments": arguments, "id": named.groupdict().get("id")})]
    else:
        start = len(body) - len(body.lstrip())
        value, end = json.JSONDecoder().raw_decode(body, start)
        calls = [_call(one) for one in (value if isinstance(value, list) else [value])]
    rest = body[end:].lstrip()
    for closing in ("</tool_call>", "</function>", ";"):
        rest = rest.removeprefix(closing)
    if rest.lstrip().startswith("{"):
        more, rest = _read_calls(rest)
        calls += more
    return calls, rest


def _call(value: Any) -> ToolCall:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise ValueError('there is no object with a "name".')  # noqa: TRY004 - one kind of error for bad text
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    if not isinstance(arguments, dict):
        raise ValueError(f"the arguments of {value['name']} are no object.")  # noqa: TRY004
    identity = value.get("id")
    return ToolCall(value["name"], arguments, identity if isinstance(identity, str) else None)
