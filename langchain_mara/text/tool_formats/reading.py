"""Separates tool calls from the content of an answer while it grows."""

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from langchain_mara.text.detokenizer import overlap
from langchain_mara.text.reasoning import ReasoningTags
from langchain_mara.text.tool_formats.base import ToolFormat
from langchain_mara.text.tool_formats.call_parts import CallPart, CallStream, joined
from langchain_mara.text.tool_formats.calls import InvalidToolCall, Offer, ToolCall, dumps

_FAULTS = (ValueError, SyntaxError, RecursionError, MemoryError)
_CALL_KEYS = {"name", "arguments", "parameters", "id", "type", "function"}
_NAME = re.compile(
    r'"name"\s*:\s*"([^"]*)"'
    r"|(?:function=|call:|<tool_call>\s*|\[TOOL_CALLS\]|functions\.|▁sep.>|call▁begin.>(?!function<))([\w.-]+)"
)


class Rest(NamedTuple):
    """What an answer holds besides the content that was released.

    Attributes:
        content: The rest of the content.
        calls: Calls of tools that were offered.
        invalid: All other calls, and what only begins like one.
        reasoning: Reasoning between calls.
        parts: Parts of calls, valid and not, that `parts` has not given yet.
    """

    content: str
    calls: list[ToolCall]
    invalid: list[InvalidToolCall]
    reasoning: str = ""
    parts: Sequence[CallPart] = ()


class ToolCallParser:
    """Separates tool calls from the content of an answer while it grows.

    Args:
        tool_format: Format of the model's calls.
        tools: Tools that were offered in this call, in OpenAI's format. If there are none, everything is content.
        opening: Beginning that was forced on the answer.
        tags: Tags of reasoning that may stand between calls.
        single: Whether only the first call counts.
    """

    def __init__(
        self,
        tool_format: ToolFormat,
        tools: Sequence[dict[str, Any]],
        opening: str = "",
        tags: ReasoningTags | None = None,
        *,
        single: bool = False,
    ) -> None:
        self._format = tool_format
        self._offer = Offer.of(tools)
        self._tags = tags
        self._openings = tool_format.openings if tools else ()
        self._bare = tool_format.bare if tools else ""
        self._forced = bool(opening)
        self._single = single
        self._stream = CallStream(tool_format, self._offer.schemas, single=single)
        self._started = False
        self._calling = False
        self._held = ""
        self.push(opening)

    def push(self, text: str) -> str:
        """Takes text of the answer and returns what is certainly content."""
        if not self._openings:
            return text
        self._held += text
        if self._calling or self._may_be_bare(self._held):
            return ""
        starts = [start for start in map(self._held.find, self._openings) if start >= 0]
        if starts:
            self._calling = True
            end = len(self._held[: min(starts)].rstrip())
        else:
            held_length = max(overlap(self._held, opening) for opening in self._openings)
            end = len(self._held[: len(self._held) - held_length].rstrip())
        released, self._held = self._held[:end], self._held[end:]
        self._started = self._started or bool(released)
        return released

    def parts(self) -> list[CallPart]:
        """Parts of calls that came since the last time; none where an answer may still turn out to be none."""
        return self._stream.follow(self._held) if self._calling or self._forced else []

    def finish(self, *, truncated: bool = False) -> Rest:
        """The rest of the answer. Call it at its end.

        Args:
            truncated: Whether the answer ended at its greatest length. A call that it cut is invalid.
        """
        parts = self.parts()
        rest = self._read(truncated=truncated)
        if self._single:
            rest = rest._replace(calls=rest.calls[:1], invalid=[] if rest.calls else rest.invalid[:1])
        if self._started and self._calling and rest.content:
            rest = rest._replace(content=f"\n{rest.content}")  # the blanks around calls were left out
        parts = joined([*parts, *self._stream.settle(rest.calls, rest.invalid)])
        return rest._replace(invalid=[part.invalid for part in parts if part.invalid], parts=parts)

    def _read(self, *, truncated: bool) -> Rest:
        text, self._held = self._held, ""
        self._offer = Offer(self._offer.schemas, truncated)
        if self._calling:
            return self._checked(self._marked(text))
        if self._may_be_bare(text):
            return self._bare_calls(text)
        return Rest(text, [], [])

    def _may_be_bare(self, text: str) -> bool:
        """Whether the answer begins like a call without a marker."""
        beginning = text.lstrip()
        # "[TOOL_CALLS]" begins with a bracket, too, but is a marker.
        marked = beginning.startswith(self._openings)
        return not self._started and bool(self._bare) and beginning.startswith(self._bare) and not marked

    def _bare_calls(self, text: str) -> Rest:
        """Calls without markers that make up the whole text; content if any part of it is not a call.

        A call that was forced is a call, whatever follows it.
        """
        try:
            calls, end = self._calls_at(text.lstrip())
        except _FAULTS as error:
            begun = _NAME.search(text) or re.match(r"\s*\[([\w.-]+)\(()", text)
            name = begun and (begun[1] or begun[2])
            if name in self._offer.schemas and (self._forced or self._offer.truncated):
                return Rest("", [], [InvalidToolCall(text.strip(), self._fault(error), name)])
            return Rest(text, [], [])
        after = text.lstrip()[end:].strip()
        if (after and not self._forced) or not self._are_calls(calls, text):
            return Rest(text, [], [])
        return self._checked(Rest(after, calls, []))

    def _are_calls(self, calls: Sequence[ToolCall], text: str) -> bool:
        """Whether JSON or Python is calls, and not an answer that happens to have names."""
        if not calls or self._forced:
            return bool(calls)
        if any(call.name in self._offer.schemas for call in calls):
            # A note that is called "note" is none.
            return any(call.arguments for call in calls) or _only_call_keys(text)
        # Unknown tools with arguments are calls, too, but `{"name": "Bob"}` or a list of people is none.
        return all(call.arguments for call in calls) and _only_call_keys(text)

    def _marked(self, text: str) -> Rest:
        content, thoughts = list[str](), list[str]()
        calls, invalid = list[ToolCall](), list[InvalidToolCall]()
        while text.strip():
            text = text.lstrip()
            opening = self._format.opening_of(text)
            if self._tags is not None and text.startswith(self._tags.opening):
                thought, _, text = text.removeprefix(self._tags.opening).partition(self._tags.closing)
                thoughts.append(thought.strip())
            elif not opening:
                stop = self._next_start(text, 0)
                said, text = text[:stop].strip(), text[stop:]
                is_cut_marker = self._offer.truncated and any(mark.startswith(said) for mark in self._format.markers)
                content.append("" if is_cut_marker else said)
            else:
                try:
                    found, end = self._calls_at(text)
                    calls += found
                except _FAULTS as error:
                    # A broken call ends at the next marker; there is no other way to find its end.
                    end = self._next_start(text, self._after_openings(text))
                    name = _NAME.search(text[:end])
                    invalid.append(
                        InvalidToolCall(text[:end].strip(), self._fault(error), name and (name[1] or name[2]))
                    )
                text = text[end:]
        return Rest("\n".join(filter(None, content)), calls, invalid, "\n".join(filter(None, thoughts)))

    def _next_start(self, text: str, place: int) -> int:
        openings = (*self._openings, *([] if self._tags is None else [self._tags.opening]))
        return min((start for opening in openings if (start := text.find(opening, place)) >= 0), default=len(text))

    def _after_openings(self, text: str) -> int:
        """Where the openings at the beginning of a text end; some calls have several."""
        rest = text
        while opening := self._format.opening_of(rest):
            rest = rest[len(opening) :].lstrip()
        return len(text) - len(rest)

    def _calls_at(self, text: str) -> tuple[list[ToolCall], int]:
        """The calls at the beginning of a text, and where the text after them begins.

        Raises:
            ValueError: If there is no valid call, and what else `ToolFormat.read` raises.
        """
        calls, end = self._format.read(text, self._offer)
        try:
            dumps([(call.name, call.arguments) for call in calls]).encode()
        except UnicodeEncodeError:
            raise ValueError("it holds half of a character, such as \\ud83d alone.") from None
        return calls, end

    def _checked(self, rest: Rest) -> Rest:
        """Calls of tools that were not offered become invalid ones."""
        offered = self._offer.schemas
        unknown = [
            InvalidToolCall(
                dumps(call.arguments),
                f"{call.name} is none of the tools offered in this call: {', '.join(offered)}.",
                call.name,
                call.id,
            )
            for call in rest.calls
            if call.name not in offered
        ]
        calls = [call for call in rest.calls if call.name in offered]
        return rest._replace(calls=calls, invalid=[*rest.invalid, *unknown])

    def _fault(self, error: BaseException) -> str:
        if self._offer.truncated:
            return "The answer ended at max_new_tokens before this tool call did. Raise max_new_tokens."
        return f"This is not a tool call: {error}"


def _only_call_keys(text: str) -> bool:
    try:
        value = json.loads(text)
    except _FAULTS:
        return True
    items = value if isinstance(value, list) else [value]
    return all(isinstance(item, dict) and set(item) <= _CALL_KEYS for item in items)
