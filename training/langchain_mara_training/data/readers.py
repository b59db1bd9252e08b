"""Reads training data: lists, tables, files and data sets of the hub become rows in TRL's format."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import pyarrow as pa
from pyarrow.interchange import from_dataframe

from langchain_mara.exceptions import DataError
from langchain_mara_training.data.column_formats import Preferred, is_message, with_pair, with_prompt
from langchain_mara_training.data.files import is_file_name, read_files, rows_of_batches
from langchain_mara_training.data.known_datasets import known_set

Message = dict[str, str]
Prompt = str | list[Message]
"""A text, or the messages of a conversation."""
Row = dict[str, Any]
Source: TypeAlias = str | Path | datasets.Dataset | Mapping[str, Any] | Iterable[Any]
"""Rows, prompts, a table, the path of a file or folder, `-`, or the name of a data set on the hub."""


def read_rows(source: Source, split: str = "train") -> list[Row]:
    """Rows of a data source.

    Args:
        source: Mappings; a `datasets.Dataset`; a dict of columns; a pandas or polars DataFrame, or anything else that
            Arrow reads; the path of a file (JSON, JSON lines, CSV, TSV, also compressed, Parquet, Arrow) or of a folder
            of them; `-` for standard input; a name in `KNOWN_SETS`; or the name of a data set on the hub.
        split: Split of a data set on the hub.

    Raises:
        DataError: If the source cannot be read or is empty.
    """
    items = _items(source, split)
    rows = [dict(row) if isinstance(row, Mapping) else {"prompt": row} for row in items]
    if not rows:
        raise DataError(f"{_name(source)} holds no rows. Give at least one.")
    return rows


def read_prompts(source: Source, split: str = "train", prompt_column: str | None = None) -> list[Row]:
    """Rows with a `prompt`. Plain strings and lists of messages are prompts themselves.

    Most data sets in `KNOWN_SETS` have several rows for a prompt; of those, only the first is read.

    Args:
        source: Mappings, prompts, a `datasets.Dataset`, the path of a file, a name in `KNOWN_SETS`, or the name of a
            data set on the hub.
        split: Split of a data set on the hub.
        prompt_column: Name of the prompt's column. By default the prompt is read from `prompt`, `instruction` or
            `question`, or from the start that `chosen` and `rejected` share.

    Raises:
        DataError: If a row has no prompt.
    """
    rows = [with_prompt(row, prompt_column) for row in read_rows(source, split)]
    _require(rows, (prompt_column or "prompt",), source)
    if isinstance(source, str) and known_set(source) is not None:
        first_rows: dict[str, Row] = {}
        for row in rows:
            first_rows.setdefault(_key(row["prompt"]), row)
        rows = list(first_rows.values())
    return rows


def read_pairs(source: Source, split: str = "train", preferred: Preferred = "better") -> list[Row]:
    """Preference pairs in TRL's format: `prompt`, `chosen` and `rejected`, each a text or messages.

    A missing prompt is taken from the messages that chosen and rejected share. Other columns are kept.

    Args:
        source: Data as for `read_prompts`; `column_formats.with_pair` lists the columns that are understood.
        split: Split of a data set on the hub.
        preferred: Whether the `better` or the `safer` answer is the chosen one, for rows that have both.

    Raises:
        DataError: If a column is missing.
    """
    rows = [with_pair(row, preferred) for row in read_rows(source, split)]
    _require(rows, ("prompt", "chosen", "rejected"), source)
    return rows


def prompt_numbers(rows: Sequence[Row]) -> list[int]:
    """The group of each row: its column `group`, or else the number of the first row with the same prompt.

    Raises:
        DataError: If a group is not an integer.
    """
    first_numbers: dict[str, int] = {}
    numbers = []
    for number, row in enumerate(rows):
        first_number = first_numbers.setdefault(_key(row["prompt"]), number)
        group = row.get("group", first_number)
        if not isinstance(group, int):
            raise DataError(
                f"Row {number}: the column group must hold integers, not {group!r}. Rename or convert the column."
            )
        numbers.append(group)
    return numbers


def answer_text(answer: Prompt) -> str:
    """The text of an answer: all that the assistant says in it."""
    if isinstance(answer, str):
        return answer
    return "\n\n".join(message["content"] or "" for message in answer if message["role"] == "assistant")


def conversation_text(prompt: Prompt) -> str:
    """The text of a prompt: that of its only message, or of all messages with their roles."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return prompt[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content'] or ''}" for message in prompt)


def _items(source: Source, split: str) -> Iterable[Any]:
    """The rows or prompts that a source holds, whatever contains them."""
    if isinstance(source, str | Path):
        return read_files(source) if is_file_name(source) else _hub_rows(source, split)
    if isinstance(source, Mapping):
        return _rows_of_columns(source)
    if hasattr(source, "__arrow_c_stream__") and not isinstance(source, datasets.Dataset):
        return rows_of_batches(_arrow(pa.table, source).to_batches())
    if hasattr(source, "__dataframe__"):
        return rows_of_batches(_arrow(from_dataframe, source).to_batches())
    return source


def _arrow(convert: Callable[[Any], pa.Table], source: Any) -> pa.Table:
    try:
        return convert(source)
    except (pa.ArrowException, TypeError, RuntimeError, NotImplementedError) as error:
        raise DataError(
            f"The given {type(source).__name__} cannot be read ({error}). Give columns whose cells are of one kind, or "
            "a list of rows."
        ) from None


def _rows_of_columns(columns: Mapping[str, Any]) -> list[Row]:
    """Rows of a mapping from names to columns."""
    if any(isinstance(column, datasets.Dataset | datasets.IterableDataset) for column in columns.values()):
        splits = ", ".join(columns)
        raise DataError(f"The given {type(columns).__name__} holds the splits {splits}. Give one of them: data[…].")
    lengths = {name: len(column) for name, column in columns.items() if not isinstance(column, str)}
    if len(lengths) < len(columns) or len(set(lengths.values())) > 1:
        raise DataError(
            "A dict of columns needs a list of the same length for each name, but this one has "
            f"{', '.join(f'{name}: {lengths.get(name, 1)}' for name in columns)}. For a single row, give a list: [row]."
        )
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def _hub_rows(source: str | Path, split: str) -> Iterable[Row]:
    try:
        if published := known_set(source):
            loaded = datasets.load_dataset(published.hub_id, split=published.splits.get(split, split))
        else:
            loaded = datasets.load_dataset(str(source), split=split)
    except Exception as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DataError(
            f"Cannot read {source} (split {split}): {reason}. "
            "Give a file of rows or the name of a data set on the hub; a prompt itself goes into a list."
        ) from error
    rows: Iterable[Row] = loaded
    return rows


def _key(prompt: Prompt) -> str:
    """A key that is equal exactly for equal prompts."""
    return json.dumps(prompt, sort_keys=True, ensure_ascii=False)


def _require(rows: Sequence[Row], columns: Sequence[str], source: Source) -> None:
    for number, row in enumerate(rows):
        unusable = [column for column in columns if not _is_prompt(row.get(column))]
        if unusable:
            raise DataError(
                f"{_name(source)}, row {number}: {', '.join(unusable)} must be text or a list of messages "
                f"({{'role': …, 'content': …}}); the row has the columns {', '.join(row) or 'none'}. "
                "Rename or convert the columns."
            )


def _is_prompt(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(map(is_message, value))
    return isinstance(value, str)


def _name(source: Source) -> str:
    return str(source) if isinstance(source, str | Path) else f"the given {type(source).__name__}"
