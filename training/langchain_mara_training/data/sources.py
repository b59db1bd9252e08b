"""Opens data sources: lists, tables, files and data sets of the hub give their rows one after the other."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import datasets
import pyarrow as pa
from pyarrow.interchange import from_dataframe

from langchain_mara.exceptions import DataError
from langchain_mara_training.data.column_formats import Fields
from langchain_mara_training.data.files import BadRow, is_file_name, read_files, rows_of_batches
from langchain_mara_training.data.known_datasets import known_set
from langchain_mara_training.data.messages import without_nulls
from langchain_mara_training.data.row_report import RowReport


class NumberedRow(NamedTuple):
    """A row and where it is from.

    Attributes:
        number: Its number in the source, from 0. Rows of one ranked list share it.
        where: Source and number in words, for errors.
        row: The row.
    """

    number: int
    where: str
    row: Fields


@dataclass(frozen=True)
class HubOptions:
    """Which part of a data set on the hub is read; without effect on other sources.

    Attributes:
        split: Name of the split.
        name: Name of the configuration, where a data set has several.
        revision: Branch, tag or commit.
        streaming: Whether rows are read over the network as they are needed, and not stored first.
    """

    split: str = "train"
    name: str | None = None
    revision: str | None = None
    streaming: bool = False


@dataclass(eq=False)
class OpenedSource:
    """A source whose rows are read as they are needed, each once. No more than one row is held in memory.

    Attributes:
        source: What the user named or gave.
        hub: Which part of a data set on the hub.
        limit: Most rows to use; whoever iterates stops there.
        report: Counts the rows; decides about bad ones.
    """

    source: Any
    hub: HubOptions = field(default_factory=HubOptions)
    limit: int | None = None
    report: RowReport = field(default_factory=RowReport)

    def __post_init__(self) -> None:
        self._lost = 0
        self._items = iter(_items(self.source, self.hub, self._lose))

    @property
    def name(self) -> str:
        """Name of the source, for errors."""
        return str(self.source) if isinstance(self.source, str | Path) else f"the given {type(self.source).__name__}"

    def check_start(self) -> None:
        """Reads the first row, so that a wrong name shows before a model is loaded.

        Raises:
            DataError: If the source cannot be read or is empty.
        """
        first = next(self._items, None)
        if first is None:
            raise self._empty()
        self._items = chain([first], self._items)

    def __iter__(self) -> Iterator[NumberedRow]:
        is_empty = True
        for count, item in enumerate(self._items):
            is_empty = False
            self.report.rows += 1
            number = count + self._lost
            row = dict(item) if isinstance(item, Mapping) else {"prompt": item}
            yield NumberedRow(number, f"{self.name}, row {number}", without_nulls(row))
        if is_empty and not self._lost:
            raise self._empty()

    def _lose(self, error: DataError) -> None:
        """Counts a row that the file's format made unreadable."""
        self.report.refuse(error)
        self.report.rows += 1
        self._lost += 1

    def _empty(self) -> DataError:
        return DataError(f"{self.name} holds no rows. Give at least one.")


Source: TypeAlias = str | Path | datasets.Dataset | OpenedSource | Mapping[str, Any] | Iterable[Any]
"""Rows, prompts, a table, the path of a file or folder, `-`, or the name of a data set on the hub."""


def opened(source: Source, split: str = "train", report: RowReport | None = None, **hub: Any) -> OpenedSource:
    """Opens a source.

    Args:
        source: Any source; an opened one is returned as it is, with its own report.
        split: Split of a data set on the hub.
        report: Counts the rows; decides about bad ones. By default a bad row is an error.
        **hub: Further fields of `HubOptions`.
    """
    if isinstance(source, OpenedSource):
        return source
    return OpenedSource(source, HubOptions(split, **hub), report=report or RowReport())


def _items(source: Any, hub: HubOptions, bad_row: BadRow) -> Iterable[Any]:
    """The rows or prompts that a source holds, whatever contains them."""
    if isinstance(source, str) and not source.strip():
        raise DataError("The name of the data is empty. Give a file or the name of a data set on the hub.")
    if isinstance(source, str | Path):
        return read_files(source, bad_row) if is_file_name(source) else _hub_rows(source, hub)
    if isinstance(source, Mapping):
        return _rows_of_columns(source)
    if isinstance(source, datasets.Dataset | datasets.IterableDataset):
        return _plain_rows(source)
    if not isinstance(source, Iterable) and not _is_table(source):
        raise DataError(
            f"{source!r:.60} ({type(source).__name__}) holds no rows. Give a list of rows, a table or a file."
        )
    return _rows_of_table(source)


def _is_table(source: Any) -> bool:
    return any(hasattr(source, interface) for interface in ("__arrow_c_stream__", "__dataframe__"))


def _rows_of_table(source: Any) -> Iterable[Any]:
    """The rows of a table; whatever else one can iterate over is returned as it is."""
    # A column alone, such as a pandas Series, holds prompts, not cells of rows.
    if isinstance(source, pa.Array | pa.ChunkedArray):
        prompts: list[Any] = source.to_pylist()
        return prompts
    if not _is_table(source) or hasattr(source, "to_list"):
        rows: Iterable[Any] = source
        return rows
    convert = pa.table if hasattr(source, "__arrow_c_stream__") else from_dataframe
    return rows_of_batches(_arrow(convert, source).to_batches())


def _plain_rows(data: Any) -> Iterable[Any]:
    """Rows of a data set with Python's own values: its format may be tensors, or tables of one row."""
    kind = data.format["type"] if isinstance(data, datasets.Dataset) else None
    # A transform of the user's own is part of the data.
    rows: Iterable[Any] = data if kind == "custom" else data.with_format(None)
    return rows


def _arrow(convert: Callable[[Any], pa.Table], source: Any) -> pa.Table:
    try:
        return convert(source)
    except (pa.ArrowException, ValueError, TypeError, RuntimeError, NotImplementedError) as error:
        raise DataError(
            f"The given {type(source).__name__} cannot be read ({error}). Give columns whose cells are of one kind, or "
            "a list of rows."
        ) from None


def _rows_of_columns(columns: Mapping[str, Any]) -> list[Fields]:
    """Rows of a mapping from names to columns."""
    if any(isinstance(column, datasets.Dataset | datasets.IterableDataset) for column in columns.values()):
        splits = ", ".join(columns)
        raise DataError(f"The given {type(columns).__name__} holds the splits {splits}. Give one of them: data[…].")
    lengths = {name: len(column) for name, column in columns.items() if hasattr(column, "__len__")}
    texts = {name for name, column in columns.items() if isinstance(column, str)}
    if texts:
        raise DataError(
            "A dict is read as columns, each with a list of one cell for every row, but in this one "
            f"{', '.join(sorted(texts))} holds a text. If it is a single row, give it in a list: [row]."
        )
    if len(lengths) < len(columns) or len(set(lengths.values())) > 1:
        found = {name: lengths.get(name, "no list") for name in columns}
        raise DataError(
            "A dict of columns needs a list of the same length for each name, but this one has "
            f"{', '.join(f'{name}: {count}' for name, count in found.items())}. For a single row, give a list: [row]."
        )
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def _hub_rows(source: str | Path, hub: HubOptions) -> Iterable[Fields]:
    published = known_set(source)
    identifier, split = (
        (published.hub_id, published.splits.get(hub.split, hub.split)) if published else (str(source), hub.split)
    )
    # Options that were not given are left to `datasets`.
    given = {name: value for name in ("name", "revision", "streaming") if (value := getattr(hub, name))}
    try:
        rows: Iterable[Fields] = datasets.load_dataset(identifier, split=split, **given)
    except Exception as error:
        reason = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
        part = "".join(f", {name} {value}" for name, value in given.items() if name != "streaming")
        raise DataError(
            f"Cannot read {source} (split {hub.split}{part}): {reason}. "
            "Give a file of rows or the name of a data set on the hub; a prompt itself goes into a list."
        ) from error
    return _unbroken(rows, source) if hub.streaming else rows


def _unbroken(rows: Iterable[Fields], source: str | Path) -> Iterator[Fields]:
    """Rows of a stream; if the network fails, the error says where."""
    count = 0
    try:
        for row in rows:
            yield row
            count += 1
    except Exception as error:
        raise DataError(
            f"The stream of {source} broke off after {count:,} rows ({type(error).__name__}: {error}). Run again, or "
            "leave out streaming, which stores the data first."
        ) from error
