"""Sealed files and lines: every damaged byte is noticed, whatever it makes of the content."""

import json
from pathlib import Path

import pytest
from langchain_mara_training.storage.records import read_sealed, sealed_line, unsealed_line, write_sealed

from langchain_mara.exceptions import TrainingError

VALUE = {"a": 1, "text": "größe \u2028 0" + "0" * 70, "none": None, "inner": {"sha256": "x", "list": [1.5, True]}}


def test_sealed_values_come_back(tmp_path: Path) -> None:
    write_sealed(tmp_path / "file.json", VALUE)
    assert read_sealed(tmp_path / "file.json", "Repair.") == VALUE
    (tmp_path / "old.json").write_text(json.dumps(VALUE))
    assert read_sealed(tmp_path / "old.json", "Repair.") == VALUE


def test_every_flipped_bit_of_a_file_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "file.json"
    write_sealed(file, VALUE)
    content = file.read_bytes()
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        file.write_bytes(damaged)
        try:
            read = read_sealed(file, "Repair.")
        except TrainingError as error:
            assert str(error).endswith("Repair.")  # noqa: PT017
        else:
            # A file whose seal has another name is one without a seal; the name is then among the values.
            assert read.keys() - VALUE.keys()


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"3", b"\xff"])
def test_what_is_no_object_is_refused(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "file.json").write_bytes(content)
    with pytest.raises(TrainingError, match=r"file.json is (missing or )?damaged.* Repair\."):
        read_sealed(tmp_path / "file.json", "Repair.")


def test_every_flipped_bit_of_a_line_is_noticed() -> None:
    line = sealed_line(json.dumps(VALUE)).encode()
    assert json.loads(unsealed_line(line)) == VALUE
    assert unsealed_line(b'{"a":1}') == b'{"a":1}'
    for place in range(len(line)):
        damaged = bytearray(line)
        damaged[place] ^= 1 << place % 8
        try:
            read = json.loads(unsealed_line(bytes(damaged)))
        except ValueError:
            continue
        assert read.keys() - VALUE.keys()
