"""Tool calls in parts, while the model writes them: the name first, then the arguments piece by piece."""

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from langchain_mara.text.tool_formats.base import ToolFormat
from langchain_mara.text.tool_formats.calls import InvalidToolCall, ToolCall, dumps

_CLOSING = {"{": "}", "[": "]"}
_OTHER = " \t\r\n,:+-._"


class CallPart(NamedTuple):
    """A part of a call. All parts of a call make up its name and its arguments, which are JSON if the call is valid.

    Attributes:
        number: Number of the call in the answer.
        arguments: What follows of the arguments.
        name: Name of the tool, in the first part of a call; None in the others.
        id: Id that the model gave the call, in its first part, or None.
        invalid: In the last part of a call that is not valid, what the model wrote and what is wrong with it.
    """

    number: int
    arguments: str
    name: str | None = None
    id: str | None = None
    invalid: InvalidToolCall | None = None


def joined(parts: Iterable[CallPart]) -> list[CallPart]:
    """One part for each call, because LangChain does not merge parts of the same chunk."""
    by_number: dict[int, CallPart] = {}
    for part in parts:
        first = by_number.get(part.number)
        by_number[part.number] = (
            part if first is None else first._replace(arguments=first.arguments + part.arguments, invalid=part.invalid)
        )
    return list(by_number.values())


@dataclass
class GrowingObject:
    """A JSON object while it grows.

    Attributes:
        text: The object so far; control characters in its strings are escaped.
        is_over: Whether nothing more belongs to it, because it is complete or broken.
    """

    text: str = ""
    is_over: bool = False
    _closing: list[str] = field(default_factory=list)
    _in_string: bool = False
    _escaped: bool = False

    def take(self, text: str, place: int) -> int:
        """Takes what belongs to the object from a place on, and returns where that ends."""
        letters = []
        while place < len(text) and not self.is_over:
            letter = self._of_string(text[place]) if self._in_string else self._outside_strings(text[place])
            self.is_over = not letter or not self._closing
            letters.append(letter)
            place += bool(letter)
        self.text += "".join(letters)
        return place

    def _of_string(self, letter: str) -> str:
        self._in_string = letter != '"' or self._escaped
        self._escaped = letter == "\\" and not self._escaped
        return letter if letter >= " " else dumps(letter)[1:-1]

    def _outside_strings(self, letter: str) -> str:
        """What a letter adds; the empty string if it cannot be part of the object."""
        if letter in _CLOSING:
            self._closing.append(_CLOSING[letter])
        elif letter in "}]":
            return self._closing.pop() if letter == self._closing[-1] else ""
        elif letter == '"':
            self._in_string = True
        elif not letter.isalnum() and letter not in _OTHER:
            return ""
        return letter

    def rest(self, value: dict[str, Any]) -> str | None:
        """What is missing of the object, if it is this value; None if it is another."""
        missing = "" if self._in_string else "".join(reversed(self._closing))
        try:
            return missing if dumps(json.loads(self.text + missing)) == dumps(value) else None
        except ValueError:
            return None

    @property
    def is_json(self) -> bool:
        """Whether the object is whole."""
        try:
            json.loads(self.text)
        except ValueError:
            return False
        return True

    @property
    def breaking(self) -> str:
        """What makes the object no JSON for whoever adds what is missing at its end, as LangChain does."""
        string_end = ("\\" if self._escaped else "") + '"' if self._in_string else ""
        return string_end + ("]" if self._closing[-1:] != ["]"] else "}")


@dataclass
class _Begun:
    name: str
    arguments: GrowingObject = field(default_factory=GrowingObject)


class CallStream:
    """Follows the calls of an answer as far as they are JSON and one comes after the other.

    What it cannot follow is told when the answer has been read as a whole.

    Args:
        tool_format: Format of the model's calls.
        offered: Names of the tools that may be called.
        single: Whether only the first call counts.
    """

    def __init__(self, tool_format: ToolFormat, offered: Collection[str], *, single: bool = False) -> None:
        self._format = tool_format
        self._offered = offered
        self._single = single
        self._begun: list[_Begun] = []
        self._place = 0

    def follow(self, text: str) -> list[CallPart]:
        """The parts that came since the last time.

        Args:
            text: The answer so far, from where the first call begins. It only ever grows.
        """
        parts: list[CallPart] = []
        while not self._is_between or self._begin(text, parts):
            arguments = self._begun[-1].arguments
            known = len(arguments.text)
            self._place = arguments.take(text, self._place)
            parts.append(CallPart(len(self._begun) - 1, arguments.text[known:]))
            if not arguments.is_over:
                break
        return [part for part in joined(parts) if part.name or part.arguments]

    @property
    def _is_between(self) -> bool:
        return not self._begun or self._begun[-1].arguments.is_over

    def _begin(self, text: str, parts: list[CallPart]) -> bool:
        """Whether another call begins, which is then followed."""
        head = None if self._single and self._begun else self._format.head(text, self._place)
        if head is None or head["name"] not in self._offered:
            return False
        parts.append(CallPart(len(self._begun), "", head["name"], head.groupdict().get("id")))
        self._begun.append(_Begun(head["name"]))
        self._place = head.end()
        return True

    def settle(self, calls: Sequence[ToolCall], invalid: Sequence[InvalidToolCall]) -> list[CallPart]:
        """The parts that are missing, once the answer has been read.

        Args:
            calls: All valid calls of the answer. What was followed and is none of them is invalid.
            invalid: All others.
        """
        left, wrong, parts = list(calls), list(invalid), list[CallPart]()
        for index, begun in enumerate(self._begun):
            is_next = bool(left) and left[0].name == begun.name
            rest = begun.arguments.rest(left[0].arguments) if is_next else None
            if rest is None:
                fault = _fault(begun, wrong, invalid)
                parts.append(CallPart(index, f"{begun.arguments.breaking} {fault.error}", invalid=fault))
            else:
                del left[0]
                parts += [CallPart(index, rest)] if rest else []
        first = len(self._begun)
        parts += [CallPart(first + i, dumps(call.arguments), call.name, call.id) for i, call in enumerate(left)]
        return parts + [_whole(fault, first + len(left) + i) for i, fault in enumerate(wrong)]


def _fault(begun: _Begun, wrong: list[InvalidToolCall], invalid: Sequence[InvalidToolCall]) -> InvalidToolCall:
    """What is wrong with a call that was followed. It is taken from the list, if it is there.

    Its text is the arguments as far as they go. Whole ones would look like those of a valid call.
    """
    index = next((i for i, fault in enumerate(wrong) if fault.name == begun.name), None)
    if index is not None:
        fault = wrong.pop(index)
    else:
        error = invalid[0].error if invalid else "Its arguments, or those of another call, are broken."
        fault = InvalidToolCall(begun.arguments.text, error, begun.name)
    return fault if begun.arguments.is_json else replace(fault, text=begun.arguments.text)


def _whole(fault: InvalidToolCall, index: int) -> CallPart:
    # LangChain completes broken JSON by guessing. Text that does not begin like JSON stays invalid. Whoever merges the
    # chunks of a stream finds the reason here, because LangChain does not merge errors.
    return CallPart(index, f"{fault.error}\n{fault.text}", fault.name or "", fault.id, fault)
