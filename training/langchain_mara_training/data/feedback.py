"""Reads what people think of answers: pairs, ranked lists and thumbs become rows of a few forms.

- A pair has `prompt`, `chosen` and `rejected`.
- A ranked list (`responses` with `scores` or `ranks`) becomes a pair for each two responses of which one is better. The
  weight of the row is divided among its pairs.
- Unpaired feedback has `prompt`, `completion` and a `label` (TRL's layout for KTO).
"""

from collections.abc import Mapping
from itertools import combinations
from typing import Any

from langchain_mara.exceptions import DataError
from langchain_mara_training.data.column_formats import CONVERSATION_COLUMNS, Fields, Preferred, with_pair, with_prompt
from langchain_mara_training.data.row_values import label_of, scores_of, weight_of

PAIR = ("prompt", "chosen", "rejected")
UNPAIRED = ("prompt", "completion")
_COMPLETIONS = ("completion", "response", "output")
_MOST_RESPONSES = 64


def pairs_of(row: Fields, preferred: Preferred, where: str) -> list[Fields]:
    """The pairs of a row: itself, or those of its ranked responses; none if all responses are equally good.

    Args:
        row: Row without nulls, whose columns may be in any form that `with_pair` reads.
        preferred: Which preference to use if the row has both.
        where: Its place, for errors.

    Raises:
        DataError: If a ranked list cannot be used.
    """
    if "responses" not in row or "chosen" in row:
        return [with_pair(row, preferred)]
    responses = row["responses"]
    if not isinstance(responses, list) or not 1 < len(responses) <= _MOST_RESPONSES:
        found = f"{len(responses)} of them" if isinstance(responses, list) else type(responses).__name__
        raise DataError(f"{where}: responses must be a list of 2 to {_MOST_RESPONSES} answers, but is {found}.")
    scores = scores_of(row, len(responses), where)
    numbers = sorted(range(len(responses)), key=lambda number: -scores[number])
    ranked = [(one, two) for one, two in combinations(numbers, 2) if scores[one] > scores[two]]
    rest = {name: value for name, value in row.items() if name not in ("responses", "scores", "ranks")}
    weight = {"weight": weight_of(row, where) / max(len(ranked), 1)}
    return [
        with_pair({**rest, **weight, "chosen": responses[one], "rejected": responses[two]}, preferred)
        for one, two in ranked
    ]


def is_unpaired(row: Fields) -> bool:
    """Whether a row is unpaired feedback: a label, and an answer or a conversation that ends with one."""
    has_answer = any(name in row for name in (*_COMPLETIONS, *CONVERSATION_COLUMNS))
    return "label" in row and has_answer and not {"chosen", "responses"} & set(row)


def lacks_label(row: Fields) -> bool:
    """Whether a row would be unpaired feedback if it had a label."""
    answers = {"label", "chosen", "rejected", "responses", "response_0"} & set(row)
    return not answers and any(name in row for name in _COMPLETIONS)


def unpaired(row: Fields, where: str) -> Fields:
    """A row of unpaired feedback with its `prompt`, `completion` and `label`, which is True for accept.

    Args:
        row: Row without nulls. Without an answer, the end of its conversation is the completion.
        where: Its place, for errors.

    Raises:
        DataError: If the label is missing or says neither accept nor reject, or the completion is empty.
    """
    if "label" not in row:
        raise DataError(
            f"{where}: label is null or missing. Write true for an answer to accept and false for one to reject, "
            "or give a pair of answers, chosen and rejected."
        )
    answer: Any = next((row[name] for name in _COMPLETIONS if name in row), None)
    # The answer has the place of a chosen one, so all forms of pairs are read here, too.
    converted = with_pair({**row, "chosen": answer}) if answer is not None else with_prompt(row)
    prompt, completion = converted.get("prompt"), converted.get("chosen")
    if answer is None and isinstance(prompt, list):
        conversation = next(converted[name] for name in CONVERSATION_COLUMNS if name in converted)
        begun = next((i for i in reversed(range(len(conversation))) if conversation[i].get("role") != "assistant"), -1)
        completion = conversation[begun + 1 :]
    if completion == "" or (isinstance(completion, list) and not any(map(_says_something, completion))):
        raise DataError(f"{where}: completion is empty. Give an answer, or leave the row out.")
    kept = {name: value for name, value in converted.items() if name not in ("chosen", "prompt", "completion")}
    found = {"prompt": prompt, "completion": completion, "label": label_of(row["label"], where)}
    return {**kept, **{name: value for name, value in found.items() if value is not None}}


def _says_something(message: Any) -> bool:
    return not isinstance(message, Mapping) or bool(message.get("content") or message.get("tool_calls"))
