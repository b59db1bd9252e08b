"""Reads files of rows: JSON, JSON lines, CSV and TSV, all of them compressed or not, Parquet and Arrow.

Text stays text: a date remains the letters it was written with, `NA` is a word, and integers keep all their digits.
Compressed files are unpacked as they are read, and never as a whole.
"""

import csv
import gzip
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
from pyarrow import parquet

from langchain_mara.exceptions import DataError
from langchain_mara_training.data.column_formats import SHAREGPT_KEYS, Fields, is_message

MOST_ROWS = 100_000_000
"""Most rows of a file. A few bytes can declare any number of them."""
MOST_ROW_BYTES = 64 * 2**20
"""Most bytes of one row of text, or of a whole `.json` file that is not lines."""
STANDARD_INPUT = "-"
"""The name of standard input, which holds JSON lines."""

_NUMBERS = {"group", "weight"}
_LISTS = {"responses", "scores", "ranks", "tools"}
_COMPRESSED = {".gz", ".zst"}
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "Zstandard", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}


def is_file_name(source: str | Path) -> bool:
    """Whether a source is standard input, a folder or file of rows that exists, or is named like one."""
    return str(source) == STANDARD_INPUT or kind_of(Path(source)) is not None or Path(source).expanduser().is_dir()


def kind_of(path: Path) -> str | None:
    """The suffix that says how a file is read, without that of its compression; None for other files."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in _READERS else None


BadRow = Callable[[DataError], None]
"""What is told of a row that cannot be read: it raises the error, or returns, and the row is left out."""


def read_files(source: str | Path, bad_row: BadRow | None = None) -> Iterator[Fields]:
    """Rows of a file, of all files in a folder in the order of their names, or of standard input.

    Args:
        source: Path, or `-` for standard input.
        bad_row: What to do about a bad row that others can follow, such as a broken line; by default it raises.

    Yields:
        Rows as they are read.

    Raises:
        DataError: If a file is missing, is not what its name says, or a row is too long.
    """
    bad_row = bad_row or _refuse
    if str(source) == STANDARD_INPUT:
        yield from _json_lines(sys.stdin.buffer, "standard input", bad_row)
        return
    path = Path(source).expanduser()
    if path.is_dir():
        files = [file for file in sorted(path.iterdir()) if file.is_file() and kind_of(file) is not None]
        if not files:
            raise DataError(f"{path} holds no files of rows. Give a folder with {', '.join(_READERS)} files.")
        for file in files:
            yield from read_files(file, bad_row)
        return
    if not path.is_file():
        raise DataError(f"There is no file {path}. Check the path.")
    kind = kind_of(path)
    if kind is None:
        raise DataError(f"{path} has an unknown ending. Give a {', '.join(_READERS)} file, also with .gz or .zst.")
    yield from _READERS[kind](path, bad_row)


def _refuse(error: DataError) -> None:
    raise error


def _opened(path: Path) -> IO[bytes]:
    """The bytes of a file, unpacked if its name says so.

    Raises:
        DataError: If the file is compressed, and its name does not say so, or its compression cannot be read.
    """
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return gzip.open(path)  # type: ignore[return-value]
    if suffix == ".zst":
        return _zstandard(path)
    stream = path.open("rb")
    start = stream.read(8)
    stream.seek(0)
    for magic, name in _MAGIC.items():
        if start.startswith(magic):
            stream.close()
            raise DataError(
                f"{path} is compressed ({name}), but its name does not say so. Unpack it, or name it {path.name}.gz or "
                ".zst if it is gzip or Zstandard."
            )
    return stream


def _zstandard(path: Path) -> IO[bytes]:
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd  # noqa: PLC0415

            return zstd.open(path)  # type: ignore[no-any-return]
        import zstandard  # type: ignore[import-not-found, unused-ignore]  # noqa: PLC0415

        return zstandard.open(path, "rb")  # type: ignore[no-any-return, unused-ignore]
    except ImportError:
        raise DataError(f"{path} needs Zstandard: pip install zstandard (Python 3.14 has it). Or unpack it.") from None


def _lines(stream: IO[bytes], name: str) -> Iterator[tuple[int, bytes]]:
    """Numbered lines that are not blank; reading stops with an error at a line that is too long."""
    number = 0
    try:
        while line := stream.readline(MOST_ROW_BYTES + 1):
            number += 1
            if len(line) > MOST_ROW_BYTES:
                raise DataError(f"{name}, line {number} has more than {MOST_ROW_BYTES:,} bytes. Split the row.")
            if number > MOST_ROWS:
                raise DataError(f"{name} has more than {MOST_ROWS:,} lines. Split the file.")
            if line.strip():
                yield number, line
    except (EOFError, OSError, gzip.BadGzipFile) as error:
        raise DataError(f"{name} is damaged after line {number} ({error}). Get it again.") from None


def _parsed(text: bytes, where: str) -> Any:
    try:
        return json.loads(text.removeprefix(b"\xef\xbb\xbf"))
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8 ({error.reason}). Convert it: iconv -f latin1 -t utf-8.") from None
    except RecursionError:
        raise DataError(f"{where} is nested too deeply to be read.") from None
    except ValueError as error:
        raise DataError(f"{where} is not JSON ({error}). Correct it.") from None


def _row(value: Any, where: str) -> Fields:
    if not isinstance(value, dict):
        raise DataError(f'{where} is {type(value).__name__}, not an object with columns. Write {{"prompt": …}}.')
    return value


def _json_lines(stream: IO[bytes], name: str, bad_row: BadRow) -> Iterator[Fields]:
    for number, line in _lines(stream, name):
        where = f"{name}, line {number}"
        try:
            row = _row(_parsed(line, where), where)
        except DataError as error:
            bad_row(error)
            continue
        yield row


def _read_json_lines(path: Path, bad_row: BadRow) -> Iterator[Fields]:
    with closing(_opened(path)) as stream:
        yield from _json_lines(stream, str(path), bad_row)


def _read_json(path: Path, bad_row: BadRow) -> Iterator[Fields]:
    """Rows of a `.json` file: a list of objects, or lines."""
    with closing(_opened(path)) as stream:
        try:
            text = stream.read(MOST_ROW_BYTES + 1)
        except (EOFError, OSError) as error:
            raise DataError(f"{path} is damaged ({error}). Get it again.") from None
    if not text.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
        yield from _read_json_lines(path, bad_row)
        return
    if len(text) > MOST_ROW_BYTES:
        raise DataError(f"{path} has more than {MOST_ROW_BYTES:,} bytes. Write one row per line, as .jsonl.")
    for number, value in enumerate(_parsed(text, str(path))):
        try:
            row = _row(value, f"{path}, row {number}")
        except DataError as error:
            bad_row(error)
            continue
        yield row


def _table(delimiter: str) -> "_Reader":
    def read(path: Path, bad_row: BadRow) -> Iterator[Fields]:
        with closing(_opened(path)) as stream:
            text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
            csv.field_size_limit(MOST_ROW_BYTES)
            try:
                reader = csv.DictReader(text, delimiter=delimiter, strict=True)
                names = reader.fieldnames or ()
                if repeated := {name for name in names if names.count(name) > 1}:
                    raise DataError(f"{path} has several columns named {', '.join(sorted(repeated))}. Rename them.")
                for row in reader:
                    if None in row or None in row.values():
                        bad_row(
                            DataError(
                                f"{path}, line {reader.line_num} has not as many cells as the first line. Quote cells "
                                f"that hold {delimiter!r} or line breaks."
                            )
                        )
                        continue
                    yield {name: _cell(name, value) for name, value in row.items()}
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path} is not UTF-8 ({error.reason}). Convert it: iconv -f latin1 -t utf-8."
                ) from None
            except (csv.Error, EOFError, OSError) as error:
                raise DataError(f"{path} cannot be read as a table ({error}). Correct it.") from None

    return read


def _cell(name: str, text: str) -> Any:
    """A cell's value: messages where the cell holds them as JSON, a number for a weight or group, and else the text.

    An empty cell for a number or a list is null, because the row has none.
    """
    if name in _NUMBERS | _LISTS and not text.strip():
        return None
    if name in _NUMBERS:
        return _number(text)
    if name in _LISTS or text[:2] == "[{" or (text[:1] == "{" and text[-1:] == "}"):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return text
        if name in _LISTS:
            return value
        messages = value if isinstance(value, list) else [value]
        are_messages = all(is_message(message) or is_message(message, *SHAREGPT_KEYS) for message in messages)
        return value if are_messages else text
    return text


def _number(text: str) -> int | float | str:
    """The number that a cell holds; its text if it holds none."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _read_parquet(path: Path, bad_row: BadRow) -> Iterator[Fields]:  # noqa: ARG001 - tables have no broken rows
    try:
        with parquet.ParquetFile(path) as file:
            if file.metadata.num_rows > MOST_ROWS:
                raise DataError(
                    f"{path} declares {file.metadata.num_rows:,} rows; at most {MOST_ROWS:,} are read. Split the file."
                )
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is not Parquet ({error}). Get it again.") from None


def _read_arrow(path: Path, bad_row: BadRow) -> Iterator[Fields]:  # noqa: ARG001
    try:
        with pa.memory_map(str(path)) as stream:
            yield from rows_of_batches(_arrow_batches(stream))
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is not Arrow ({error}). Get it again.") from None


def _arrow_batches(stream: Any) -> Iterable[pa.RecordBatch]:
    try:
        file = pa.ipc.open_file(stream)
    except pa.ArrowInvalid:
        stream.seek(0)
        return pa.ipc.open_stream(stream)  # type: ignore[no-any-return]
    return (file.get_batch(i) for i in range(file.num_record_batches))


def rows_of_batches(batches: Iterable[pa.RecordBatch]) -> Iterator[Fields]:
    """Rows of Arrow's record batches."""
    for batch in batches:
        yield from batch.to_pylist()


_Reader = Callable[[Path, BadRow], Iterator[Fields]]
_READERS: dict[str, _Reader] = {
    ".json": _read_json, ".jsonl": _read_json_lines, ".ndjson": _read_json_lines, ".csv": _table(","),
    ".tsv": _table("\t"), ".parquet": _read_parquet, ".arrow": _read_arrow,
}  # fmt: skip
