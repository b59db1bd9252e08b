"""Formats whose calls are written like code: Python calls of Llama, and the calls of Gemma."""

import ast
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from langchain_mara.text.tool_formats.base import ToolFormat
from langchain_mara.text.tool_formats.calls import Offer, ToolCall, dumps
from langchain_mara.text.tool_formats.families.typed_values import typed

_ITEM = re.compile(r"[^,\s]")
_JSON_NAMES = {"true": True, "false": False, "null": None}


@dataclass(frozen=True)
class PythonicFormat(ToolFormat):
    """Calls as a Python list: `[get_weather(city="Paris"), note(text="…")]`."""

    def read(self, text: str, offer: Offer) -> tuple[list[ToolCall], int]:  # noqa: D102
        start = len(self.opening_of(text))
        stop = min((place for place in (text.find(end, start) for end in self.ends) if place >= 0), default=len(text))
        tree = ast.parse(text[start:stop].strip(), mode="eval").body
        nodes = tree.elts if isinstance(tree, ast.List) else [tree]
        if not nodes:
            raise ValueError("there is no call.")
        return [_python_call(node, offer) for node in nodes], self.after(text, stop)

    def write(self, calls: Sequence[ToolCall]) -> str:  # noqa: D102
        written = (
            f"{call.name}({', '.join(f'{key}={value!r}' for key, value in call.arguments.items())})" for call in calls
        )
        return f"[{', '.join(written)}]"

    def beginning(self, name: str | None) -> str:  # noqa: D102
        return "[" if name is None else f"[{name}("


def _python_call(node: ast.expr, offer: Offer) -> ToolCall:
    if not isinstance(node, ast.Call) or node.args or any(keyword.arg is None for keyword in node.keywords):
        raise ValueError("there is no call with named arguments.")
    name = ast.unparse(node.func)
    schema = offer.schemas.get(name, {})
    values = {str(keyword.arg): _literal(keyword.value) for keyword in node.keywords}
    # Templates put quotes around every argument of an earlier call, and models learn from them.
    return ToolCall(
        name,
        {
            key: typed(value, schema, key) if isinstance(value, str) and schema else value
            for key, value in values.items()
        },
    )


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Name) and node.id in _JSON_NAMES:
        return _JSON_NAMES[node.id]
    if isinstance(node, ast.List | ast.Tuple):
        return [_literal(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        keys = [None if key is None else ast.literal_eval(key) for key in node.keys]
        return {str(key): _literal(value) for key, value in zip(keys, node.values, strict=True)}
    return ast.literal_eval(node)


@dataclass(frozen=True)
class GemmaFormat(ToolFormat):
    """Calls of Gemma: `call:get_weather{city:<escape>Paris<escape>}`, with a delimiter around every text.

    Attributes:
        quote: The delimiter.
    """

    quote: str = "<escape>"

    def read(self, text: str, offer: Offer) -> tuple[list[ToolCall], int]:  # noqa: D102
        del offer
        begun = re.compile(r"\s*call:(?P<name>[\w.-]+)\s*(?=\{)").match(text, len(self.opening_of(text)))
        if begun is None:
            raise ValueError("there is no name of a tool.")
        arguments, end = self._value(text, begun.end())
        return [ToolCall(begun["name"], arguments)], self.after(text, end)

    def write(self, calls: Sequence[ToolCall]) -> str:  # noqa: D102
        return "".join(
            f"{self.openings[0]}call:{call.name}{self._written(call.arguments)}{self.ends[0]}" for call in calls
        )

    def beginning(self, name: str | None) -> str:  # noqa: D102
        return f"{self.openings[0]}call:" + ("" if name is None else f"{name}{{")

    def _written(self, value: Any) -> str:
        if isinstance(value, str):
            return f"{self.quote}{value}{self.quote}"
        if isinstance(value, dict):
            return "{" + ",".join(f"{key}:{self._written(item)}" for key, item in value.items()) + "}"
        if isinstance(value, list):
            return "[" + ",".join(map(self._written, value)) + "]"
        return dumps(value)

    def _value(self, text: str, place: int) -> tuple[Any, int]:
        """A value, and where the text after it begins."""
        if text.startswith(self.quote, place):
            return self._text(text, place)
        if text.startswith("{", place):
            return self._items(text, place + 1, "}")
        if text.startswith("[", place):
            return self._items(text, place + 1, "]")
        word = re.compile(r"[^,{}\[\]<]+").match(text, place)
        if word is None:
            raise ValueError(f"a value is missing at character {place}.")
        written = word[0].strip()
        return None if written == "None" else json.loads(written.lower()), word.end()

    def _text(self, text: str, place: int) -> tuple[str, int]:
        start = place + len(self.quote)
        end = text.find(self.quote, start)
        if end < 0:
            raise ValueError(f"a text does not end with {self.quote}.")
        return text[start:end], end + len(self.quote)

    def _items(self, text: str, place: int, closing: str) -> tuple[Any, int]:
        keys, values = list[str](), list[Any]()
        while True:
            found = _ITEM.search(text, place)
            place = len(text) if found is None else found.start()
            if text.startswith(closing, place):
                return dict(zip(keys, values, strict=True)) if closing == "}" else values, place + 1
            if closing == "}":
                key, place = self._key(text, place)
                keys.append(key)
            value, place = self._value(text, place)
            values.append(value)

    def _key(self, text: str, place: int) -> tuple[str, int]:
        if text.startswith(self.quote, place):
            key, place = self._text(text, place)
        elif word := re.compile(r"[^:{}\[\],]+").match(text, place):
            key, place = word[0].strip(), word.end()
        else:
            raise ValueError(f"an argument has no name at character {place}.")
        colon = re.compile(r"\s*:\s*").match(text, place)
        if colon is None:
            raise ValueError(f"the argument {key!r:.80} has no value.")
        return key, colon.end()
