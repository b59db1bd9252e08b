"""Sources give their rows one after the other, none is held, and the hub is asked for what was named."""

import json
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pytest
from langchain_mara_training.data.readers import iterate_feedback, iterate_prompts, read_prompts
from langchain_mara_training.data.row_report import RowReport
from langchain_mara_training.data.sources import HubOptions, OpenedSource, opened

from langchain_mara.exceptions import DataError

PAIR = {"prompt": "Hi.", "chosen": "Hello!", "rejected": "Go away."}


class Row(dict[str, Any]):
    """A dict that can be watched."""


def test_rows_of_a_stream_are_not_held() -> None:
    alive: list[weakref.ref[Row]] = []
    most = 0

    def rows() -> Iterator[Row]:
        for number in range(200):
            row = Row(PAIR, prompt=str(number))
            alive.append(weakref.ref(row))
            yield row

    for number, (found, _, row) in enumerate(iterate_feedback(rows())):
        most = max(most, sum(reference() is not None for reference in alive))
        assert (found, row["prompt"]) == (number, str(number))
    assert most <= 2


def test_no_row_is_read_after_the_limit() -> None:
    def rows() -> Iterator[dict[str, Any]]:
        yield from [PAIR, PAIR]
        raise AssertionError

    for iterate in (iterate_feedback, iterate_prompts):
        assert len(list(iterate(OpenedSource(rows(), limit=2)))) == 2


@pytest.mark.parametrize("streaming", [False, True])
def test_the_hub_is_asked_for_a_configuration_and_a_revision(streaming: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def load(path: str, **options: Any) -> Any:
        asked.update(options, path=path)
        data = datasets.Dataset.from_list([PAIR])
        return data.to_iterable_dataset() if streaming else data

    monkeypatch.setattr(datasets, "load_dataset", load)
    rows = read_prompts("somebody/pairs", "test", name="english", revision="v2", streaming=streaming)
    assert [row["prompt"] for row in rows] == ["Hi."]
    options = {"split": "test", "name": "english", "revision": "v2", **({"streaming": True} if streaming else {})}
    assert asked == {"path": "somebody/pairs", **options}


def test_what_was_asked_of_the_hub_is_named_when_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("no such configuration")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match=r"Cannot read a/b \(split test, name x, revision v2\): no such configuration"):
        opened("a/b", "test", name="x", revision="v2")


def test_broken_lines_are_counted_and_later_rows_keep_their_numbers(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join([json.dumps(PAIR), "{broken", "3", json.dumps({"prompt": "a"}), json.dumps(PAIR)]))
    report = RowReport("skip")
    assert [found for found, *_ in iterate_feedback(file, report=report)] == [0, 4]
    assert report.counts() == {"rows": 5, "bad rows skipped": 3}
    broken, number, lacking = report.first_bad
    assert "pairs.jsonl, line 2 is not JSON" in broken
    assert "pairs.jsonl, line 3 is int, not an object" in number
    assert "pairs.jsonl, row 3: chosen, rejected must be text" in lacking


@pytest.mark.parametrize(("kind", "broken"), [("csv", "a,b,c\nx,y\n1,2,3\n"), ("json", '[3, {"a": "1"}]')])
def test_broken_rows_of_other_files_are_counted(kind: str, broken: str, tmp_path: Path) -> None:
    file = tmp_path / f"rows.{kind}"
    file.write_text(broken)
    source = OpenedSource(file, report=RowReport("skip"))
    assert [(row.number, row.row["a"]) for row in source] == [(1, "1")]
    assert source.report.counts() == {"rows": 2, "bad rows skipped": 1}


def test_a_wrong_name_shows_at_the_start() -> None:
    with pytest.raises(DataError, match="There is no file nowhere.jsonl"):
        OpenedSource("nowhere.jsonl").check_start()
    with pytest.raises(DataError, match="the given list holds no rows"):
        OpenedSource([]).check_start()
    source = OpenedSource([PAIR], HubOptions())
    source.check_start()
    assert [row.row for row in source] == [PAIR]


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (3, r"3 \(int\) holds no rows. Give a list of rows, a table or a file"),
        ({"prompt": 3, "chosen": ["a"]}, "prompt: no list, chosen: 1"),
        ({}, "the given dict holds no rows"),
        (datasets.Dataset.from_dict({"prompt": []}), "the given Dataset holds no rows"),
        ([3], "the given list, row 0: prompt must be text"),
    ],
    ids=["number", "cells", "no columns", "no rows", "row of a number"],
)
def test_what_holds_no_rows(source: Any, text: str) -> None:
    with pytest.raises(DataError, match=text):
        read_prompts(source)


@pytest.mark.parametrize("kind", ["torch", "numpy", "arrow", "pandas"])
def test_the_format_of_a_data_set_does_not_matter_but_its_transform_does(kind: str) -> None:
    rows = [{"prompt": [{"role": "user", "content": "Hi."}], "group": 3, "weight": 0.5}]
    data = datasets.Dataset.from_list(rows)
    assert [row.row for row in opened(data.with_format(kind))] == rows
    shouting = data.with_transform(lambda batch: {"prompt": ["HI." for _ in batch["group"]]})
    assert [row.row for row in opened(shouting)] == [{"prompt": "HI."}]


def test_a_stream_that_breaks_off_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    def stream() -> Iterator[dict[str, Any]]:
        yield PAIR
        raise TimeoutError("no answer")

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.IterableDataset.from_generator(stream))
    with pytest.raises(DataError, match=r"of a/b broke off after 1 rows \(TimeoutError: no answer\). Run again"):
        read_prompts("a/b", streaming=True)


def test_columns_of_the_same_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,chosen,prompt,rejected\na,b,c,d\n")
    with pytest.raises(DataError, match="a.csv has several columns named prompt. Rename them"):
        read_prompts(tmp_path / "a.csv")
    with pytest.raises(DataError, match="The name of the data is empty"):
        read_prompts("")


def test_a_frame_with_two_columns_of_one_name_is_refused() -> None:
    frame = pd.DataFrame([["Hi.", "Hello!", "No.", "Hi."]], columns=["prompt", "chosen", "rejected", "prompt"])
    with pytest.raises(DataError, match="The given DataFrame cannot be read"):
        list(iterate_feedback(frame))


@pytest.mark.parametrize(
    "column",
    [pd.Series(["Hi.", "Bye."]), pd.Series(["Hi.", "Bye."]).array,
     pa.array(["Hi.", "Bye."]), pa.chunked_array([["Hi."], ["Bye."]])],
)  # fmt: skip
def test_a_single_column_holds_prompts(column: Any) -> None:
    assert [row["prompt"] for row in read_prompts(column)] == ["Hi.", "Bye."]


def test_a_single_row_as_the_source_is_told_from_columns() -> None:
    with pytest.raises(DataError, match=r"chosen, prompt, rejected holds a text. If it is a single row.*\[row\]"):
        read_prompts(PAIR)


def test_a_prompt_as_the_source_is_refused_in_whole_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(path: str, **_: Any) -> Any:
        raise FileNotFoundError(f"There is no {path}.")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(DataError, match=r"There is no Boil an egg\?\. Give a file"):
        read_prompts("Boil an egg?")
