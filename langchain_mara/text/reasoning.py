"""Splits what a model thinks from what it answers while it grows, and gives earlier thoughts to the template."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from transformers import PreTrainedTokenizerBase

from langchain_mara.text.detokenizer import overlap

Message = dict[str, Any]


@dataclass(frozen=True)
class ReasoningTags:
    """Texts between which a model thinks.

    Attributes:
        opening: The text before its thoughts.
        closing: The text after them.
        known: Whether the model's chat template or its tokens hold these texts. If not, only an answer that begins
            with the opening is reasoning, because other answers may speak of it.
    """

    opening: str = "<think>"
    closing: str = "</think>"
    known: bool = True

    @property
    def texts(self) -> tuple[str, ...]:
        """Texts that must stay in an answer, even where they are or hold special tokens."""
        return _HARMONY_TEXTS if self == HARMONY else (self.opening, self.closing)

    def opened_by(self, prompt: str) -> bool:
        """Whether a prompt ends with an opening, so that the answer begins with thoughts."""
        return prompt.rstrip().endswith(self.opening.strip())

    def is_open_in(self, text: str) -> bool:
        """Whether a text ends in thoughts."""
        return text.rfind(self.opening) > text.rfind(self.closing)


HARMONY = ReasoningTags("<|channel|>analysis<|message|>", "<|end|>")
"""How gpt-oss thinks: in a channel of its own."""
_HARMONY_TEXTS = ("<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|call|>", "<|constrain|>")
_TAGS = (
    ReasoningTags(),
    ReasoningTags("[THINK]", "[/THINK]"),
    ReasoningTags("<|channel>thought\n", "<channel|>"),
    ReasoningTags("◁think▷", "◁/think▷"),
    ReasoningTags("<seed:think>", "</seed:think>"),
    ReasoningTags("<|START_THINKING|>", "<|END_THINKING|>"),
)


class Thought(NamedTuple):
    """A part of an answer.

    Attributes:
        reasoning: What the model thinks.
        answer: What it answers, calls included.
    """

    reasoning: str = ""
    answer: str = ""


class Splitter(Protocol):
    """Splits reasoning from the answer."""

    @property
    def is_inside(self) -> bool:
        """Whether the text has got to reasoning, which has not ended."""

    def push(self, text: str) -> Thought:
        """Takes text and returns what is certainly one or the other."""

    def finish(self) -> Thought:
        """Returns the rest. Call it at the end of the answer."""


def reasoning_tags(tokenizer: PreTrainedTokenizerBase) -> ReasoningTags:
    """The tags of a model's reasoning, from its chat template and its tokens."""
    templates = tokenizer.chat_template
    template = "".join(templates.values()) if isinstance(templates, dict) else templates or ""
    if "<|channel|>" in template:
        return HARMONY
    added = tokenizer.get_added_vocab()
    found = (tags for tags in _TAGS if tags.closing in template or tags.closing in added)
    return next(found, ReasoningTags(known=False))


def splitter(tags: ReasoningTags, *, inside: bool, calls: Sequence[str] = (), bare: str = "") -> Splitter:
    """What splits an answer.

    Args:
        tags: The model's tags.
        inside: Whether the answer begins with thoughts, because the prompt ends with the opening.
        calls: Openings of tool calls, after which nothing is split.
        bare: First character of an answer that may be a tool call as a whole.
    """
    if tags == HARMONY:
        return HarmonySplitter(inside=inside, calls=bool(calls))
    return TagSplitter(tags, inside=inside, calls=calls, bare=bare)


class TagSplitter:
    """Splits reasoning between tags from the answer. Its arguments are those of `splitter`."""

    def __init__(self, tags: ReasoningTags, *, inside: bool, calls: Sequence[str] = (), bare: str = "") -> None:
        self._tags = tags
        self._calls = tuple(calls)
        self._bare = bare
        self._inside = inside
        self._after_tag = inside  # whether nothing has followed the last tag yet
        self._answered = False
        self._verbatim = False
        self._held = ""

    @property
    def is_inside(self) -> bool:
        """Whether the text has got to reasoning, which has not ended."""
        return self._inside

    def push(self, text: str) -> Thought:
        """Takes text and returns what is certainly reasoning or answer."""
        self._held += text
        reasoning, answer = "", ""
        while not self._verbatim and not self._is_bare_call() and (cut := self._next_tag()):
            place, tag = cut
            part, self._held = self._held[:place], self._held[place:]
            if tag in self._calls:
                self._verbatim = True
                answer += self._taken(part)
                break
            if self._inside:
                reasoning += self._taken(part.rstrip())
            elif self._answered or part.strip():
                answer += self._taken(part)
            self._held = self._held.removeprefix(tag)
            self._inside, self._after_tag = not self._inside, True
        released = self._taken(self._certain())
        return Thought(reasoning + released, answer) if self._inside else Thought(reasoning, answer + released)

    def finish(self) -> Thought:
        """Returns the rest. Call it at the end of the answer."""
        rest, self._held = self._held, ""
        return Thought(self._taken(rest.rstrip())) if self._inside else Thought("", self._taken(rest))

    @property
    def _tags_now(self) -> tuple[str, ...]:
        if self._inside:
            return (self._tags.closing,)
        opening = (self._tags.opening,) if self._tags.known or not self._answered else ()
        return (*opening, *self._calls)

    def _is_bare_call(self) -> bool:
        beginning = self._held.lstrip()
        if self._inside or self._answered or not self._bare or not beginning.startswith(self._bare):
            return False
        self._verbatim = not any(tag.startswith(beginning) or beginning.startswith(tag) for tag in self._tags_now)
        return self._verbatim

    def _next_tag(self) -> tuple[int, str] | None:
        """Where the next tag that counts begins, and the tag."""
        found = [(place, tag) for tag in self._tags_now if (place := self._held.find(tag)) >= 0]
        place, tag = min(found, default=(0, ""))
        said_first = tag == self._tags.opening and not self._tags.known and self._held[:place].strip()
        return None if said_first or not tag else (place, tag)

    def _certain(self) -> str:
        """Takes what cannot be the beginning of a tag from the text that is held."""
        end = len(self._held)
        if not self._verbatim:
            end -= max((overlap(self._held, tag) for tag in self._tags_now), default=0)
            if self._inside or not (self._answered or self._held[:end].strip()):
                # Blanks before a tag belong to neither part.
                end = len(self._held[:end].rstrip())
        text, self._held = self._held[:end], self._held[end:]
        return text

    def _taken(self, text: str) -> str:
        """Text of the present part, without the line breaks that a tag puts before it."""
        if self._after_tag:
            text = text.lstrip() if self._inside else text.lstrip("\n")
            self._after_tag = not text
        self._answered = self._answered or (not self._inside and bool(text.strip()))
        return text


class HarmonySplitter:
    """Splits the messages of gpt-oss.

    Its analysis is reasoning. A message to a function passes with a header that is always the same, for the parser of
    tool calls. All else is answer.

    Args:
        inside: Whether the answer begins with the text of an analysis.
        calls: Whether tools were offered; if not, what is said to a function is answer.
    """

    _HEADER = re.compile(
        r"\s*(?:<\|start\|>)?(?:assistant)?\s*(?:to=(?P<early>[^\s<]++))?\s*+(?:<\|channel\|>(?P<channel>\w++))?"
        r"(?P<rest>[^<]*+)(?:<\|constrain\|>[^<]*+)?<\|message\|>"
    )
    _BEGINNINGS = ("<|start|>", "<|channel|>", "<|message|>", "assistant", "to=")
    _ENDS = ("<|end|>", "<|call|>", "<|return|>", "<|start|>")

    def __init__(self, *, inside: bool, calls: bool) -> None:
        self._calls = calls
        self._held = ""
        self._kind: Literal["", "reasoning", "answer", "call"] = "reasoning" if inside else ""

    @property
    def is_inside(self) -> bool:
        """Whether the text has got to reasoning, which has not ended."""
        return self._kind == "reasoning"

    def push(self, text: str) -> Thought:
        """Takes text and returns what is certainly reasoning or answer."""
        self._held += text
        reasoning, answer = "", ""
        while True:
            if not self._kind:
                header = self._header()
                if header is None:
                    break
                answer += self._begin(header)
            place, end = self._next_end()
            part, self._held = self._held[:place], self._held[place:]
            if self._kind == "reasoning":
                reasoning += part
            else:
                answer += part
            if not end:
                break
            answer += "<|call|>" if self._kind == "call" else ""
            self._held, self._kind = self._held.removeprefix("" if end == "<|start|>" else end), ""
        return Thought(reasoning, answer)

    def finish(self) -> Thought:
        """Returns the rest. Call it at the end of the answer."""
        rest, self._held = self._held, ""
        if self._kind:
            return Thought(rest) if self._kind == "reasoning" else Thought("", rest)
        return Thought("", "" if rest.lstrip().startswith("<|") else rest)

    def _header(self) -> re.Match[str] | None:
        beginning = self._held.lstrip()
        if beginning and not any(
            beginning.startswith(known) or known.startswith(beginning) for known in self._BEGINNINGS
        ):
            return re.match("", self._held)  # an answer without a header
        return self._HEADER.match(self._held)

    def _begin(self, header: re.Match[str]) -> str:
        """Begins a message, and returns the header that the parser of tool calls sees."""
        self._held = self._held[header.end() :]
        parts = header.groupdict()
        later = re.search(r"to=([^\s<]+)", parts.get("rest") or "")
        recipient = parts.get("early") or (later and later[1])
        if recipient and self._calls:
            self._kind = "call"
            return f"<|channel|>commentary to={recipient}<|message|>"
        self._kind = "reasoning" if parts.get("channel") == "analysis" else "answer"
        return ""

    def _next_end(self) -> tuple[int, str]:
        """Where the message ends and with what; if it goes on, how much of it is certain, and an empty text."""
        found = [(place, end) for end in self._ENDS if (place := self._held.find(end)) >= 0]
        return min(found) if found else (len(self._held) - max(overlap(self._held, end) for end in self._ENDS), "")


def with_reasoning(messages: Sequence[Message], template: str) -> list[Message]:
    """Messages with the thoughts of earlier turns under the name that the chat template reads, or without them.

    Args:
        messages: Messages, of which those of the assistant may have `reasoning_content`.
        template: The chat template, which decides of which turns it shows them.
    """
    names = ("reasoning_content", "reasoning", "thinking")
    read = next((name for name in names if re.search(rf"\.{name}\b|['\"]{name}['\"]", template)), None)

    def placed(message: Mapping[str, Any]) -> Message:
        rest = {key: value for key, value in message.items() if key != "reasoning_content"}
        thought = message.get("reasoning_content")
        return {**rest, read: thought} if read and thought else rest

    return [placed(message) for message in messages]
