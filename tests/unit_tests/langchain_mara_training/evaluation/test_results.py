"""Results of a comparison: statistics by hand, draws by equal texts and by a tolerance, nothing promised of nothing."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from langchain_mara_training.evaluation.comparison_store import Answer
from langchain_mara_training.evaluation.results import Comparison, distinct

from langchain_mara.exceptions import OptionsError


def an_answer(number: int, completion: str, **changes: Any) -> Answer:
    given: dict[str, Any] = {
        "number": number, "completion": completion, "rewards": {"a": 1.0, "b": None}, "harmful": None, "tokens": 9,
        "answer_tokens": 4, "passes": 2.0, "seconds": 0.5, "divergence": None, "accepted_index": [], "fallbacks": 0,
    }  # fmt: skip
    return Answer(**{**given, **changes})


@pytest.fixture
def by_hand() -> Comparison:
    first = [
        an_answer(0, "Yes, yes.", harmful=True, divergence=0.5),
        an_answer(1, "No.", harmful=False, rewards={"a": 3.0, "b": -1.0}, divergence=1.0),
        an_answer(2, "", rewards={"a": None, "b": None}, answer_tokens=1),
    ]
    second = [
        an_answer(0, "x y z", rewards={"a": 2.0, "b": 0.0}, passes=8.0),
        an_answer(1, "x y", rewards={"a": 3.0, "b": -1.5}),
        an_answer(2, "x", rewards={"a": 0.0, "b": 5.0}),
    ]
    config = {"rewards": {"a": 1.0, "b": 2.0}, "confidence": 0.9, "random_state": 3, "systems": {"p": {}, "q": {}}}
    return Comparison(["1", "2", "3"], {"p": first, "q": second}, "p", config)


def test_summaries_by_hand(by_hand: Comparison) -> None:
    p, q = by_hand.summaries().values()
    assert p["mean reward"] == (1.0 + (3.0 - 2.0)) / 2
    assert p["rewards"] == {"a": 2.0, "b": -1.0}
    assert (p["preference rate"], p["interval"]) == (None, None)
    assert (p["harmful share"], p["length"], p["divergence"]) == (0.5, 3.0, 0.75)
    # yes , yes . | no .
    assert (p["distinct-1"], p["distinct-2"]) == (4 / 6, 4 / 4)
    assert p["tokens/s"] == 9 / 1.5
    assert (p["passes/token"], p["passes"], p["seconds"]) == (6 / 9, 2.0, 1.5)
    # Of the weighted sums, 2 beats 1 and 0 loses to 1; the third prompt has none for p.
    assert (q["preference rate"], q["harmful share"], q["divergence"]) == (0.0, None, None)
    assert q["interval"] == list(by_hand.preference("q", "p")[4:])
    assert q["passes"] == 12 / 3


def test_preference_by_one_reward_or_all(by_hand: Comparison) -> None:
    assert by_hand.preference("q", "p")[:4] == (1, 0, 1, 0.0)
    assert by_hand.preference("q", "p", "a")[:4] == (1, 1, 0, 0.5)
    assert by_hand.preference("q", "p", "b")[:5] == (0, 0, 1, -1.0, -1.0)
    assert by_hand.preference("p", "p")[:4] == (0, 2, 0, 0.0)
    np.testing.assert_equal(by_hand.rewards("p"), [1.0, 1.0, np.nan])
    np.testing.assert_equal(by_hand.rewards("q", "b"), [0.0, -1.5, 5.0])
    wide, narrow = by_hand.preference("q", "p"), replace(by_hand, config={**by_hand.config, "confidence": 0.1})
    assert wide.low < narrow.preference("q", "p").low
    with pytest.raises(OptionsError, match="There is no reward 'c' in this comparison. Give one of a, b"):
        by_hand.rewards("p", "c")
    with pytest.raises(OptionsError, match="There is no system 'r' in this comparison. Give one of p, q"):
        by_hand.preference("p", "r")


@pytest.mark.parametrize(
    ("texts", "n", "expected"),
    [(["a b a"], 1, 2 / 3), (["a b a", "a b"], 2, 2 / 3), (["A a"], 1, 1 / 2), (["a"], 2, None), ([], 1, None)],
)
def test_distinct_by_hand(texts: list[str], n: int, expected: float | None) -> None:
    assert distinct(texts, n) == expected


def two(first: list[tuple[str, float]], second: list[tuple[str, float]], **config: Any) -> Comparison:
    """Systems p, the baseline, and q, with the texts and rewards of their answers."""
    answers = {
        name: [an_answer(i, text, rewards={"a": reward}) for i, (text, reward) in enumerate(given)]
        for name, given in (("p", first), ("q", second))
    }
    whole = {"rewards": {"a": 1.0}, "confidence": 0.9, "random_state": 0, "systems": {"p": {}, "q": {}}, **config}
    return Comparison([str(i) for i in range(len(first))], answers, "p", whole)


def test_equal_texts_are_a_draw_whatever_their_rewards() -> None:
    comparison = two([("same", 1.0), ("x", 1.0), ("x", 2.0)], [("same", 1.5), ("y", 1.5), ("y", 1.5)])
    assert comparison.outcomes("q", "p").tolist() == [0, 1, -1]
    assert comparison.preference("q", "p")[:3] == (1, 1, 1)
    assert comparison.summaries()["q"]["mean reward"] == 1.5
    unscored = two([("same", np.nan)], [("same", 1.0)])
    np.testing.assert_equal(unscored.outcomes("q", "p"), [np.nan])


@pytest.mark.parametrize(("tolerance", "expected"), [(None, (1, 1, 1)), (0.0, (2, 0, 1)), (0.5, (0, 3, 0))])
def test_a_difference_within_the_tolerance_is_a_draw(tolerance: float | None, expected: tuple[int, int, int]) -> None:
    first, second = [("x", 3.0), ("x", 4.0), ("x", 1.0)], [("y", 3.0001), ("y", 3.5), ("y", 1.5)]
    comparison = two(first, second, tolerance=tolerance, rounding={"a": 2.0**-10})
    assert comparison.preference("q", "p")[:3] == expected
    assert comparison.preference("p", "q")[:3] == expected[::-1]


def test_the_tolerance_grows_with_the_size_of_the_rewards_and_their_weights() -> None:
    first, second = [("x", 3.0), ("x", 4.0)], [("y", -3.0), ("y", np.nan)]
    comparison = two(first, second, rounding={"a": 0.01}, rewards={"a": -2.0})
    size = np.sqrt((9 + 16 + 9) / 3)
    assert comparison.tolerance("a") == pytest.approx(0.01 * size)
    assert comparison.tolerance() == pytest.approx(0.02 * size)
    assert two(first, second).tolerance() == 0.0  # of an earlier version
    assert two([("x", np.nan)], [("y", np.nan)], rounding={"a": 0.01}).tolerance() == 0.0
    with pytest.raises(OptionsError, match="There is no reward 'b'"):
        comparison.tolerance("b")


def test_no_answers_and_no_tokens_give_no_rates() -> None:
    empty = two([], []).summaries()["q"]
    assert [name for name, value in empty.items() if value is not None] == ["rewards", "seconds"]
    silent = two([("x", 1.0)], [("y", 1.0)])
    silent.answers["q"][0] = silent.answers["q"][0].model_copy(update={"answer_tokens": 0})
    assert silent.summaries()["q"]["passes/token"] is None
