"""Columns of published data sets as this library reads them: `prompt`, `chosen` and `rejected`.

Everything is a function of one row, so a local copy of a data set reads as the hub's does.
"""

import re
from collections.abc import Sequence
from itertools import takewhile
from typing import Any, Literal

Fields = dict[str, Any]
Preferred = Literal["better", "safer"]

PROMPT_COLUMNS = ("prompt", "instruction", "question")
"""Names that a prompt usually has; the first that a row has counts."""

_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def with_prompt(row: Fields, column: str | None = None) -> Fields:
    """A row with its `prompt`, where it has one under a usual name, or in what its two answers begin with.

    Args:
        row: Stays as it is.
        column: Name of the prompt's column; by default `prompt`, `instruction`, `question`.
    """
    names = PROMPT_COLUMNS if column is None else (column,)
    found = next((name for name in names if name in row), None)
    if found is not None:
        return {**row, "prompt": row[found]}
    pair = _split_dialogues(row)
    return row if column is not None or pair is None else pair


def with_pair(row: Fields, preferred: Preferred = "better") -> Fields:
    """A row with `prompt`, `chosen` and `rejected`, where its columns are known to hold them.

    Two answers and which is preferred (`response_0`, `response_1`, `better_response_id`, `safer_response_id`, as in
    PKU-SafeRLHF); dialogues as one text (HH-RLHF); messages that begin with the prompt (UltraFeedback, TRL).

    Args:
        row: Stays as it is.
        preferred: Which of two preferences counts, where there are both.
    """
    row = _chosen_by_number(row, f"{preferred}_response_id")
    prompt = next((row[name] for name in PROMPT_COLUMNS if name in row), None)
    if prompt is None:
        return _split_dialogues(row) or row
    chosen, rejected = row.get("chosen"), row.get("rejected")
    begins = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if all(_begins(answer, begins) for answer in (chosen, rejected)):
        chosen, rejected = chosen[len(begins) :], rejected[len(begins) :]  # type: ignore[index]
    answers = {name: one for name, one in (("chosen", chosen), ("rejected", rejected)) if one is not None}
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
    """Takes off what chosen and rejected begin with, which is the prompt; a single message becomes text."""
    chosen, rejected = (dialogue(one) if isinstance(one, str) else one for one in map(row.get, ("chosen", "rejected")))
    if not isinstance(chosen, list) or not isinstance(rejected, list):
        return None
    # Answers that are the same still are answers.
    both = zip(chosen[:-1], rejected[:-1], strict=False)
    shared = sum(1 for _ in takewhile(lambda messages: messages[0] == messages[1], both))
    parts = {"prompt": chosen[:shared], "chosen": chosen[shared:], "rejected": rejected[shared:]}
    # Text can be asked of a model without a chat template, too.
    if isinstance(row["chosen"], str) and all(len(part) == 1 for part in parts.values()):
        return {**row, **{name: part[0]["content"] for name, part in parts.items()}}
    return {**row, **parts}


def _begins(answer: Any, messages: Sequence[Any]) -> bool:
    return isinstance(answer, list) and len(answer) > len(messages) and answer[: len(messages)] == messages
