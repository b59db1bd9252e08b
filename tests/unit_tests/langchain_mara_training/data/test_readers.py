"""Rows of every kind of source, and what is said of those that lack something."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from langchain_mara_training.data.readers import (
    answer_text,
    conversation_text,
    prompt_numbers,
    read_pairs,
    read_prompts,
    read_rows,
)

from langchain_mara.exceptions import DataError

PAIR = {"prompt": "Hi.", "chosen": "Hello!", "rejected": "Go away."}
USER = {"role": "user", "content": "Hi."}
HELLO, AWAY = ({"role": "assistant", "content": text} for text in ("Hello!", "Go away."))


@pytest.mark.parametrize("kind", ["list", "generator", "dataset", "json", "jsonl", "parquet"])
def test_sources(kind: str, tmp_path: Path) -> None:
    rows = [PAIR, {**PAIR, "prompt": "Ho."}]
    file = tmp_path / f"pairs.{kind}"
    source: Any = file
    if kind == "list":
        source = rows
    elif kind == "generator":
        source = (row for row in rows)
    elif kind == "dataset":
        source = datasets.Dataset.from_list(rows)
    elif kind == "json":
        file.write_text(json.dumps(rows))
    elif kind == "jsonl":
        file.write_text("\n".join(map(json.dumps, rows)))
    else:
        datasets.Dataset.from_list(rows).to_parquet(file)
    assert read_pairs(source) == rows


def test_prompts_alone() -> None:
    assert read_prompts(["a", [USER], {"prompt": "b", "topic": 3}]) == [
        {"prompt": "a"},
        {"prompt": [USER]},
        {"prompt": "b", "topic": 3},
    ]


def test_a_missing_prompt_is_what_both_answers_begin_with() -> None:
    (row,) = read_pairs([{"chosen": [USER, HELLO], "rejected": [USER, AWAY], "score": 1}])
    assert row == {"prompt": [USER], "chosen": [HELLO], "rejected": [AWAY], "score": 1}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "the given list holds no rows"),
        ("missing.jsonl", "There is no file missing.jsonl"),
        ([{"prompt": "a"}], "row 0: chosen, rejected must be text.*Rename or convert"),
        ([PAIR, {**PAIR, "chosen": 3}], "row 1: chosen must be text"),
        ([{**PAIR, "prompt": [{"content": "no role"}]}], "row 0: prompt must be text"),
        ([{**PAIR, "prompt": []}], "row 0: prompt must be text"),
    ],
)
def test_refusals(source: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_pairs(source)


def test_unreadable_files_and_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.jsonl").write_text("{")
    with pytest.raises(DataError, match=r"broken.jsonl, line 1 is not JSON .*Correct it"):
        read_rows(tmp_path / "broken.jsonl")

    def no_such_dataset(name: str, **_: Any) -> None:
        raise FileNotFoundError(f"{name} is not there\nand more")

    monkeypatch.setattr(datasets, "load_dataset", no_such_dataset)
    with pytest.raises(DataError, match=r"Cannot read nobody/nothing \(split test\): nobody/nothing is not there\."):
        read_rows("nobody/nothing", split="test")


def test_numbers_of_prompts() -> None:
    rows = [{"prompt": "a"}, {"prompt": [USER]}, {"prompt": "a"}, {"prompt": "c", "group": 7}, {"prompt": [USER]}]
    assert prompt_numbers(rows) == [0, 1, 0, 7, 1]
    with pytest.raises(DataError, match="Row 0: the column group must hold integers, not 'x'"):
        prompt_numbers([{"prompt": "a", "group": "x"}])


def test_the_text_of_a_conversation_is_all_of_it() -> None:
    assert conversation_text("Hi.") == conversation_text([USER]) == "Hi."
    assert conversation_text([HELLO, USER]) == f"assistant: {HELLO['content']}\n\nuser: Hi."
    assert answer_text("Hi.") == "Hi."
    again = {"role": "assistant", "content": "Bye."}
    assert answer_text([HELLO, USER, again]) == f"{HELLO['content']}\n\nBye."


@pytest.mark.parametrize("kind", ["json", "jsonl", "parquet"])
def test_prompts_of_local_files_by_their_usual_or_any_name(kind: str, tmp_path: Path) -> None:
    rows = [{"instruction": "a?", "category_id": 0, "text": "x"}, {"instruction": "b?", "category_id": 1, "text": "y"}]
    file = tmp_path / f"prompts.{kind}"
    if kind == "json":
        file.write_text(json.dumps(rows, indent=2))
    elif kind == "jsonl":
        file.write_text("\n".join(map(json.dumps, rows)))
    else:
        datasets.Dataset.from_list(rows).to_parquet(file)
    assert read_prompts(file) == [{**row, "prompt": row["instruction"]} for row in rows]
    assert [row["prompt"] for row in read_prompts(file, prompt_column="text")] == ["x", "y"]
    # Prompts of one's own may repeat.
    assert len(read_prompts([*rows, *rows])) == 4


def test_a_named_column_that_is_not_there_is_named() -> None:
    with pytest.raises(DataError, match="row 0: query must be text or a list of messages .* the row has the columns a"):
        read_prompts([{"a": "x"}], prompt_column="query")
    with pytest.raises(DataError, match="row 1: number must be text"):
        read_prompts([{"number": "x"}, {"number": 3}], prompt_column="number")
    with pytest.raises(DataError, match="row 0: query must be text"):
        read_prompts([{"prompt": "x"}], prompt_column="query")
