"""Reads training data: lists, `datasets.Dataset`, local files and hub data sets become rows in TRL's format."""

import glob
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import datasets

from langchain_mara.exceptions import DataError
from langchain_mara_training.data.column_formats import Preferred, with_pair, with_prompt
from langchain_mara_training.data.known_datasets import known_set

Message = dict[str, str]
Prompt = str | list[Message]
"""A text, or the messages of a conversation."""
Row = dict[str, Any]
Source: TypeAlias = str | Path | datasets.Dataset | Iterable[Any]
"""Rows, prompts, a `datasets.Dataset`, the path of a file, or the name of a data set on the hub."""

_FORMATS = {".json": "json", ".jsonl": "json", ".parquet": "parquet"}


def read_rows(source: Source, split: str = "train") -> list[Row]:
    """Rows of a data source.

    Args:
        source: Mappings, a `datasets.Dataset`, the path of a .json, .jsonl or .parquet file, a name in `KNOWN_SETS`,
            or the name of a data set on the hub.
        split: Split of a data set on the hub.

    Raises:
        DataError: If the source cannot be read or is empty.
    """
    items = _load(source, split) if isinstance(source, str | Path) else source
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


def text_of(answer: Prompt) -> str:
    """The text of an answer; for messages, the text of the last one."""
    return answer if isinstance(answer, str) else answer[-1]["content"]


def _load(source: str | Path, split: str) -> Iterable[Row]:
    path = Path(source).expanduser()
    if path.suffix in _FORMATS and not path.is_file():
        raise DataError(f"There is no file {path}. Check the path.")
    try:
        if path.suffix in _FORMATS:
            # A name is a pattern for `datasets`: `pairs[1].jsonl` would read `pairs1.jsonl`.
            loaded = datasets.load_dataset(_FORMATS[path.suffix], data_files=glob.escape(str(path)), split="train")
        elif published := known_set(source):
            loaded = datasets.load_dataset(published.hub_id, split=published.splits.get(split, split))
        else:
            loaded = datasets.load_dataset(str(source), split=split)
    except Exception as error:
        suffixes = ", ".join(_FORMATS)
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DataError(
            f"Cannot read {source} (split {split}): {reason}. "
            f"Give a {suffixes} file or the name of a data set on the hub."
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
        return bool(value) and all(isinstance(item, Mapping) and {"role", "content"} <= set(item) for item in value)
    return isinstance(value, str)


def _name(source: Source) -> str:
    return str(source) if isinstance(source, str | Path) else f"the given {type(source).__name__}"
