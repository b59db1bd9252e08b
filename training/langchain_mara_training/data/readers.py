"""Training data in: lists, `datasets.Dataset`, local files and hub names become rows in TRL's form."""

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
"""Text, or the messages of a conversation."""
Row = dict[str, Any]
Source: TypeAlias = str | Path | datasets.Dataset | Iterable[Any]
"""What the readers take: rows, prompts, a `datasets.Dataset`, a path, or a dataset's name on the hub."""

_FORMATS = {".json": "json", ".jsonl": "json", ".parquet": "parquet"}


def read_rows(source: Source, split: str = "train") -> list[Row]:
    """Rows of a data source.

    Args:
        source: Mappings, a `datasets.Dataset`, the path of a .json, .jsonl or .parquet file, a name of `KNOWN_SETS`, or
            a hub name.
        split: Which split of a hub dataset.

    Raises:
        DataError: If it cannot be read or is empty.
    """
    items = _load(source, split) if isinstance(source, str | Path) else source
    rows = [dict(row) if isinstance(row, Mapping) else {"prompt": row} for row in items]
    if not rows:
        raise DataError(f"{_name(source)} holds no rows.")
    return rows


def read_prompts(source: Source, split: str = "train", prompt_column: str | None = None) -> list[Row]:
    """Rows with a `prompt`; plain strings and lists of messages are prompts themselves.

    Of the data sets known by name, which say several things of most prompts, each prompt is read once.

    Args:
        source: Mappings, prompts, a `datasets.Dataset`, a file's path, a name of `KNOWN_SETS` or the hub.
        split: Which split of a hub dataset.
        prompt_column: Where the prompt stands; by default in `prompt`, `instruction` or `question`, or in what
            `chosen` and `rejected` begin with.

    Raises:
        DataError: If a row has no prompt.
    """
    rows = [with_prompt(row, prompt_column) for row in read_rows(source, split)]
    _require(rows, (prompt_column or "prompt",), source)
    if isinstance(source, str) and known_set(source) is not None:
        first: dict[str, Row] = {}
        for row in rows:
            first.setdefault(_key(row["prompt"]), row)
        rows = list(first.values())
    return rows


def read_pairs(source: Source, split: str = "train", preferred: Preferred = "better") -> list[Row]:
    """Preference pairs in TRL's form: `prompt`, `chosen` and `rejected`, each text or messages.

    A missing prompt is taken from the messages that chosen and rejected begin with. Other columns stay.

    Args:
        source: As for `read_prompts`; see `columns.with_pair` for the columns that are understood.
        split: Which split of a hub dataset.
        preferred: Whether the `better` or the `safer` answer is the chosen one, where rows tell both.

    Raises:
        DataError: If a column is missing.
    """
    rows = [with_pair(row, preferred) for row in read_rows(source, split)]
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
        same = first.setdefault(_key(row["prompt"]), number)
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
        elif published := known_set(source):
            loaded = datasets.load_dataset(published.hub_id, split=published.splits.get(split, split))
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


def _key(prompt: Prompt) -> str:
    """The same for the same prompts, and for no others."""
    return json.dumps(prompt, sort_keys=True, ensure_ascii=False)


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
