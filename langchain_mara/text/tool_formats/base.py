"""What a tool format is: how calls are read, written and forced, and how its templates want messages."""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from langchain_mara.exceptions import PromptError
from langchain_mara.text.tool_formats.calls import Offer, ToolCall

Message = dict[str, Any]


@dataclass(frozen=True)
class ToolFormat(ABC):
    """The format in which a family of models writes tool calls.

    Attributes:
        name: Its name in `tool_format=`.
        openings: Texts with which a call begins.
        ends: Texts with which a call ends.
        bare: First character of an answer that may be a call without an opening; empty if there are none.
        inner: Other texts of a call that are special tokens of some models.
    """

    name: str
    openings: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()
    inner: tuple[str, ...] = ()
    bare: str = ""

    tools_in_template: ClassVar[bool] = True
    """Whether the chat template describes the tools, if it takes any."""

    json_heads: ClassVar[tuple[str, ...]] = ()
    """Regular expressions of what stands before the arguments of a call, after its opening, if these are a JSON object:
    with groups `name` and, where calls have one, `id`. Empty if they are no JSON, so that calls come whole."""

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts that must stay in an answer even where they are special tokens."""
        return (*self.openings, *self.ends, *self.inner)

    @abstractmethod
    def read(self, text: str, offer: Offer) -> tuple[list[ToolCall], int]:
        """Reads the calls at the beginning of a text.

        Args:
            text: Text that begins with an opening or, where it is bare, with the first call.
            offer: The tools that may be called.

        Returns:
            The calls, and where the text after them begins.

        Raises:
            ValueError: If there is no valid call.
            SyntaxError: The same, in formats that are Python.
            RecursionError: If it is nested too deep.
        """

    @abstractmethod
    def write(self, calls: Sequence[ToolCall]) -> str:
        """Writes calls as the model would."""

    @abstractmethod
    def beginning(self, name: str | None) -> str:
        """Beginning of a call of a tool, or of any tool up to its name."""

    def forced(self, names: Sequence[str]) -> str:
        """Beginning of an answer that can only continue as a call of one of the tools.

        Args:
            names: Names of the tools. A single name is written out.

        Raises:
            PromptError: If a name that is to be written out holds more than letters, digits, `_`, `.` and `-`.
        """
        if len(names) == 1 and not re.fullmatch(r"[\w.-]+", names[0]):
            raise PromptError(f"The tool name {names[0]!r:.80} cannot be forced. Use letters, digits, _, . and - only.")
        return self.beginning(names[0] if len(names) == 1 else None)

    def arrange(self, messages: list[Message], tools: list[Message]) -> list[Message]:
        """Messages as this family's templates want them; by default as they are.

        Args:
            messages: Messages of the form `{"role": …, "content": …}`.
            tools: Tools in OpenAI's format.
        """
        del tools
        return messages

    def head(self, text: str, place: int) -> re.Match[str] | None:
        """What stands before the arguments of the next call, whose groups are those of `json_heads`.

        Args:
            text: The answer.
            place: Where the first opening, or the end of the arguments of the call before, is.

        Returns:
            The match; None if no call follows, or not yet, or one whose arguments are no JSON object.
        """
        return next((found for pattern in self._heads if (found := pattern.match(text, place))), None)

    @cached_property
    def _heads(self) -> list[re.Pattern[str]]:
        marks = "|".join(re.escape(mark) for mark in (*self.openings, *self.ends))
        between = rf"(?:{marks}|[\s\[\]}},;`])*+"
        return [re.compile(rf"{between}(?:{head})\s*+(?=\{{)") for head in self.json_heads]

    def opening_of(self, text: str) -> str:
        """The opening with which a text begins; empty if it begins with none."""
        return next((opening for opening in self.openings if text.startswith(opening)), "")

    def after(self, text: str, place: int) -> int:
        """Where the text goes on after the ends of calls that follow a place, and after brackets before them."""
        if not self.ends:
            return place
        ending = re.compile(rf"[\s\]}};]*?({'|'.join(map(re.escape, self.ends))})")
        while found := ending.match(text, place):
            place = found.end()
        return place
