"""Counts of rows, and the first five bad ones in words."""

import pytest
from langchain_mara_training.data.row_report import PromptTooLongError, RowReport, placed

from langchain_mara.exceptions import DataError, OptionsError


def test_bad_rows_are_counted_and_the_first_five_kept() -> None:
    report = RowReport("skip", rows=9, equal=1)
    for number in range(7):
        report.refuse(DataError(f"row {number}"))
    assert report.counts() == {"rows": 9, "bad rows skipped": 7, "equal answers": 1}
    assert report.first_bad == [f"row {number}" for number in range(5)]
    assert str(report).splitlines() == ["rows: 9, bad rows skipped: 7, equal answers: 1.", *report.first_bad]


def test_errors_are_raised_unless_they_are_skipped() -> None:
    with pytest.raises(DataError, match="bad"):
        RowReport().refuse(DataError("bad"))
    with pytest.raises(PromptTooLongError, match="long"):
        RowReport("skip").refuse(PromptTooLongError("long"))
    with pytest.raises(OptionsError, match="on_bad_row='ignore' is unknown. Give error or skip."):
        RowReport("ignore")  # type: ignore[arg-type]


def test_an_error_names_its_row_once() -> None:
    error = placed(PromptTooLongError("too long"), "rows, row 3")
    assert (str(error), type(error)) == ("rows, row 3: too long", PromptTooLongError)
    assert placed(error, "rows, row 3") is error
