"""Lines of candidates: replaced, added, moved and read, with and without what agents say of them."""

import pytest
import torch

from langchain_mara.decoding.candidates import CandidateSets
from langchain_mara.decoding.cutting.lines import Lines, ReadLines, joined


def lines(first: int, count: int, columns: int = 2, *, judged: bool = False) -> Lines:
    """Lines whose candidates are `first`, `first` + 1, … in the first column, and 90 more in the others."""
    token_ids = torch.arange(first, first + count)[:, None] + 90 * (torch.arange(columns) > 0)
    accept = token_ids / 200 if judged else None
    asks = torch.zeros(count, dtype=torch.bool) if judged else None
    return Lines(token_ids, -token_ids.float(), torch.full((count,), columns), accept, asks)


def firsts(table: Lines) -> list[int]:
    return table.token_ids[:, 0].tolist()


def test_lines_that_are_all_there_is_are_taken_as_they_are() -> None:
    new = lines(5, 3)
    assert lines(0, 3).replaced([0, 1, 2], new) is new
    assert lines(0, 2).replaced([0, 1, 2], new) is new


@pytest.mark.parametrize(
    ("places", "expected"), [([0], [50, 1, 2]), ([2, 0], [51, 1, 50]), ([1, 3], [0, 50, 2, 51]), ([0, 1], [50, 51, 2])]
)
def test_others_keep_their_places(places: list[int], expected: list[int]) -> None:
    table = lines(0, 3).replaced(places, lines(50, len(places)))
    assert firsts(table) == expected
    assert table.scores[:, 0].tolist() == [-first for first in expected]
    assert table.counts.tolist() == [2] * len(expected)


def test_wider_lines_widen_the_table_and_narrower_ones_leave_it() -> None:
    table = lines(0, 2).replaced([1], lines(50, 1, columns=4))
    assert table.token_ids[1].tolist() == [50, 140, 140, 140]
    assert table.counts.tolist() == [2, 4]
    table = table.replaced([0], lines(60, 1, columns=1))
    assert table.token_ids[0, 0] == 60
    assert table.counts.tolist() == [1, 4]


def test_who_is_not_judged_is_accepted_by_nobody_and_asked() -> None:
    table = lines(0, 3).replaced([1], lines(50, 1, judged=True))
    assert table.accept is not None
    assert table.asks is not None
    assert table.accept[:, 0].tolist() == pytest.approx([0.0, 0.25, 0.0])
    assert table.asks.tolist() == [True, False, True]
    table = table.replaced([1], lines(70, 1))
    assert table.accept.tolist() == [[0.0, 0.0]] * 3
    assert table.asks.tolist() == [True] * 3


def test_a_line_is_copied_on_both_sides() -> None:
    table = lines(0, 3, judged=True)
    read = ReadLines(*(each.tolist() for each in table if each is not None))
    table.copy_line(2, 0)
    read.copy_line(2, 0)
    assert firsts(table) == [row[0] for row in read.token_ids] == [2, 1, 2]
    assert read.accept_of(0) == read.accept_of(2)
    assert firsts(table.first(1)) == [2]
    assert read.first(1).counts == [2]


def test_what_is_read_of_a_line_ends_with_its_set() -> None:
    scores = [[3.0, 2.0, 1.0], [1.0, 0.0, 0.0]]
    read = ReadLines([[7, 8, 9], [5, 0, 0]], scores, [2, 1], [[0.5] * 3] * 2, [False, False])
    assert (read.candidates(0), read.scores_of(0), read.accept_of(0)) == ([7, 8], [3.0, 2.0], [0.5, 0.5])
    assert [read.skips(line) for line in (0, 1)] == [True, False]
    assert not read._replace(asks=[]).skips(0)
    assert read._replace(scores=[], accept=[]).scores_of(0) == []


def test_parts_are_joined_in_the_order_of_their_rows() -> None:
    parts = [CandidateSets(*lines(0, 2)[:3]), CandidateSets(*lines(50, 1, columns=3)[:3])]
    whole = joined(parts, [[0, 2], [1]])
    assert whole.token_ids[:, 0].tolist() == [0, 50, 1]
    assert whole.counts.tolist() == [2, 3, 2]
    assert joined(parts[:1], [[0, 1]]) is parts[0]
