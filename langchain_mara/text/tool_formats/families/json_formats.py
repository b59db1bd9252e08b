"""Formats whose calls are JSON objects: Hermes and Qwen, Llama 3.x, Granite, Phi-4, Mistral, and the prompted one."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from langchain_mara.text.tool_formats.base import Message, ToolFormat
from langchain_mara.text.tool_formats.calls import Offer, ToolCall, arguments_of, call_of, dumps, read_json

_NAMED = re.compile(r"\s*(?P<name>[\w.-]+)\s*(?:\[CALL_ID\](?P<id>\w+))?\s*(?:\[ARGS\])?\s*(?=\{)")
_FUNCTION = re.compile(r"<function=(?P<name>[\w.-]+)>\s*(?=\{)")
_HEAD = r'\{\s*+"name"\s*+:\s*+"(?P<name>[^"\\]++)"\s*+,\s*+"(?:arguments|parameters)"\s*+:'
_ID_LENGTH = 9  # Mistral's templates require ids of exactly so many letters and digits


@dataclass(frozen=True)
class JsonFormat(ToolFormat):
    """Calls as JSON objects with a name and arguments, one after the other or in a list.

    Attributes:
        before: What stands before a call or a list of calls.
        after_calls: What stands after it.
        key: Name of the arguments.
        listed: Whether the calls of an answer make up one list.
        separator: What stands between calls that are no list.
    """

    before: str = ""
    after_calls: str = ""
    key: str = "arguments"
    listed: bool = False
    separator: str = "\n"

    json_heads: ClassVar[tuple[str, ...]] = (_HEAD,)

    def read(self, text: str, offer: Offer) -> tuple[list[ToolCall], int]:  # noqa: D102
        opening = self.opening_of(text)
        start = 0 if opening.endswith(("[", "=")) else len(opening)
        calls, place = self._values(text, start, offer)
        while more := re.match(r"\s*;?\s*(?=\{)", text[place:]):
            further, place = self._values(text, place + more.end(), offer)
            calls += further
        return calls, place

    def _values(self, text: str, start: int, offer: Offer) -> tuple[list[ToolCall], int]:
        function = _FUNCTION.match(text, start)
        if function:
            value, end = read_json(text, function.end(), (*self.ends, "</function>"), offer)
            return [ToolCall(function["name"], arguments_of(value, function["name"]))], self.after(text, end)
        if text.startswith("functools", start):
            start += len("functools")
        value, end = read_json(text, start, (*self.ends, *self.openings), offer)
        return [call_of(item) for item in (value if isinstance(value, list) else [value])], self.after(text, end)

    def write(self, calls: Sequence[ToolCall]) -> str:  # noqa: D102
        objects = [f'{{"name": {dumps(call.name)}, "{self.key}": {dumps(call.arguments)}}}' for call in calls]
        if self.listed:
            return f"{self.before}[{', '.join(objects)}]{self.after_calls}"
        return self.separator.join(f"{self.before}{item}{self.after_calls}" for item in objects)

    def beginning(self, name: str | None) -> str:  # noqa: D102
        begun = f'{self.before}{"[" if self.listed else ""}{{"name": '
        return begun + ('"' if name is None else f'{dumps(name)}, "{self.key}": ')


@dataclass(frozen=True)
class PromptedFormat(JsonFormat):
    """The format that a system message asks for, because the chat template knows no tools."""

    tools_in_template: ClassVar[bool] = False


@dataclass(frozen=True)
class PhiFormat(JsonFormat):
    """Calls of Phi-4, whose template reads the tools from the system message."""

    def arrange(self, messages: list[Message], tools: list[Message]) -> list[Message]:  # noqa: D102
        if not tools:
            return messages
        first = messages[0] if messages and messages[0].get("role") == "system" else {"role": "system", "content": ""}
        rest = messages[1:] if messages and messages[0].get("role") == "system" else messages
        return [{**first, "tools": dumps([tool.get("function", tool) for tool in tools])}, *rest]


@dataclass(frozen=True)
class MistralFormat(ToolFormat):
    """Calls of Mistral: a JSON list up to v7, and from v11 on name by name.

    Attributes:
        named: Whether the name of a tool stands before its arguments, as from v11 on.
    """

    named: bool = False

    json_heads: ClassVar[tuple[str, ...]] = (
        _HEAD,
        r"(?P<name>[\w.-]++)\s*+(?:\[CALL_ID\](?P<id>\w++))?\s*+(?:\[ARGS\])?",
    )

    def read(self, text: str, offer: Offer) -> tuple[list[ToolCall], int]:  # noqa: D102
        start = len(self.opening_of(text))
        named = _NAMED.match(text, start)
        if named:
            arguments, end = read_json(text, named.end(), self.openings, offer)
            return [ToolCall(named["name"], arguments_of(arguments, named["name"]), named["id"])], end
        value, end = read_json(text, start, self.openings, offer)
        return [call_of(item) for item in (value if isinstance(value, list) else [value])], end

    def write(self, calls: Sequence[ToolCall]) -> str:  # noqa: D102
        if self.named:
            return "".join(f"[TOOL_CALLS]{call.name}[ARGS]{dumps(call.arguments)}" for call in calls)
        return "[TOOL_CALLS]" + dumps([{"name": call.name, "arguments": call.arguments} for call in calls])

    def beginning(self, name: str | None) -> str:  # noqa: D102
        if self.named:
            return "[TOOL_CALLS]" + ("" if name is None else f"{name}[ARGS]")
        return '[TOOL_CALLS][{"name": ' + ('"' if name is None else f'{dumps(name)}, "arguments": ')

    def arrange(self, messages: list[Message], tools: list[Message]) -> list[Message]:  # noqa: D102
        del tools
        return [_with_short_ids(message) for message in messages]


def _with_short_ids(message: Message) -> Message:
    calls: list[dict[str, Any]] = message.get("tool_calls") or []
    changed = dict(message)
    if calls:
        changed["tool_calls"] = [{**call, "id": _short(call["id"])} if "id" in call else call for call in calls]
    if isinstance(message.get("tool_call_id"), str):
        changed["tool_call_id"] = _short(message["tool_call_id"])
    return changed


def _short(call_id: str) -> str:
    if len(call_id) == _ID_LENGTH and call_id.isalnum():
        return call_id
    return hashlib.sha256(call_id.encode(errors="surrogatepass")).hexdigest()[:_ID_LENGTH]
