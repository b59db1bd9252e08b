"""Reads the values beside the texts of a row: weights, groups, labels, scores. What cannot be meant is refused."""

import math
import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np

from langchain_mara.exceptions import DataError

_MOST_WEIGHT = float(np.finfo(np.float32).max)  # weights are stored as float32
_MOST_SCORE = float(np.finfo(np.float64).max)  # JSON's integers can be larger
_MOST_EXACT = 2**53
_GROUPS = np.iinfo(np.int64)
_UP = {"true", "1", "yes", "up", "thumbs up", "good", "positive", "accept", "accepted", "chosen", "👍"}
_DOWN = {"false", "0", "-1", "no", "down", "thumbs down", "bad", "negative", "reject", "rejected", "👎"}


def plain(value: Any) -> Any:
    """A value of NumPy, torch or Arrow as Python's own: a number, or a list of numbers; any other value as it is."""
    if isinstance(value, str | list | Mapping):
        return value
    for method in ("tolist", "as_py"):
        if hasattr(value, method):
            return getattr(value, method)()
    return value


def weight_of(row: Mapping[str, Any], where: str) -> float:
    """The column `weight`; 1 if the row has none.

    Args:
        row: The row.
        where: Its place, for the error.

    Raises:
        DataError: If the weight is no number, negative, infinite or NaN.
    """
    value = plain(row.get("weight"))
    if value is None:
        return 1.0
    if not _is_real(value) or not 0 <= value <= _MOST_WEIGHT:
        raise DataError(f"{where}: weight is {_shown(value)}. Give a finite number of at least 0, or leave it out.")
    return float(value)


def group_of(row: Mapping[str, Any], where: str) -> int | None:
    """The column `group`; None if the row has none.

    Args:
        row: The row.
        where: Its place, for the error.

    Raises:
        DataError: If the group is not an integer of 64 bits.
    """
    value = plain(row.get("group"))
    # Tables in which some rows have no group hold the others as floating-point numbers, and NaN.
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    is_whole = isinstance(value, float) and value.is_integer() and abs(value) <= _MOST_EXACT
    if isinstance(value, bool) or not (isinstance(value, int) or is_whole):
        raise DataError(
            f"{where}: the column group must hold integers, not {_shown(value)}. Rename or convert the column."
        )
    if not _GROUPS.min <= value <= _GROUPS.max:
        raise DataError(
            f"{where}: group is {_shown(value)}, which has more than 64 bits. Number the groups from 0 instead."
        )
    return int(value)


def label_of(value: Any, where: str) -> bool:
    """Whether a label of unpaired feedback means accept.

    Args:
        value: True and False, 1 and 0, or a word such as `up` and `down`.
        where: Place of the row, for the error.

    Raises:
        DataError: If the label says neither.
    """
    word = str(plain(value)).strip().lower().replace("_", " ").removesuffix(".0")
    if word in _UP or word in _DOWN:
        return word in _UP
    raise DataError(
        f"{where}: label is {_shown(value)}. Write true for an answer to accept and false for one to reject."
    )


def scores_of(row: Mapping[str, Any], count: int, where: str) -> list[float]:
    """How good each of a row's responses is, from `scores` (more is better) or `ranks` (1 is the best).

    Args:
        row: The row.
        count: Number of its responses.
        where: Its place, for the error.

    Raises:
        DataError: If there are neither or both, not one for each response, or they are not finite numbers.
    """
    given = [name for name in ("scores", "ranks") if row.get(name) is not None]
    if len(given) != 1:
        found = "both scores and ranks" if given else "neither scores nor ranks"
        raise DataError(f"{where}: responses need scores (more is better) or ranks (1 is the best), but has {found}.")
    values = plain(row[given[0]])
    if not isinstance(values, list | tuple):
        raise DataError(f"{where}: {given[0]} is {_shown(values)}. Give a list with a number for each response.")
    values = [plain(value) for value in values]
    if len(values) != count:
        raise DataError(f"{where}: {given[0]} has {len(values)} numbers for {count} responses. Give one for each.")
    wrong = [value for value in values if not _is_real(value) or not abs(value) <= _MOST_SCORE]
    if wrong:
        raise DataError(f"{where}: {given[0]} holds {_shown(wrong[0])}. Give finite numbers.")
    return [float(value) if given[0] == "scores" else -float(value) for value in values]


def _is_real(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    return f"{value!r:.60} ({type(value).__name__})"
