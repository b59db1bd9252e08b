"""Tool calls, valid and not, and the JSON that models write for them.

Repair: Python's own decoder takes raw line breaks in strings (`strict=False`), and brackets that are missing at the end
are added, of which only one sequence fits. `json-repair` would also turn prose into values, and the partial parser of
pydantic drops an unfinished value, so both would call tools with arguments that nobody wrote.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

_DECODER = json.JSONDecoder(strict=False)
_SOMETHING = re.compile(r"\S")
_MOST_BRACKETS = 3


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
    """Text that begins like a tool call but is not a valid one, or calls a tool that was not offered.

    Attributes:
        text: What the model wrote, or only the arguments where the rest can be read.
        error: What is wrong with it.
        name: Name of the tool, or None if it cannot be read.
        id: Id that the model gave the call, or None.
    """

    text: str
    error: str
    name: str | None = None
    id: str | None = None


@dataclass(frozen=True)
class Offer:
    """What an answer may call, and whether it was cut.

    Attributes:
        schemas: JSON schema of the arguments of each tool that was offered in this call, by name.
        truncated: Whether the answer ended at its greatest length. Then nothing that is missing is added.
    """

    schemas: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    truncated: bool = False

    @classmethod
    def of(cls, tools: Sequence[Mapping[str, Any]]) -> "Offer":
        """The offer of tools in OpenAI's format."""
        functions = [tool.get("function", tool) for tool in tools]
        return cls({str(function["name"]): function.get("parameters") or {} for function in functions})


def read_json(text: str, start: int, ends: Sequence[str], offer: Offer) -> tuple[Any, int]:
    """Reads a JSON value, to which brackets are added if they are missing at its end.

    Args:
        text: The answer.
        start: Where the value begins, white space included.
        ends: Markers before one of which the value ends at the latest.
        offer: Says whether the answer was cut.

    Returns:
        The value, and where it ends.

    Raises:
        ValueError: If there is no such value.
        RecursionError: If it is nested too deep.
    """
    start = _first_after(text, start)
    try:
        return _DECODER.raw_decode(text, start)
    except ValueError as error:
        if offer.truncated:
            raise
        found = [place for place in (text.find(end, start) for end in ends) if place >= 0]
        stop = min(found, default=len(text))
        for value in _closed(text[start:stop].rstrip()):
            return value, stop
        raise error from None


def _first_after(text: str, place: int) -> int:
    found = _SOMETHING.search(text, place)
    return len(text) if found is None else found.start()


def _closed(text: str) -> list[Any]:
    """The value of JSON that lacks brackets at its end; empty if it lacks more than that."""
    if not text.startswith(("{", "[")):
        return []
    for count in range(1, _MOST_BRACKETS + 1):
        for brackets in product("}]", repeat=count):
            try:
                return [json.loads(text + "".join(brackets), strict=False)]
            except ValueError:
                continue
    return []


def call_of(value: Any) -> ToolCall:
    """The call that a JSON value describes, under any of the usual names of its arguments.

    Raises:
        ValueError: If it describes none.
    """
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = {**value, **value["function"]}
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise ValueError('there is no object with a "name".')  # noqa: TRY004 - bad text is a ValueError, like bad JSON
    written = next((value[key] for key in ("arguments", "parameters") if value.get(key) is not None), None)
    identity = value.get("id")
    return ToolCall(
        value["name"], arguments_of(written, value["name"]), identity if isinstance(identity, str) else None
    )


def arguments_of(value: Any, name: str) -> dict[str, Any]:
    """Arguments as an object; nothing, `null` and an empty text are no arguments, and a text is read as JSON.

    Raises:
        ValueError: If they are anything else.
    """
    if isinstance(value, str):
        value = json.loads(value, strict=False) if value.strip() else None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"the arguments of {name} are not an object.")  # noqa: TRY004
    return value


def dumps(value: Any) -> str:
    """JSON as models write it."""
    return json.dumps(value, ensure_ascii=False)
