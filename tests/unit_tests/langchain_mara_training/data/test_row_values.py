"""Weights, groups, labels and scores: what is meant is read, whatever library wrote it, and the rest is refused."""

from typing import Any

import numpy as np
import pytest
import torch
from langchain_mara_training.data.row_values import group_of, label_of, scores_of, weight_of

from langchain_mara.exceptions import DataError


@pytest.mark.parametrize("value", [2, 2.0, np.float32(2), np.int64(2), torch.tensor(2.0), np.array(2)])
def test_weights(value: Any) -> None:
    assert weight_of({"weight": value}, "x") == 2.0
    assert weight_of({"weight": None}, "x") == weight_of({}, "x") == 1.0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, "2", True, 1e39, [1.0], torch.tensor([1.0, 2.0])])
def test_weights_that_are_refused(value: Any) -> None:
    with pytest.raises(DataError, match=r"^rows, row 3: weight is .*Give a finite number of at least 0"):
        weight_of({"weight": value}, "rows, row 3")


@pytest.mark.parametrize("value", [7, 7.0, np.int32(7), np.uint64(7), torch.tensor(7), np.array(7.0)])
def test_groups(value: Any) -> None:
    group = group_of({"group": value}, "x")
    assert (group, type(group)) == (7, int)
    assert group_of({"group": 2**63 - 1}, "x") == 2**63 - 1
    assert group_of({}, "x") is group_of({"group": None}, "x") is group_of({"group": float("nan")}, "x") is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2**63, "has more than 64 bits"), (-(2**63) - 1, "has more than 64 bits"), ("7", "must hold integers"),
        (True, "must hold integers"), (7.5, "must hold integers"), (float("inf"), "must hold integers"),
        (1e18, "must hold integers"), ([7], "must hold integers"),
    ],
)  # fmt: skip
def test_groups_that_are_refused(value: Any, text: str) -> None:
    with pytest.raises(DataError, match=f"^row 3: .*{text}"):
        group_of({"group": value}, "row 3")


@pytest.mark.parametrize("value", [True, 1, 1.0, "true", "Up", "thumbs_up", "👍", "1", np.bool_(True), torch.tensor(1)])
def test_labels_that_accept(value: Any) -> None:
    assert label_of(value, "x") is True


@pytest.mark.parametrize("value", [False, 0, -1, "False", "down", "thumbs down", "👎", "0.0", torch.tensor(False)])
def test_labels_that_reject(value: Any) -> None:
    assert label_of(value, "x") is False


@pytest.mark.parametrize("value", [None, 5, 0.5, "maybe", [], [1], float("nan")])
def test_labels_that_say_neither(value: Any) -> None:
    with pytest.raises(DataError, match="row 3: label is .*Write true for an answer to accept and false"):
        label_of(value, "row 3")


@pytest.mark.parametrize("values", [[3, 1], (3, 1), np.array([3, 1]), torch.tensor([3.0, 1.0]), [np.float32(3), 1]])
def test_scores_and_ranks(values: Any) -> None:
    assert scores_of({"scores": values}, 2, "x") == [3, 1]
    assert scores_of({"ranks": values}, 2, "x") == [-3, -1]


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({}, "has neither scores nor ranks"), ({"scores": [1, 2], "ranks": [1, 2]}, "has both scores and ranks"),
        ({"scores": "12"}, "scores is '12' .*Give a list"), ({"ranks": [1]}, "ranks has 1 numbers for 2 responses"),
        ({"scores": [1, None]}, "scores holds None"), ({"scores": [1, float("nan")]}, "scores holds nan"),
        ({"scores": ["1", 2]}, "scores holds '1'"),
    ],
)  # fmt: skip
def test_scores_that_are_refused(row: dict[str, Any], text: str) -> None:
    with pytest.raises(DataError, match=f"row 3: .*{text}"):
        scores_of(row, 2, "row 3")


def test_integers_beyond_floating_point_are_refused_in_words() -> None:
    with pytest.raises(DataError, match=r"Row 3: weight is 1000.*Give a finite number"):
        weight_of({"weight": 10**400}, "Row 3")
    with pytest.raises(DataError, match=r"Row 3: scores holds -1000.*Give finite numbers"):
        scores_of({"scores": [1, -(10**400)]}, 2, "Row 3")
