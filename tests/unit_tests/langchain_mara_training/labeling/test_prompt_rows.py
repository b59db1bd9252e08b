"""The prompts of rollouts are read and judged before the first answer is generated."""

from typing import Any

import pytest
from langchain_mara_training.data.row_report import RowReport
from langchain_mara_training.labeling.prompt_rows import read_prompt_rows

from langchain_mara import MaraLLM
from langchain_mara.exceptions import DataError

LONG = "egg " * 300
ROWS: list[dict[str, Any]] = [
    {"prompt": "a"}, {"prompt": LONG}, {"prompt": "b", "group": "x"}, {"prompt": 3}, {"prompt": "a"},
    {"prompt": [{"role": "user", "content": None}]}, {"prompt": "c", "group": 2**40},
]  # fmt: skip


def test_what_cannot_be_used_is_counted(demo_llm: MaraLLM) -> None:
    report = RowReport("skip")
    rows = read_prompt_rows(demo_llm, ROWS, 100, "skip", report)
    assert [(row.number, row.group) for row in rows] == [(0, 0), (4, 0), (6, 2**40)]
    assert [row.prompt_ids for row in rows] == [demo_llm.encode(row.row["prompt"]) for row in rows]
    assert report.counts() == {"rows": 7, "bad rows skipped": 3, "too long, skipped": 1}
    assert [sentence.partition(":")[0] for sentence in report.first_bad] == [
        "the given list, row 2", "the given list, row 3", "the given list, row 5, prompt, message 0 (user)",
    ]  # fmt: skip


def test_cut_prompts_leave_room_for_the_answer(demo_llm: MaraLLM) -> None:
    report = RowReport()
    (row,) = read_prompt_rows(demo_llm, [LONG], 100, "truncate-left", report)
    ids = demo_llm.encode(LONG)
    assert row.prompt_ids == [ids[0], *ids[len(ids) - (100 - demo_llm.max_new_tokens) + 1 :]]
    assert report.truncated == 1


def test_errors_name_the_row(demo_llm: MaraLLM) -> None:
    with pytest.raises(DataError, match=r"the given list, row 1: The prompt has \d+ tokens"):
        read_prompt_rows(demo_llm, ROWS, 100, "error", RowReport("skip"))
    with pytest.raises(DataError, match="the given list, row 2: the column group must hold integers"):
        read_prompt_rows(demo_llm, ROWS, 100, "skip", RowReport())
    with pytest.raises(DataError, match="No prompt can be used. rows: 1, too long, skipped: 1."):
        read_prompt_rows(demo_llm, [LONG], 100, "skip", RowReport())
