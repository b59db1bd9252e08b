"""Ranked lists become pairs, and thumbs stay alone; rows that say neither are refused or left to others."""

from typing import Any

import pytest
from langchain_mara_training.data.feedback import is_unpaired, pairs_of, unpaired
from langchain_mara_training.data.readers import iterate_feedback

from langchain_mara.exceptions import DataError

RANKED = {"prompt": "Hi.", "responses": ["a", "b", "c"], "ranks": [2, 1, 2]}


def test_ties_of_a_ranked_list_are_no_pairs() -> None:
    pairs = pairs_of(RANKED, "better", "x")
    assert [(pair["chosen"], pair["rejected"], pair["weight"]) for pair in pairs] == [("b", "a", 0.5), ("b", "c", 0.5)]
    assert pairs_of({**RANKED, "ranks": [1, 1, 1]}, "better", "x") == []
    assert {*pairs[0]} == {"prompt", "chosen", "rejected", "weight"}


@pytest.mark.parametrize("responses", ["abc", ["a"], [], ["a"] * 65])
def test_lists_that_rank_nothing(responses: Any) -> None:
    with pytest.raises(DataError, match="row 3: responses must be a list of 2 to 64 answers"):
        pairs_of({**RANKED, "responses": responses}, "better", "row 3")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "a", "completion": "b", "label": True}, True),
        ({"messages": [], "label": 0}, True),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "completion": "b", "label": True}, False),
        ({"prompt": "a", "completion": "b"}, False),
        ({"prompt": "a", "label": True}, False),
    ],
)
def test_which_rows_are_thumbs(row: dict[str, Any], expected: bool) -> None:
    assert is_unpaired(row) is expected


def test_several_messages_at_the_end_of_a_conversation_are_its_completion() -> None:
    roles = ["system", "user", "assistant", "user", "assistant", "assistant"]
    messages = [{"role": role, "content": str(i)} for i, role in enumerate(roles)]
    row = unpaired({"messages": messages, "label": "down", "weight": 2}, "x")
    assert (row["prompt"], row["completion"]) == (messages[:4], messages[4:])
    assert (row["label"], row["weight"]) == (False, 2)


@pytest.mark.parametrize("row", [{"completion": "b", "label": None}, {"completion": "b"}, {"response": "b"}])
def test_without_a_label_the_sentence_speaks_of_the_label(row: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="row 0: label is null or missing. Write true"):
        list(iterate_feedback([{"prompt": "a", **row}]))


@pytest.mark.parametrize("empty", ["", [], [{"role": "assistant", "content": ""}]])
def test_an_empty_answer_is_refused(empty: Any) -> None:
    for label in (True, False):
        with pytest.raises(DataError, match="row 0: completion is empty. Give an answer, or leave the row out"):
            list(iterate_feedback([{"prompt": "a", "completion": empty, "label": label}]))
    called = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    assert len(list(iterate_feedback([{"prompt": "a", "completion": [called], "label": True}]))) == 1
