"""Finds stop strings in text that arrives in pieces, in one step per character however many strings there are."""

from collections.abc import Sequence
from functools import lru_cache

from langchain_mara.exceptions import OptionsError

MOST_STRINGS, MOST_CHARACTERS = 1024, 65_536
"""Most stop strings of a call, and most characters of all of them together."""


class StopStrings:
    """An automaton of Aho and Corasick: its state is the longest end of the text that begins a stop string.

    Args:
        strings: Stop strings.

    Raises:
        OptionsError: If a string is empty, or if there are too many or too long ones.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        _check(strings)
        self._next: list[dict[str, int]] = [{}]
        self._depth = [0]
        self._complete = [0]  # by state: length of the longest stop string that the text ends with
        self._shorter = [0]  # by state: the next longest end of the text that begins a stop string
        for string in strings:
            self._add(string)
        self._link()

    def advance(self, state: int, character: str) -> int:
        """The state after a character; 0 is the state before any text."""
        while state and character not in self._next[state]:
            state = self._shorter[state]
        return self._next[state].get(character, 0)

    def complete(self, state: int) -> int:
        """Length of the longest stop string that the text ends with in a state; 0 if there is none."""
        return self._complete[state]

    def begun(self, state: int) -> int:
        """Length of the longest end of the text that may become a stop string."""
        return self._depth[state]

    def _add(self, string: str) -> None:
        state = 0
        for character in string:
            if character not in self._next[state]:
                self._next[state][character] = len(self._next)
                self._next.append({})
                self._depth.append(self._depth[state] + 1)
                self._complete.append(0)
                self._shorter.append(0)
            state = self._next[state][character]
        self._complete[state] = len(string)

    def _link(self) -> None:
        """Links every state to the next longest end of its text, shorter states first."""
        for state in sorted(range(len(self._next)), key=self._depth.__getitem__):
            for character, following in self._next[state].items():
                self._shorter[following] = self.advance(self._shorter[state], character) if state else 0
                self._complete[following] = max(self._complete[following], self._complete[self._shorter[following]])


@lru_cache(maxsize=64)
def stop_strings(strings: tuple[str, ...]) -> StopStrings:
    """The automaton of stop strings; equal strings share one.

    Raises:
        OptionsError: If a string is empty, or if there are too many or too long ones.
    """
    return StopStrings(strings)


def _check(strings: Sequence[str]) -> None:
    if any(not string for string in strings):
        raise OptionsError("A stop string must not be empty. Leave it out of `stop`.")
    if any("\ud800" <= character <= "\udfff" for string in strings for character in string):
        raise OptionsError(
            "A stop string holds a lone surrogate, which is half of a character and is in no answer. Leave it out of "
            "`stop`, or write the whole character."
        )
    length = sum(map(len, strings))
    if len(strings) > MOST_STRINGS or length > MOST_CHARACTERS:
        raise OptionsError(
            f"There are {len(strings):,} stop strings of {length:,} characters in all; at most {MOST_STRINGS:,} "
            f"strings of {MOST_CHARACTERS:,} characters are possible. Leave some out of `stop`."
        )
