"""Encodes an answer of one or several messages after its prompt, and tells the assistant's tokens from the others.

The chat template is rendered message by message, so the tokens are those that decoding reads and writes: the prompt up
to where the answer begins, the assistant's text with the end of its turn, and what the template puts between turns.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from langchain_mara.exceptions import PromptError
from langchain_mara.text.chat_template import is_open, render
from langchain_mara.text.control_tokens import Message, continue_marked, mark_messages


class Turn(NamedTuple):
    """Tokens of an answer that belong together.

    Attributes:
        token_ids: The tokens.
        is_assistant: Whether the assistant writes them; if not, they are another's turn or the template's.
    """

    token_ids: list[int]
    is_assistant: bool


def encode_turns(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[Message],
    answer: Sequence[Message],
    ends: Collection[int],
    *,
    tools: Sequence[Message] = (),
    special_tokens_in_messages: bool = False,
) -> list[Turn]:
    """Encodes the messages of an answer as the model reads and writes them after a prompt.

    Args:
        tokenizer: A tokenizer with a chat template.
        prompt: Messages before the answer. If the last one is the assistant's, the answer goes on with it.
        answer: Messages of the answer; the last one is the assistant's.
        ends: Tokens that end an answer; see `eos_token_ids`.
        tools: Tools that the model may call.
        special_tokens_in_messages: See `encode_messages`.

    Returns:
        The turns after the prompt. The last one is the assistant's, with the token that ends it.

    Raises:
        PromptError: If the answer does not end with a message of the assistant, or the template refuses the messages or
            changes earlier ones when later ones follow.
    """
    if not answer or answer[-1].get("role") != "assistant":
        role = repr(answer[-1].get("role")) if answer else "nobody"
        raise PromptError(f"An answer must end with a message of the assistant, but this one ends with {role}.")
    messages, marked_tools, mark = [*prompt, *answer], list(tools), ""
    if not special_tokens_in_messages:
        messages, marked_tools, mark = mark_messages(tokenizer, messages, marked_tools)
    said, following = messages[: len(prompt)], messages[len(prompt) :]
    text = render(tokenizer, said, marked_tools)
    turns: list[Turn] = []
    rest: list[int] = []
    for message in following:
        if message.get("role") != "assistant":
            said.append(message)
            continue
        opened = render(tokenizer, said, marked_tools)
        said = [*said[:-1], joined(said[-1], message)] if is_open(said) else [*said, message]
        closed = render(tokenizer, said, marked_tools, closed=True)
        between, spoken = _continuation(opened, text), _spoken(opened, closed, message)
        own, after = _split(tokenizer, continue_marked(tokenizer, spoken, mark), ends)
        before = [*rest, *continue_marked(tokenizer, between, mark)]
        turns += [Turn(before, False)] * bool(before) + [Turn(own, True)]
        text, rest = closed, after
    return turns


def joined(opening: Message, message: Message) -> Message:
    """An open message of the assistant with its continuation.

    Args:
        opening: The open message; its content is a text.
        message: The message that goes on with it.
    """
    return {**message, "content": f"{opening['content']}{message.get('content') or ''}"}


def _spoken(opened: str, closed: str, message: Message) -> str:
    """What the assistant says and the template puts after it."""
    if not closed.startswith(opened):
        # Some templates put more before an answer that begins than before one that is there, such as a blank.
        content = str(message.get("content") or "").strip()
        place = closed.rfind(content) if content else -1
        if place >= 0:
            return closed[place:]
    return _continuation(closed, opened)


def _continuation(text: str, beginning: str) -> str:
    if not text.startswith(beginning):
        raise PromptError(
            "The model's chat template changes earlier turns when later ones follow, so the tokens of this answer "
            "cannot be told from those of its prompt. Leave out what it changes (such as reasoning), or use a template "
            "that keeps it."
        )
    return text[len(beginning) :]


def _split(
    tokenizer: PreTrainedTokenizerBase, token_ids: list[int], ends: Collection[int]
) -> tuple[list[int], list[int]]:
    """Splits what the template puts for a turn after the token that ends it, which is added where there is none."""
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    first_end = next((i for i, token in enumerate(token_ids) if token in ends), None)
    last_special = next((i for i in reversed(range(len(token_ids))) if token_ids[i] in special), None)
    place = last_special if first_end is None else first_end
    if place is not None:
        return token_ids[: place + 1], token_ids[place + 1 :]
    return [*token_ids, *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])], []
