"""Converts the columns of published data sets to `prompt`, `chosen` and `rejected`.

Nothing that the user said is dropped: `input` and `context` join the prompt, `system` is its system message, and whole
conversations (`messages`, ShareGPT's `conversations`) are prompts up to where the last answer begins.

Every function converts a single row, so a local copy of a data set reads like the one on the hub.
"""

import math
import numbers
import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any, Literal

from langchain_mara.exceptions import DataError
from langchain_mara.text.chat_template import as_messages

Fields = dict[str, Any]
Preferred = Literal["better", "safer"]

PROMPT_COLUMNS = ("prompt", "instruction", "question")
"""Usual names of the prompt's column; the first one that a row has is used."""
CONVERSATION_COLUMNS = ("messages", "conversations", "conversation")
"""Usual names of a column with a whole conversation."""
MESSAGE_KEYS = ("role", "content")
"""Keys of a message."""
SHAREGPT_KEYS = ("from", "value")
"""Keys of a message in ShareGPT's form."""
_ADDITIONS = ("input", "context")
_SHAREGPT_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant",
    "model": "assistant", "bing": "assistant", "bard": "assistant", "system": "system", "tool": "tool",
    "function": "tool", "observation": "tool", "function_response": "tool",
}  # fmt: skip

_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def with_prompt(row: Fields, column: str | None = None) -> Fields:
    """A row with its `prompt`, taken from a usual column or from the start that its two answers share.

    Args:
        row: Row to convert; it is not changed.
        column: Name of the prompt's column, which is read as it is; by default `prompt`, `instruction` or `question`,
            with what `input`, `context` and `system` add, or else the conversation in `messages` or `conversations`.

    Returns:
        A new row, or the row itself if it has no prompt.

    Raises:
        DataError: If a column that belongs to the prompt holds no text, or there are two system messages.
    """
    if column is not None:
        return {**row, "prompt": row[column]} if column in row else row
    row = _with_openai_messages(row)
    prompt = _prompt_of(row)
    if prompt is not None:
        return {**row, "prompt": prompt}
    return _split_dialogues(row) or row


def with_pair(row: Fields, preferred: Preferred = "better") -> Fields:
    """A row with `prompt`, `chosen` and `rejected`, if its columns are in a known format.

    Known are: two answers and the number of the preferred one (`response_0`, `response_1`, `better_response_id`,
    `safer_response_id`, as in PKU-SafeRLHF); whole dialogues as text (HH-RLHF); and messages that begin with the
    prompt (UltraFeedback, TRL).

    Args:
        row: Row to convert; it is not changed.
        preferred: Which preference to use if the row has both.

    Returns:
        A new row, or the row itself if its format is unknown.

    Raises:
        DataError: As for `with_prompt`, or if the number of the preferred answer is neither 0 nor 1.
    """
    row = _with_openai_messages(_chosen_by_number(row, f"{preferred}_response_id"))
    prompt = _prompt_of(row)
    if prompt is None:
        return _split_dialogues(row) or row
    chosen, rejected = row.get("chosen"), row.get("rejected")
    opening = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    given = row.get("prompt", prompt)
    openings = [opening, [{"role": "user", "content": given}] if isinstance(given, str) else given]
    answers = {name: answer for name, answer in (("chosen", chosen), ("rejected", rejected)) if answer is not None}
    for messages in openings:
        if all(_begins_with(answer, messages) for answer in answers.values()):
            answers = {name: answer[len(messages) :] for name, answer in answers.items()}
            break
    return {**row, "prompt": prompt, **answers}


def dialogue(text: str) -> list[dict[str, str]] | None:
    r"""Messages of a dialogue such as "\n\nHuman: Hi.\n\nAssistant: Hello."; None for any other text."""
    opening, *turns = _TURN.split(text)
    if opening.strip() or not turns:
        return None
    roles, contents = turns[::2], turns[1::2]
    pairs = zip(roles, contents, strict=True)
    return [{"role": _ROLES[role], "content": content.strip()} for role, content in pairs]


def is_message(value: Any, *keys: str) -> bool:
    """Whether a value is a message with these keys, by default `role` and `content`, or `role` and `tool_calls`."""
    if not isinstance(value, Mapping):
        return False
    return set(keys or MESSAGE_KEYS) <= set(value) or (not keys and {"role", "tool_calls"} <= set(value))


def _with_openai_messages(row: Fields) -> Fields:
    """A row whose ShareGPT messages (`from`, `value`) have `role` and `content`; a single message becomes a list."""

    def converted(value: Any) -> Any:
        if is_message(value) or is_message(value, *SHAREGPT_KEYS):
            return converted([value])
        if isinstance(value, list) and value and all(is_message(message, *SHAREGPT_KEYS) for message in value):
            return [{"role": _SHAREGPT_ROLES.get(str(m["from"]), m["from"]), "content": m["value"]} for m in value]
        return value

    names = {"prompt", "chosen", "rejected", *CONVERSATION_COLUMNS}
    return {name: converted(value) if name in names else value for name, value in row.items()}


def _prompt_of(row: Fields) -> Any:
    """The prompt with what other columns add to it; None if the row has none."""
    prompt = next((row[name] for name in PROMPT_COLUMNS if row.get(name) is not None), None)
    if prompt is None:
        conversation = next((row[name] for name in CONVERSATION_COLUMNS if isinstance(row.get(name), list)), None)
        if not conversation or not all(isinstance(message, Mapping) for message in conversation):
            return None
        prompt = list(conversation)
        # The answer that ends the conversation is not part of the prompt, unless the row has answers, too.
        while "chosen" not in row and len(prompt) > 1 and prompt[-1].get("role") == "assistant":
            prompt.pop()
    if isinstance(prompt, str):
        additions = (_text_in(row, name) for name in _ADDITIONS)
        prompt = "\n\n".join([prompt, *(text for text in additions if text and not _has_lines(prompt, text))])
    return _with_system(prompt, row)


def _text_in(row: Fields, column: str) -> str:
    """The text of a column that belongs to the prompt; empty if there is none."""
    value = row.get(column)
    # Tables in which some rows lack the text hold NaN there, or an empty list.
    is_empty = isinstance(value, list | Mapping) and not value
    if value is None or is_empty or (isinstance(value, float) and math.isnan(value)):
        return ""
    if not isinstance(value, str):
        raise DataError(
            f"{column} is {value!r:.60} ({type(value).__name__}), and it belongs to the prompt. Write it as text, or "
            "rename the column to leave it out."
        )
    return value if value.strip() else ""


def _has_lines(prompt: str, text: str) -> bool:
    """Whether a text already is in a prompt, as lines of its own; a word that the prompt happens to hold is not."""
    return f"\n{text}\n" in f"\n{prompt}\n"


def _with_system(prompt: Any, row: Fields) -> Any:
    """The prompt after the row's system message, which it may have already."""
    is_prompt = isinstance(prompt, str) or (isinstance(prompt, list) and all(map(is_message, prompt)))
    system = _text_in(row, "system") if is_prompt else ""
    if not system:
        return prompt
    messages = as_messages(prompt, system)
    others = [m["content"] for m in messages if m["role"] == "system" and str(m["content"]).strip() != system.strip()]
    if others:
        raise DataError(
            f"system is {system!r:.60}, but the prompt has another system message, {others[0]!r:.60}. Leave one out."
        )
    return messages


def _chosen_by_number(row: Fields, column: str) -> Fields:
    if "chosen" in row or not {"response_0", "response_1", column} <= set(row):
        return row
    given = row[column]
    if not isinstance(given, str | numbers.Real) or isinstance(given, bool) or given not in (0, 1, "0", "1"):
        raise DataError(
            f"{column} is {given!r:.60} ({type(given).__name__}). Give 0 or 1, the number of the preferred response."
        )
    number = (0, 1, "0", "1").index(given) % 2
    return {**row, "chosen": row[f"response_{number}"], "rejected": row[f"response_{1 - number}"]}


def _split_dialogues(row: Fields) -> Fields | None:
    """Splits off the messages that chosen and rejected share: the prompt. A single message becomes text."""
    chosen, rejected = (
        dialogue(answer) if isinstance(answer, str) else answer for answer in map(row.get, ("chosen", "rejected"))
    )
    if not isinstance(chosen, list) or not isinstance(rejected, list):
        return None
    # The last messages are answers even if they are equal.
    message_pairs = zip(chosen[:-1], rejected[:-1], strict=False)
    shared = sum(1 for _ in takewhile(lambda messages: messages[0] == messages[1], message_pairs))
    parts: Fields = {"prompt": chosen[:shared], "chosen": chosen[shared:], "rejected": rejected[shared:]}
    # Plain text also works with a model that has no chat template.
    if isinstance(row["chosen"], str) and all(len(messages) == 1 for messages in parts.values()):
        parts = {name: messages[0]["content"] for name, messages in parts.items()}
    return {**row, **parts, "prompt": _with_system(parts["prompt"], row)}


def _begins_with(answer: Any, messages: Sequence[Any]) -> bool:
    return isinstance(answer, list) and len(answer) > len(messages) and answer[: len(messages)] == messages
