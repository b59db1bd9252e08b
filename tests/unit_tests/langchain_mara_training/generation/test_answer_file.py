"""A file of answers is whole or not there, resumes after whole blocks, and notices other rows and damage."""

import json
from pathlib import Path
from typing import Any

import pytest
from langchain_mara_training.generation.answer_file import AnswerFile
from pyarrow import parquet

from langchain_mara.exceptions import DataError, OptionsError, TrainingError

ROWS: list[dict[str, Any]] = [
    {"prompt": "a", "completion": "x"},
    {"prompt": [{"role": "user", "content": "b"}], "completion": None, "number": 1},
    {"prompt": "ü", "completion": "z"},
]


def begun(output: Path, *blocks: list[dict[str, Any]]) -> AnswerFile:
    file = AnswerFile(output)
    assert file.begin({"llm": "m"}, 2) == 0
    for block in blocks:
        file.append(block)
    return file


def test_answers_are_in_the_file_once_it_is_finished(tmp_path: Path) -> None:
    file = begun(tmp_path / "out.jsonl", ROWS[:2], ROWS[2:])
    assert not file.output.exists()
    file.finish()
    file.remove()
    assert [json.loads(line) for line in file.output.read_text().splitlines()] == ROWS
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]
    with pytest.raises(TrainingError, match="is there already. Delete it"):
        AnswerFile(file.output)


def test_a_table_has_every_column_and_refuses_what_no_table_holds(tmp_path: Path) -> None:
    rows = [ROWS[0], {**ROWS[2], "number": 2}]
    file = begun(tmp_path / "out.parquet", rows)
    file.finish()
    assert parquet.read_table(file.output).to_pylist() == [{**rows[0], "number": None}, rows[1]]
    mixed = begun(tmp_path / "mixed.parquet", ROWS)
    with pytest.raises(DataError, match=r"do not fit into a table .* ends with \.jsonl"):
        mixed.finish()
    assert not mixed.output.exists()
    assert list(mixed.rows()) == ROWS


@pytest.mark.parametrize("left", [b"", b'{"prompt": "ha', b'{"prompt": "half a block"}\n'])
def test_only_whole_blocks_are_kept(tmp_path: Path, left: bytes) -> None:
    file = begun(tmp_path / "out.jsonl", ROWS[:2])
    with (file.folder / "answers.jsonl").open("ab") as stream:
        stream.write(left)
    again = AnswerFile(file.output)
    assert again.begin({"llm": "m"}, 2) == 1
    assert list(again.rows()) == ROWS[:2]


def test_other_jobs_other_rows_and_damage_are_refused(tmp_path: Path) -> None:
    file = begun(tmp_path / "out.jsonl", ROWS[:2])
    with pytest.raises(TrainingError, match="different: block"):
        AnswerFile(file.output).begin({"llm": "m"}, 3)
    with pytest.raises(TrainingError, match="different: llm"):
        AnswerFile(file.output).begin({"llm": "another"}, 2)
    file.require_same(ROWS[0], {"prompt": "a"})
    file.require_same(ROWS[0], {"prompt": "a", "completion": "of the source"})
    with pytest.raises(TrainingError, match="answers to other rows; one was 'a' and is 'c'"):
        file.require_same(ROWS[0], {"prompt": "c"})
    answers = file.folder / "answers.jsonl"
    answers.write_bytes(answers.read_bytes().replace(b'"x"', b'"y"'))
    with pytest.raises(DataError, match=r"line 1 is damaged \(it does not match its digest\)"):
        list(file.rows())


def test_endings_say_how_a_file_is_written(tmp_path: Path) -> None:
    with pytest.raises(OptionsError, match=r"ends with \.jsonl or \.parquet"):
        AnswerFile(tmp_path / "out.csv")
