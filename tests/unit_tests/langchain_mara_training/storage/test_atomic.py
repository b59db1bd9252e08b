"""Writes are whole or not there, and temporary files of the dead go."""

import errno
import os
from pathlib import Path

import pytest
from langchain_mara_training.storage.atomic import (
    append_durably,
    explained,
    remove_temporary_files,
    require_file,
    require_folder,
    write_atomically,
)

from langchain_mara.exceptions import TrainingError


@pytest.mark.parametrize("name", ["file", "a[1]*?", "two\nlines", "größe"])
def test_parts_become_one_file_of_any_name(name: str, tmp_path: Path) -> None:
    write_atomically(tmp_path / name, b"one", memoryview(b"two"))
    assert (tmp_path / name).read_bytes() == b"onetwo"
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_half_a_line_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "log"
    for data in (b"first\n", b"second\n"):
        append_durably(file, data)
    file.write_bytes(file.read_bytes() + b"hal")
    append_durably(file, b"third\n")
    assert file.read_bytes() == b"first\nsecond\nhal\nthird\n"


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, r"big cannot be written: No space.* needs 12,345 bytes, and [\d,]+ are free there. Make room"),
        (errno.EACCES, "big cannot be written: Permission denied. Give a folder that you may write to."),
    ],
)
def test_the_message_names_the_file_and_the_repair(number: int, said: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=said), explained(tmp_path / "not there" / "big", 12345):
        raise OSError(number, os.strerror(number))


def test_temporary_files_of_the_dead_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.node", lambda: "this.host")
    (tmp_path / "inner").mkdir()
    dead, alive = 2**22 + 1, os.getpid()
    names = [f".labels.json.{host}.{process}.tmp" for host in ("this-host", "other") for process in (dead, alive)]
    for name in (*names, "mine.tmp", f"inner/{names[0]}", f"inner/{names[2]}"):
        (tmp_path / name).touch()
    remove_temporary_files(tmp_path, alone=False)
    assert {file.name for file in tmp_path.iterdir()} == {*names[1:], "inner", "mine.tmp"}
    assert [file.name for file in (tmp_path / "inner").iterdir()] == [names[2]]
    remove_temporary_files(tmp_path, alone=True)
    assert {file.name for file in tmp_path.iterdir()} == {"inner", "mine.tmp"}


def test_places_that_could_not_be_written_are_refused_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    require_folder(tmp_path / "a" / "b")
    require_file(tmp_path / "a" / "b.json", "--report")
    require_file(tmp_path / "file", "--report")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]
    with pytest.raises(TrainingError, match=r"file is a file\. Give a folder as --output\."):
        require_folder(tmp_path / "file", "--output")
    with pytest.raises(TrainingError, match=r"a cannot be written: .*file is a file\. Give another output\."):
        require_folder(tmp_path / "file" / "a")
    with pytest.raises(TrainingError, match=r"c.json cannot be written: .*file is a file\. Give another --report\."):
        require_file(tmp_path / "file" / "b" / "c.json", "--report")
    with pytest.raises(TrainingError, match=r"is a folder\. Give a file as --report\."):
        require_file(tmp_path, "--report")
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(TrainingError, match=rf"a cannot be written: you may not write to {tmp_path}\."):
        require_folder(tmp_path / "a")
