"""Converts the columns of published data sets to `prompt`, `chosen` and `rejected`.

Every function converts a single row, so a local copy of a data set reads like the one on the hub.
"""

import re
from collections.abc import Sequence
from itertools import takewhile
from typing import Any, Literal

Fields = dict[str, Any]
Preferred = Literal["better", "safer"]

PROMPT_COLUMNS = ("prompt", "instruction", "question")
"""Usual names of the prompt's column; the first one that a row has is used."""

_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def with_prompt(row: Fields, column: str | None = None) -> Fields:
    """A row with its `prompt`, taken from a usual column or from the start that its two answers share.

    Args:
        row: Row to convert; it is not changed.
        column: Name of the prompt's column; by default `prompt`, `instruction` or `question`.

    Returns:
        A new row, or the row itself if it has no prompt.
    """
    names = PROMPT_COLUMNS if column is None else (column,)
    prompt_column = next((name for name in names if name in row), None)
    if prompt_column is not None:
        return {**row, "prompt": row[prompt_column]}
    pair = _split_dialogues(row)
    return row if column is not None or pair is None else pair


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
    """
    row = _chosen_by_number(row, f"{preferred}_response_id")
    prompt = next((row[name] for name in PROMPT_COLUMNS if name in row), None)
    if prompt is None:
        return _split_dialogues(row) or row
    chosen, rejected = row.get("chosen"), row.get("rejected")
    opening = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if all(_begins_with(answer, opening) for answer in (chosen, rejected)):
        chosen, rejected = chosen[len(opening) :], rejected[len(opening) :]  # type: ignore[index]
    answers = {name: answer for name, answer in (("chosen", chosen), ("rejected", rejected)) if answer is not None}
    return {**row, "prompt": prompt, **answers}


def dialogue(text: str) -> list[dict[str, str]] | None:
    r"""Messages of a dialogue such as "\n\nHuman: Hi.\n\nAssistant: Hello."; None for any other text."""
    opening, *turns = _TURN.split(text)
    if opening.strip() or not turns:
        return None
    roles, contents = turns[::2], turns[1::2]
    pairs = zip(roles, contents, strict=True)
    return [{"role": _ROLES[role], "content": content.strip()} for role, content in pairs]


def _chosen_by_number(row: Fields, column: str) -> Fields:
    if "chosen" in row or not {"response_0", "response_1"} <= set(row) or row.get(column) not in (0, 1):
        return row
    number = int(row[column])
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
    parts = {"prompt": chosen[:shared], "chosen": chosen[shared:], "rejected": rejected[shared:]}
    # Plain text also works with a model that has no chat template.
    if isinstance(row["chosen"], str) and all(len(messages) == 1 for messages in parts.values()):
        return {**row, **{name: messages[0]["content"] for name, messages in parts.items()}}
    return {**row, **parts}


def _begins_with(answer: Any, messages: Sequence[Any]) -> bool:
    return isinstance(answer, list) and len(answer) > len(messages) and answer[: len(messages)] == messages
