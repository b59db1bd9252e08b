"""Files of rows: text stays text in every format, and what is wrong is named with its place."""

import csv
import gzip
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_mara_training.data.files import is_file_name, kind_of, read_files
from pyarrow import parquet

from langchain_mara.exceptions import DataError

Rows = list[dict[str, Any]]
TEXTS: Rows = [
    {"prompt": "2024-01-31", "chosen": "NA", "rejected": "null"},
    {"prompt": "2024-01-31T10:00:00Z", "chosen": "12345678901234567890", "rejected": "1e5"},
    {"prompt": 'a "quoted", cell', "chosen": "two\nlines", "rejected": "é 😀 \u2028"},
    {"prompt": "True", "chosen": " padded ", "rejected": "[not messages]"},
]


def lines(rows: Rows) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def table(rows: Rows, delimiter: str = ",") -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows({name: v if isinstance(v, str) else json.dumps(v) for name, v in row.items()} for row in rows)
    return text.getvalue().encode()


def parquet_bytes(rows: Rows) -> bytes:
    sink = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


def arrow_bytes(rows: Rows, new: Callable[..., Any]) -> bytes:
    sink, content = io.BytesIO(), pa.Table.from_pylist(rows)
    with new(sink, content.schema) as writer:
        writer.write_table(content)
    return sink.getvalue()


FORMATS: dict[str, Callable[[Rows], bytes]] = {
    "jsonl": lines,
    "ndjson": lines,
    "json": lambda rows: json.dumps(rows).encode(),
    "lines.json": lines,
    "csv": table,
    "tsv": lambda rows: table(rows, "\t"),
    "jsonl.gz": lambda rows: gzip.compress(lines(rows)),
    "csv.gz": lambda rows: gzip.compress(table(rows)),
    "bom.jsonl": lambda rows: b"\xef\xbb\xbf" + lines(rows),
    "bom.csv": lambda rows: b"\xef\xbb\xbf" + table(rows),
    "parquet": parquet_bytes,
    "arrow": lambda rows: arrow_bytes(rows, pa.ipc.new_file),
    "stream.arrow": lambda rows: arrow_bytes(rows, pa.ipc.new_stream),
}


@pytest.mark.parametrize("name", FORMATS)
def test_text_is_text(tmp_path: Path, name: str) -> None:
    file = tmp_path / f"rows [1] ä.{name}"
    file.write_bytes(FORMATS[name](TEXTS))
    assert list(read_files(file)) == TEXTS
    assert list(read_files(str(file))) == TEXTS


# A lone carriage return is a line's end to a CSV reader only inside quotes, which the writer gives it.
ANY_TEXT = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=20)


@pytest.mark.parametrize("name", ["jsonl", "csv", "parquet", "jsonl.gz"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(rows=st.lists(st.fixed_dictionaries({"prompt": ANY_TEXT, "chosen": ANY_TEXT}), min_size=1, max_size=4))
def test_what_goes_in_comes_out(tmp_path: Path, name: str, rows: Rows) -> None:
    file = tmp_path / f"rows.{name}"
    file.write_bytes(FORMATS[name](rows))
    assert list(read_files(file)) == rows


def test_integers_keep_their_digits(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"group": 9007199254740993, "at": "2024-01-31"}\n')
    assert list(read_files(tmp_path / "rows.jsonl")) == [{"group": 9007199254740993, "at": "2024-01-31"}]


def test_a_folder_is_its_files_in_order(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_bytes(lines(TEXTS[2:]))
    (tmp_path / "a.csv").write_bytes(table(TEXTS[:2]))
    (tmp_path / "README.md").write_text("not rows")
    assert list(read_files(tmp_path)) == TEXTS
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match=r"empty holds no files of rows\. Give a folder with \.json, \.jsonl"):
        list(read_files(empty))


def test_standard_input_holds_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(lines(TEXTS))))
    assert list(read_files("-")) == TEXTS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"prompt": "x"}\n{"prompt": ', "a.jsonl, line 2 is not JSON"),
        ("a.jsonl", b'{"prompt": "x"}\n[1]\n', "a.jsonl, line 2 is list, not an object with columns"),
        ("a.jsonl", '{"prompt": "é"}\n'.encode("latin-1"), r"line 1 is not UTF-8 \(.*\)\. Convert it: iconv -f latin1"),
        ("a.csv", "prompt\né\n".encode("latin-1"), r"a.csv is not UTF-8 \(.*\)\. Convert it"),
        ("a.csv", b"prompt,chosen\nx\n", "a.csv, line 2 has not as many cells as the first line"),
        ("a.csv", b"prompt\nx,y\n", "a.csv, line 2 has not as many cells as the first line"),
        ("a.json", b"[1]", "a.json, row 0 is int, not an object"),
        ("a.json", b'[{"prompt": ' + b"[" * 10**5, "a.json is nested too deeply|a.json is not JSON"),
        ("a.parquet", b"PAR1 no", "a.parquet is not Parquet"),
        ("a.arrow", b"no arrow", "a.arrow is not Arrow"),
        ("a.jsonl.gz", b"no gzip", "is damaged after line 0"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_files(tmp_path / name))


def test_names_say_what_a_file_is(tmp_path: Path) -> None:
    kinds = {"a.JSONL": ".jsonl", "a.csv.gz": ".csv", "a.b.tsv.zst": ".tsv", "a.gz": None, "a": None, "a/b": None}
    assert {name: kind_of(Path(name)) for name in kinds} == kinds
    assert is_file_name("-")
    assert is_file_name(tmp_path)
    assert not is_file_name("user/set")
    with pytest.raises(DataError, match="There is no file nowhere.csv"):
        list(read_files("nowhere.csv"))
