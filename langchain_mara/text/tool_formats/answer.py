"""Reads an answer while it grows: reasoning, content and tool calls."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from langchain_mara.text.control_tokens import control_tokens
from langchain_mara.text.reasoning import ReasoningTags, Thought, reasoning_tags, splitter
from langchain_mara.text.tool_formats.base import ToolFormat
from langchain_mara.text.tool_formats.call_parts import CallPart
from langchain_mara.text.tool_formats.calls import InvalidToolCall, ToolCall
from langchain_mara.text.tool_formats.reading import ToolCallParser

_TAIL_TOKENS = 48


class Piece(NamedTuple):
    """What a part of an answer says.

    Attributes:
        reasoning: What the model thinks.
        content: What it says.
        calls: What it calls; at the end of the answer only.
        invalid: Calls that are not valid; at the end of the answer only.
        parts: Parts of calls, valid and not, as they come; with the last ones, all calls are complete.
    """

    reasoning: str = ""
    content: str = ""
    calls: Sequence[ToolCall] = ()
    invalid: Sequence[InvalidToolCall] = ()
    parts: Sequence[CallPart] = ()


class AnswerReader:
    """Reads one answer.

    Args:
        tokenizer: The model's tokenizer.
        tool_format: Format of the model's calls; None if no tools were offered.
        tools: Tools that were offered in this call, in OpenAI's format.
        opening: Beginning that was forced on the answer.
        thinking: Whether the prompt ends in thoughts; see `ends_in_thoughts`.
        instead: Beginnings of calls that the answer may have instead of a promised form, in which nothing is reasoning
            or a call; none if calls conform to the form. None if no form is promised.
        single: Whether only the first call counts.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        tool_format: ToolFormat | None = None,
        tools: Sequence[dict[str, Any]] = (),
        opening: str = "",
        *,
        thinking: bool = False,
        instead: Sequence[str] | None = None,
        single: bool = False,
    ) -> None:
        tags = reasoning_tags(tokenizer)
        openings: tuple[str, ...] = ()
        bare, self._parser = "", None
        if tool_format and tools:
            openings, bare = tool_format.openings, tool_format.bare
            self._parser = ToolCallParser(tool_format, tools, opening, tags, single=single)
        # A forced call and a promised form begin at once.
        is_bound = opening or instead is not None
        self._splitter = None if is_bound else splitter(tags, inside=thinking, calls=openings, bare=bare)
        self._instead = [_without_blanks(beginning) for beginning in instead or ()]
        self._undecided = ""

    @property
    def is_thinking(self) -> bool:
        """Whether the answer has got to reasoning, which has not ended."""
        return self._splitter is not None and self._splitter.is_inside

    def push(self, text: str) -> Piece:
        """Takes text of the answer and returns what is certain of it."""
        thought = Thought("", text) if self._splitter is None else self._splitter.push(text)
        content = self._content(thought.answer)
        return Piece(thought.reasoning, content, parts=() if self._parser is None else self._parser.parts())

    def finish(self, *, truncated: bool = False) -> Piece:
        """The rest of the answer. Call it at its end.

        Args:
            truncated: Whether the answer ended at its greatest length.
        """
        thought = Thought() if self._splitter is None else self._splitter.finish()
        reasoning, content = thought.reasoning, self._content(thought.answer)
        if self._parser is None:
            return Piece(reasoning, content)
        content += self._parser.push(self._undecided)
        rest = self._parser.finish(truncated=truncated)
        between = "\n".join(filter(None, [reasoning, rest.reasoning]))
        return Piece(between, content + rest.content, rest.calls, rest.invalid, rest.parts)

    def _content(self, text: str) -> str:
        if self._parser is not None and self._instead:
            text = self._decided(text)
        return text if self._parser is None else self._parser.push(text)

    def _decided(self, text: str) -> str:
        """The answer so far, once it is known whether it is a call or of the promised form; nothing before."""
        self._undecided += text
        begun = _without_blanks(self._undecided)
        if any(beginning.startswith(begun) for beginning in self._instead):
            return ""
        if not begun.startswith(tuple(self._instead)):
            self._parser = None
        so_far, self._undecided, self._instead = self._undecided, "", []
        return so_far


def _without_blanks(text: str) -> str:
    """A text without blanks, of which JSON may have any number."""
    return "".join(text.split())


def markers(tokenizer: PreTrainedTokenizerBase, tool_format: ToolFormat | None) -> list[str]:
    """Special tokens that must stay in the text of an answer, because reasoning or tool calls are told by them."""
    texts = (*reasoning_tags(tokenizer).texts, *(tool_format.markers if tool_format else ()))
    return sorted(token for token in control_tokens(tokenizer).special if any(token in text for text in texts))


def ends_in_thoughts(tokenizer: PreTrainedTokenizerBase, prompt_ids: Sequence[int], begun: str = "") -> bool:
    """Whether an answer begins with thoughts.

    Args:
        tokenizer: The model's tokenizer.
        prompt_ids: Token ids of the prompt.
        begun: Text of the assistant's open turn, which the answer continues; may be empty.
    """
    tags: ReasoningTags = reasoning_tags(tokenizer)
    if begun:
        return tags.is_open_in(begun)
    return tags.opened_by(str(tokenizer.decode(list(prompt_ids[-_TAIL_TOKENS:]))))
