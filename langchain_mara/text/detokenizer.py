"""Text of a row, token by token: incremental detokenisation, and stop strings cut at the first occurrence."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from langchain_mara.exceptions import OptionsError

Stop = Sequence[str] | str | None
"""Stop strings as users give them."""

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class IncrementalDetokenizer:
    """The text of one answer as it grows. What it releases is final and free of stop strings.

    Text is held back while it may be the beginning of a stop string or an incomplete character.

    Args:
        tokenizer: Of the policy model.
        stop: Strings that end the answer; never released, not even in part.
        markers: Special tokens that belong to the text, such as the beginning of a tool call; all others
            are left out of it.

    Attributes:
        text: Everything released so far.
        stopped: Whether a stop string was met.

    Raises:
        OptionsError: If a stop string is empty.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = (), markers: Sequence[str] = ()
    ) -> None:
        if any(not string for string in stop):
            raise OptionsError("A stop string must not be empty.")
        self.text = ""
        self.stopped = False
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        added = tokenizer.added_tokens_decoder.items() if markers else ()
        self._left_out = {number for number, token in added if token.special and token.content not in markers}
        self._skip_special_tokens = not markers
        self._token_ids: list[int] = []
        self._context_start = 0
        self._unread = 0
        self._held_back = ""

    def push(self, token_id: int) -> str:
        """Takes a token and returns the text it releases, often the empty string."""
        if token_id in self._left_out:
            return ""
        self._token_ids.append(token_id)
        # Decoding depends on neighbours (spaces, bytes of one character), so the tokens read last
        # are decoded again in front of the new ones and their text is taken off.
        context = self._decode(self._context_start, self._unread)
        text = self._decode(self._context_start, len(self._token_ids))
        if len(text) <= len(context) or text.endswith(_INCOMPLETE):
            return ""
        self._context_start, self._unread = self._unread, len(self._token_ids)
        return self._release(self._held_back + text[len(context) :])

    def finish(self) -> str:
        """Returns what was held back, once no token will follow."""
        if self.stopped:
            return ""
        context = self._decode(self._context_start, self._unread)
        unread = self._decode(self._context_start, len(self._token_ids))[len(context) :]
        released = self._release(self._held_back + unread)
        rest, self._held_back = self._held_back, ""
        self.text += rest
        return released + rest

    def _decode(self, start: int, stop: int) -> str:
        text = self._tokenizer.decode(
            self._token_ids[start:stop],
            skip_special_tokens=self._skip_special_tokens,
            clean_up_tokenization_spaces=False,
        )
        return str(text)

    def _release(self, text: str) -> str:
        found = [(text.find(string), string) for string in self._stop]
        # The one that is complete first stops, wherever the tokens' borders are.
        ends = [(place + len(string), place) for place, string in found if place >= 0]
        if ends:
            self.stopped = True
            released, self._held_back = text[: min(ends)[1]], ""
        else:
            kept = max((overlap(text, string) for string in self._stop), default=0)
            released, self._held_back = text[: len(text) - kept], text[len(text) - kept :]
        self.text += released
        return released


def as_list(stop: Stop) -> list[str] | None:
    """A single stop string is one string, not its letters."""
    return [stop] if isinstance(stop, str) else stop if stop is None else list(stop)


def overlap(text: str, string: str) -> int:
    """Length of the longest end of `text` that begins `string` and is not the whole of it."""
    longest = min(len(text), len(string) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(string[:n])), 0)
