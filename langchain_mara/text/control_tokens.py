"""Keeps the text of messages ordinary: what looks like a control token in it is encoded as its letters.

A mark goes into each such place before the template is rendered. The rendered text is cut at the marks and the parts
are encoded one after the other, so no part holds a whole control token of a message. Text without such places is
encoded as a whole, as ever.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase

from langchain_mara.exceptions import PromptError
from langchain_mara.text.own_tokenizer import encode, own, refuse_half_characters

Message = dict[str, Any]
_ROLE = re.compile(r"[\w-]+")
_TURN_MARK = re.compile(r"<\|.+\|>")  # what templates put together from pieces, such as `<|` and a role
_MARKS = range(0xE000, 0xF900)  # the private use area, which no language writes
_OWN_WORDS = {"content", "reasoning_content"}  # parts of a message that the model itself may have written


@dataclass(frozen=True)
class ControlTokens:
    """The texts that a tokenizer turns into control tokens.

    Attributes:
        special: Texts of its special tokens.
        written: Texts of other added tokens that the chat template writes, such as `<tool_response>`.
        prefix: A special token with its id, after which text is encoded as in the middle of a prompt; None if there is
            no such token.
        normalize: How the tokenizer normalizes text before it looks for some of these texts; None if it does not.
    """

    special: frozenset[str]
    written: frozenset[str]
    prefix: tuple[str, int] | None
    normalize: Callable[[str], str] | None

    @cached_property
    def all(self) -> re.Pattern[str]:
        """Finds any of the texts."""
        return _any_of(self.special | self.written)

    @cached_property
    def all_special(self) -> re.Pattern[str]:
        """Finds the text of a special token."""
        return _any_of(self.special)

    def within(self, text: str, pattern: re.Pattern[str]) -> str | None:
        """The text, or else its normalized form, if the pattern is in it; None if it is in neither."""
        normalized = text if self.normalize is None else self.normalize(text)
        if len(pattern.findall(normalized)) > len(pattern.findall(text)):
            return normalized
        return text if pattern.search(text) else None


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> ControlTokens:
    """The control tokens of a tokenizer and its chat template."""
    key = (len(tokenizer), tuple(tokenizer.all_special_tokens), str(tokenizer.chat_template))
    found = _KNOWN.get(tokenizer)
    if found is None or found[0] != key:
        found = _KNOWN[tokenizer] = (key, _control_tokens(tokenizer))
    return found[1]


def mark_messages(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], tools: Sequence[Message] = ()
) -> tuple[list[Message], list[Message], str]:
    """Marks the control tokens in all texts of a conversation: contents, names, roles, tool calls and tools.

    What the assistant says may hold tokens that are not special, such as `<think>`, because models write them.

    Args:
        tokenizer: The model's tokenizer.
        messages: Messages of the form `{"role": …, "content": …}`.
        tools: Tools in OpenAI's format.

    Returns:
        Messages, tools, and the mark; the same values and an empty mark if no text holds a control token.

    Raises:
        PromptError: If the texts leave no character that could be the mark, or a role is not a word.
    """
    controls = control_tokens(tokenizer)
    for message in messages:
        if not _ROLE.fullmatch(str(message.get("role"))):
            raise PromptError(f"The role {message.get('role')!r:.60} is not a word. Use a role such as user.")
    texts = [*_texts([*messages, *tools]), *("".join(_parts(message)) for message in messages)]
    for text in texts:
        refuse_half_characters(text)
    if all(controls.within(text, controls.all) is None for text in texts):
        return list(messages), list(tools), ""
    mark = _unused(texts)

    def marked(value: Any, pattern: re.Pattern[str]) -> Any:
        if isinstance(value, str):
            held = controls.within(value, pattern)
            return value if held is None else _cut(held, pattern, mark)
        if isinstance(value, Mapping):
            return {marked(key, pattern): marked(item, pattern) for key, item in value.items()}
        return [marked(item, pattern) for item in value] if isinstance(value, list | tuple) else value

    def marked_message(message: Message) -> Message:
        own = _OWN_WORDS if message.get("role") == "assistant" else set()
        # A template may put the parts of a message beside one another, so a token could be cut into two of them.
        joined, *parts = "".join(_parts(message)), *_parts(message)
        held = sum(len(controls.all.findall(part)) for part in parts)
        apart = mark if len(controls.all.findall(joined)) > held else ""
        return {
            name: _apart(marked(value, controls.all_special if name in own else controls.all), apart)
            for name, value in message.items()
        }

    return [marked_message(message) for message in messages], [marked(tool, controls.all) for tool in tools], mark


def encode_marked(tokenizer: PreTrainedTokenizerBase, text: str, mark: str) -> list[int]:
    """Encodes rendered text, in which special tokens are those of the template.

    Args:
        tokenizer: The model's tokenizer.
        text: Rendered text; no special tokens are added.
        mark: Mark from `mark_messages`; may be empty.
    """
    first, *parts = text.split(mark) if mark else [text]
    return [*encode(tokenizer, first), *_continuations(tokenizer, parts)]


def continue_marked(tokenizer: PreTrainedTokenizerBase, text: str, mark: str) -> list[int]:
    """Encodes rendered text that continues other text; the arguments are those of `encode_marked`."""
    return _continuations(tokenizer, text.split(mark) if mark else [text])


def _continuations(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[int]:
    """Ids of texts that continue a prompt. At the start of a text, some tokenizers would add a space."""
    refuse_half_characters("".join(texts))
    prefix, prefix_id = control_tokens(tokenizer).prefix or ("", None)
    encoder, ids = own(tokenizer), list[int]()
    for text in texts:
        part = list(encoder(prefix + text, add_special_tokens=False).input_ids)
        ids += part[1:] if part[:1] == [prefix_id] else part
    return ids


_KNOWN: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[Any, ControlTokens]] = WeakKeyDictionary()


def _control_tokens(tokenizer: PreTrainedTokenizerBase) -> ControlTokens:
    added = tokenizer.added_tokens_decoder
    template = str(tokenizer.chat_template or "")
    special = {token.content for token in added.values() if token.special} | set(tokenizer.all_special_tokens)
    written = {
        token.content
        for token in added.values()
        if (token.content.strip() and token.content in template) or _TURN_MARK.fullmatch(token.content)
    }
    plain = (
        (token.content, number)
        for number, token in added.items()
        if token.special and not (token.lstrip or token.rstrip or token.single_word or token.normalized)
    )
    # A text of a single character has no inside to cut.
    special, written = ({text for text in texts if len(text) > 1} for texts in (special, written))
    normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    used = any(token.normalized and token.content in special | written for token in added.values())
    normalize = None if normalizer is None or not used else normalizer.normalize_str
    return ControlTokens(frozenset(special), frozenset(written - special), next(plain, None), normalize)


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    # Nothing matches if there are no texts.
    return re.compile("|".join(map(re.escape, sorted(texts))) or r"(?!)")


def _texts(value: Any) -> Iterator[str]:
    """All strings in nested values, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _parts(message: Message) -> list[str]:
    """The texts of a message's parts; none for a message that is not in parts."""
    content = message.get("content")
    parts = content if isinstance(content, list | tuple) else []
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in parts]
    return [text for text in texts if isinstance(text, str)]


def _apart(value: Any, mark: str) -> Any:
    """Parts of a message, each beginning with a mark; any other value as it is."""
    if not mark or not isinstance(value, list):
        return value
    return [
        mark + part if isinstance(part, str) else {**part, "text": mark + part["text"]} if "text" in part else part
        for part in value
    ]


def _cut(text: str, pattern: re.Pattern[str], mark: str) -> str:
    """Text with a mark after the first character of everything the pattern finds, overlapping finds included."""
    cuts = [match.start() + 1 for match in re.finditer(f"(?={pattern.pattern})", text)]
    return mark.join(text[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True))


def _unused(texts: Iterable[str]) -> str:
    used = set().union(*texts)
    mark = next((chr(code) for code in _MARKS if chr(code) not in used), None)
    if mark is None:
        raise PromptError("The messages use every character of Unicode's private use area. Leave some of them out.")
    return mark
