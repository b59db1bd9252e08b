"""Reads training data: the rows of every source become rows in TRL's format."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

from langchain_mara.exceptions import DataError
from langchain_mara_training.data.column_formats import Preferred, is_message, with_prompt
from langchain_mara_training.data.feedback import PAIR, UNPAIRED, is_unpaired, lacks_label, pairs_of, unpaired
from langchain_mara_training.data.known_datasets import known_set
from langchain_mara_training.data.messages import with_plain_messages
from langchain_mara_training.data.row_report import RowReport, placed
from langchain_mara_training.data.row_values import group_of, weight_of
from langchain_mara_training.data.sources import NumberedRow, OpenedSource, opened

# All that reads data imports it from here.
from langchain_mara_training.data.sources import Source as Source  # noqa: PLC0414

Message = dict[str, Any]
Prompt = str | list[Message]
"""A text, or the messages of a conversation."""
Row = dict[str, Any]


def read_rows(source: Source, split: str = "train", **hub: Any) -> list[Row]:
    """Rows of a data source, without columns that are null.

    Args:
        source: Mappings; a `datasets.Dataset`; a dict of columns; a pandas or polars DataFrame, or anything else that
            Arrow reads; the path of a file (JSON, JSON lines, CSV, TSV, also compressed, Parquet, Arrow) or of a folder
            of them; `-` for standard input; a name in `KNOWN_SETS`; or the name of a data set on the hub.
        split: Split of a data set on the hub.
        **hub: Its `name` (configuration), `revision`, and whether it is read by `streaming`.

    Raises:
        DataError: If the source cannot be read or is empty.
    """
    return [numbered.row for numbered in opened(source, split, **hub)]


def read_prompts(source: Source, split: str = "train", prompt_column: str | None = None, **hub: Any) -> list[Row]:
    """Rows with a `prompt`. Plain strings and lists of messages are prompts themselves.

    Most data sets in `KNOWN_SETS` have several rows for a prompt; of those, only the first is read.

    Args:
        source: Mappings, prompts, a `datasets.Dataset`, the path of a file, a name in `KNOWN_SETS`, or the name of a
            data set on the hub.
        split: Split of a data set on the hub.
        prompt_column: Name of the prompt's column. By default the prompt is read from `prompt`, `instruction` or
            `question`, or from the start that `chosen` and `rejected` share.
        **hub: See `read_rows`.

    Raises:
        DataError: If a row has no prompt.
    """
    return [numbered.row for numbered in iterate_prompts(source, split, prompt_column, **hub)]


def iterate_prompts(
    source: Source,
    split: str = "train",
    prompt_column: str | None = None,
    report: RowReport | None = None,
    **hub: Any,
) -> Iterator[NumberedRow]:
    """The rows of `read_prompts` with their places, one after the other.

    Args:
        source: See `read_prompts`.
        split: Split of a data set on the hub.
        prompt_column: Name of the prompt's column.
        report: Counts the rows; decides about bad ones. By default a bad row is an error.
        **hub: See `read_rows`.
    """
    rows = opened(source, split, report, **hub)
    is_known = isinstance(rows.source, str) and known_set(rows.source) is not None
    seen: set[str] = set()
    used = 0
    for numbered in rows:
        try:
            row = _checked(with_prompt(numbered.row, prompt_column), (prompt_column or "prompt",), numbered.where)
        except DataError as error:
            rows.report.refuse(placed(error, numbered.where))
            continue
        row = {**row, "prompt": row[prompt_column]} if prompt_column else row
        key = _key(row["prompt"]) if is_known else str(used)
        if key in seen:
            continue
        if is_known:
            seen.add(key)
        yield numbered._replace(row=row)
        used += 1
        if used == rows.limit:
            return


def read_pairs(source: Source, split: str = "train", preferred: Preferred = "better", **hub: Any) -> list[Row]:
    """Preference pairs in TRL's format: `prompt`, `chosen` and `rejected`, each a text or messages.

    A missing prompt is taken from the messages that chosen and rejected share. Of a ranked list, each two responses are
    a pair. Other columns are kept.

    Args:
        source: Data as for `read_prompts`; `column_formats.with_pair` lists the columns that are understood.
        split: Split of a data set on the hub.
        preferred: Whether the `better` or the `safer` answer is the chosen one, for rows that have both.
        **hub: See `read_rows`.

    Raises:
        DataError: If a column is missing.
    """
    rows = opened(source, split, **hub)
    pairs = [numbered.row for numbered in _feedback(rows, preferred, with_unpaired=False)]
    if not pairs:
        raise DataError(f"{rows.name} holds no pairs: all responses score the same. Give some that differ.")
    return pairs


def iterate_feedback(
    source: Source, split: str = "train", report: RowReport | None = None, **hub: Any
) -> Iterator[NumberedRow]:
    """Pairs as `read_pairs` reads them, and rows of unpaired feedback, one after the other, with `weight` and `group`.

    Args:
        source: Data as for `read_pairs`, or rows with `prompt`, `completion` and `label`.
        split: Split of a data set on the hub.
        report: Counts the rows; decides about bad ones. By default a bad row is an error.
        **hub: See `read_rows`.

    Yields:
        Rows with `prompt` and either `chosen` and `rejected`, or `completion` and `label` (True for accept). `weight`
        is a number, and `group` an integer of 64 bits if it is there.
    """
    yield from _feedback(opened(source, split, report, **hub), "better", with_unpaired=True)


def _feedback(rows: OpenedSource, preferred: Preferred, *, with_unpaired: bool) -> Iterator[NumberedRow]:
    used = 0
    for numbered in rows:
        where = numbered.where
        try:
            if with_unpaired and (is_unpaired(numbered.row) or lacks_label(numbered.row)):
                found = [_checked(unpaired(numbered.row, where), UNPAIRED, where)]
            else:
                found = [_checked(pair, PAIR, where) for pair in pairs_of(numbered.row, preferred, where)]
            if with_unpaired:
                found = [_with_numbers(row, where) for row in found]
        except DataError as error:
            rows.report.refuse(placed(error, where))
            continue
        rows.report.equal += not found
        for row in found:
            yield numbered._replace(row=row)
        used += 1
        if used == rows.limit:
            return


def _with_numbers(row: Row, where: str) -> Row:
    group = group_of(row, where)
    numbers = {"weight": weight_of(row, where)} | ({} if group is None else {"group": group})
    return {**{name: value for name, value in row.items() if name != "group"}, **numbers}


def prompt_numbers(rows: Sequence[Row]) -> list[int]:
    """The group of each row: its column `group`, or else the number of the first row with the same prompt.

    Raises:
        DataError: If a group is not an integer.
    """
    groups = Groups()
    return [groups.of(NumberedRow(number, f"Row {number}", row)) for number, row in enumerate(rows)]


class Groups:
    """Numbers the groups of rows that come one after the other; holds a digest of each different prompt."""

    def __init__(self) -> None:
        self._first_numbers: dict[bytes, int] = {}

    def of(self, numbered: NumberedRow) -> int:
        """The group of a row: its column `group`, or else the number of the first row with the same prompt.

        Raises:
            DataError: If a group is not an integer of 64 bits.
        """
        key = hashlib.sha256(_key(numbered.row["prompt"]).encode("utf-8", "surrogatepass")).digest()[:16]
        first_number = self._first_numbers.setdefault(key, numbered.number)
        group = group_of(numbered.row, numbered.where)
        return first_number if group is None else group


def answer_text(answer: Prompt) -> str:
    """The text of an answer: all that the assistant says in it."""
    if isinstance(answer, str):
        return answer
    return "\n\n".join(_said(message) for message in answer if message["role"] == "assistant")


def conversation_text(prompt: Prompt) -> str:
    """The text of a prompt: that of its only message, or of all messages with their roles."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return _said(prompt[0])
    return "\n\n".join(f"{message['role']}: {_said(message)}" for message in prompt)


def _said(message: Message) -> str:
    """The text of a message, and each of its tool calls as JSON."""
    calls = [json.dumps(call["function"], ensure_ascii=False) for call in message.get("tool_calls") or ()]
    return "\n".join(filter(None, [message["content"], *calls]))


def _key(prompt: Prompt) -> str:
    """A key that is equal exactly for equal prompts."""
    return json.dumps(prompt, sort_keys=True, ensure_ascii=False)


def _checked(row: Row, columns: Sequence[str], where: str) -> Row:
    """A row whose columns are texts or messages with a text each."""
    unusable = [column for column in columns if not _is_prompt(row.get(column))]
    if unusable:
        hint = " Unpaired feedback is read by PreferenceLabeler and mara label." if is_unpaired(row) else ""
        raise DataError(
            f"{where}: {', '.join(unusable)} must be text or a list of messages "
            f"({{'role': …, 'content': …}}); the row has the columns {', '.join(row) or 'none'}. "
            f"Rename or convert the columns.{hint}"
        )
    return with_plain_messages(row, tuple(columns), where)


def _is_prompt(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(map(is_message, value))
    return isinstance(value, str)
