"""JSON files are read up to a size and a depth; what was read is what is in them."""

import json
from pathlib import Path

import pytest

from langchain_mara.exceptions import LoadingError, TrainingError
from langchain_mara.untrusted import markdown, printable, read_json


def test_a_file_is_read_as_it_is(tmp_path: Path) -> None:
    value = {"a": [1, None, {"é": "😀"}]}
    (tmp_path / "a.json").write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    assert read_json(tmp_path / "a.json", LoadingError) == value


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"{} {}"])
def test_what_is_no_json_is_an_error_of_the_asked_kind(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(TrainingError, match="a.json is not valid JSON"):
        read_json(tmp_path / "a.json", TrainingError)


def test_the_largest_file_is_read_and_a_larger_one_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[1, 2]")
    assert read_json(tmp_path / "a.json", LoadingError, most_bytes=6) == [1, 2]
    with pytest.raises(LoadingError, match="has 6 bytes; at most 5 are read"):
        read_json(tmp_path / "a.json", LoadingError, most_bytes=5)


def test_ordinary_text_is_shown_as_it_is() -> None:
    text = "Zeile 1\n\tZeile 2 (é, 你, ع, 😀) [x] *y* _z_ # 1"
    assert printable(text) == text
    assert markdown("a [x] (y) *b* _c_ 3 > 2") == "a [x] (y) *b* _c_ 3 > 2"
