"""Files of a comparison: names that every system can bear, and lines that are answers or nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
from langchain_mara_training.evaluation.comparison_store import Answer, ComparisonStore

from langchain_mara.exceptions import DataError, TrainingError

NAMES = ["plain", "Plain", "MARA", "a/b", "a_b", "a b", "../up", ".hidden", "best-of-8", "日本", "x" * 20 + ":"]
PROMPTS = ["Hi.", [{"role": "user", "content": "A line\u2028separator\u0085and\nmore."}]]


def an_answer(number: int) -> Answer:
    return Answer(
        number=number, completion=f'{number}\n\u2028\u0085 "x" 日', rewards={"a": 0.1 + 0.2, "b": None}, harmful=True,
        tokens=3, answer_tokens=2, passes=1 / 3, seconds=1e-9, divergence=None, accepted_index=[4, 0, 1], fallbacks=0,
    )  # fmt: skip


def begun(folder: Path, **changes: Any) -> ComparisonStore:
    files = ComparisonStore(folder)
    config = {"systems": {name: {} for name in NAMES}, "rewards": {"a": 1.0}, "baseline": "plain", **changes}
    files.begin(config, PROMPTS)  # type: ignore[arg-type]
    return files


def test_every_system_has_a_file_of_its_own_inside_the_folder(tmp_path: Path) -> None:
    files = begun(tmp_path / "kept")
    for number, name in enumerate(NAMES):
        files.append(name, [an_answer(0) for _ in range(1)])
        assert len(list((tmp_path / "kept" / "answers").iterdir())) == number + 1
    written = [file.name for file in (tmp_path / "kept" / "answers").iterdir()]
    assert len({name.lower() for name in written}) == len(NAMES)
    assert {"plain.jsonl", "MARA.jsonl", "best-of-8.jsonl"} <= set(written)
    assert all(name.isascii() and not name.startswith(".") for name in written)
    assert [file.name for file in tmp_path.iterdir()] == ["kept"]


def test_texts_and_numbers_come_back_exactly(tmp_path: Path) -> None:
    files = begun(tmp_path)
    files.append("MARA", [an_answer(0)])
    files.append("MARA", [an_answer(1), an_answer(2)])
    assert files.read_answers("MARA") == [an_answer(0), an_answer(1), an_answer(2)]
    assert files.read_answers("plain") == []
    assert files.read_prompts() == PROMPTS


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"MARA.jsonl, line 2 is not an answer \(Invalid JSON"),
        ("", r"MARA.jsonl, line 2 is not an answer \(Invalid JSON"),
        (
            "{}",
            r"MARA.jsonl, line 2 is not an answer \(Field required\)\. Delete the file to have this system answer aga",
        ),
        (an_answer(2).model_dump_json(), "MARA.jsonl, line 2 answers prompt 2. Delete the file"),
    ],
)
def test_lines_that_are_no_answers_are_named(tmp_path: Path, line: str, message: str) -> None:
    files = begun(tmp_path)
    files.append("MARA", [an_answer(0)])
    with (tmp_path / "answers" / "MARA.jsonl").open("a") as stream:
        stream.write(f"{line}\n")
    with pytest.raises(DataError, match=message):
        files.read_answers("MARA")


def test_beginning_takes_off_half_a_line_and_nothing_else(tmp_path: Path) -> None:
    files = begun(tmp_path)
    files.append("MARA", [an_answer(0), an_answer(1)])
    file = tmp_path / "answers" / "MARA.jsonl"
    content = file.read_bytes()
    file.write_bytes(content + b'{"number": 2, "comp')
    assert len(files.read_answers("MARA")) == 2
    begun(tmp_path)
    assert file.read_bytes() == content


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"systems": {}}'])
def test_what_is_no_comparison_is_said_to_be_none(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(TrainingError, match=f"{tmp_path.name} holds no comparison. Give a folder that compare"):
        ComparisonStore(tmp_path).read_config()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match="file is a file. Give a folder as output."):
        begun(tmp_path / "file")


def test_libraries_command_and_level_may_change(tmp_path: Path) -> None:
    begun(tmp_path, versions={"torch": "1"}, command="a", confidence=0.9)
    begun(tmp_path, versions={"torch": "2"}, command="b", confidence=0.8)
    assert json.loads((tmp_path / "config.json").read_text())["versions"] == {"torch": "2"}
    with pytest.raises(TrainingError, match=r"different: rewards.a \(1.0 there, 2.0 now\)"):
        begun(tmp_path, rewards={"a": 2.0})
