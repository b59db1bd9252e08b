"""The automaton of stop strings: what is complete and what has begun after each character."""

import pytest

from langchain_mara.exceptions import OptionsError
from langchain_mara.text.stop_strings import StopStrings, stop_strings


@pytest.mark.parametrize(
    ("strings", "text", "complete", "begun"),
    [
        ([], "abc", [0, 0, 0], [0, 0, 0]),
        (["ab"], "aab", [0, 0, 2], [1, 1, 2]),
        (["abab"], "ababab", [0, 0, 0, 4, 0, 4], [1, 2, 3, 4, 3, 4]),
        (["b", "aab"], "aab", [0, 0, 3], [1, 2, 3]),
        (["bc", "abcd"], "abce", [0, 0, 2, 0], [1, 2, 3, 0]),
        (["aa", "aaa"], "aaa", [0, 2, 3], [1, 2, 3]),
    ],
)
def test_states_know_the_longest_complete_and_begun_string(
    strings: list[str], text: str, complete: list[int], begun: list[int]
) -> None:
    automaton, state, states = StopStrings(strings), 0, []
    for character in text:
        state = automaton.advance(state, character)
        states.append(state)
    assert [automaton.complete(state) for state in states] == complete
    assert [automaton.begun(state) for state in states] == begun


def test_equal_strings_share_an_automaton() -> None:
    assert stop_strings(("a", "b")) is stop_strings(("a", "b"))


def test_an_empty_string_is_refused() -> None:
    with pytest.raises(OptionsError, match="must not be empty"):
        StopStrings(["a", ""])
