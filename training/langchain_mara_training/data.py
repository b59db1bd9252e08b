"""Training data in: lists, `datasets.Dataset`, local files and hub names become rows in TRL's form."""

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeAlias

import datasets

from langchain_mara.exceptions import DataError

Message = dict[str, str]
Prompt = str | list[Message]
"""Text, or the messages of a conversation."""
Row = dict[str, Any]
Source: TypeAlias = str | Path | datasets.Dataset | Iterable[Any]
"""What the readers take: rows, prompts, a `datasets.Dataset`, a path, or a dataset's name on the hub."""

_FORMATS = {".json": "json", ".jsonl": "json", ".parquet": "parquet"}


def read_rows(source: Source, split: str = "train") -> list[Row]:
    """Rows of a data source.

    Args:
        source: Mappings, a `datasets.Dataset`, the path of a .json, .jsonl or .parquet file, or a hub name.
        split: Which split of a hub dataset.

    Raises:
        DataError: If it cannot be read or is empty.
    """
    items = _load(source, split) if isinstance(source, str | Path) else source
    rows = [dict(row) if isinstance(row, Mapping) else {"prompt": row} for row in items]
    if not rows:
        raise DataError(f"{_name(source)} holds no rows.")
    return rows


def read_prompts(source: Source, split: str = "train") -> list[Row]:
    """Rows with a `prompt`; plain strings and lists of messages are prompts themselves.

    Raises:
        DataError: If a row has no prompt.
    """
    rows = [_with_prompt(row) for row in read_rows(source, split)]
    _require(rows, ("prompt",), source)
    return rows


def read_pairs(source: Source, split: str = "train") -> list[Row]:
    """Preference pairs in TRL's form: `prompt`, `chosen` and `rejected`, each text or messages.

    A missing prompt is taken from the messages that chosen and rejected begin with. Other columns stay.

    Raises:
        DataError: If a column is missing.
    """
    rows = [_with_prompt(row) for row in read_rows(source, split)]
    _require(rows, ("prompt", "chosen", "rejected"), source)
    return rows


def prompt_numbers(rows: Sequence[Row]) -> list[int]:
    """The group of each row: its column `group`, or else the number of the first row with the same prompt.

    Raises:
        DataError: If a group is no integer.
    """
    first: dict[str, int] = {}
    numbers = []
    for number, row in enumerate(rows):
        same = first.setdefault(json.dumps(row["prompt"], sort_keys=True, ensure_ascii=False), number)
        group = row.get("group", same)
        if not isinstance(group, int):
            raise DataError(f"Row {number}: the column group must hold integers, not {group!r}. Rename or number it.")
        numbers.append(group)
    return numbers


def text_of(answer: Prompt) -> str:
    """An answer's text; of messages, that of the last one."""
    return answer if isinstance(answer, str) else answer[-1]["content"]


def _load(source: str | Path, split: str) -> Iterable[Row]:
    path = Path(source).expanduser()
    if path.suffix in _FORMATS and not path.is_file():
        raise DataError(f"There is no file {path}.")
    try:
        if path.suffix in _FORMATS:
            loaded = datasets.load_dataset(_FORMATS[path.suffix], data_files=str(path), split="train")
        else:
            loaded = datasets.load_dataset(str(source), split=split)
    except Exception as error:
        known = ", ".join(_FORMATS)
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DataError(
            f"Cannot read {source} (split {split}): {reason}. Give a {known} file or a dataset's name on the hub."
        ) from error
    rows: Iterable[Row] = loaded
    return rows


def _with_prompt(row: Row) -> Row:
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if "prompt" in row or not isinstance(chosen, list) or not isinstance(rejected, list):
        return row
    both = zip(chosen, rejected, strict=False)
    shared = sum(1 for _ in takewhile(lambda messages: messages[0] == messages[1], both))
    return {**row, "prompt": chosen[:shared], "chosen": chosen[shared:], "rejected": rejected[shared:]}


def _require(rows: Sequence[Row], columns: Sequence[str], source: Source) -> None:
    for number, row in enumerate(rows):
        bad = [column for column in columns if not _is_prompt(row.get(column))]
        if bad:
            raise DataError(
                f"{_name(source)}, row {number}: {', '.join(bad)} must be text or a list of messages "
                f"({{'role': …, 'content': …}}); the row has the columns {', '.join(row) or 'none'}. "
                "Rename or convert the columns."
            )


def _is_prompt(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(one, Mapping) and {"role", "content"} <= set(one) for one in value)
    return isinstance(value, str)


def _name(source: Source) -> str:
    return str(source) if isinstance(source, str | Path) else f"the {type(source).__name__} given"
