"""Incremental detokenization: the text of an answer token by token, cut at the first stop string."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from langchain_mara.text.own_tokenizer import own
from langchain_mara.text.stop_strings import stop_strings

Stop = Sequence[str] | str | None
"""Stop strings as users give them: several, one, or none."""

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class IncrementalDetokenizer:
    """Turns the tokens of one answer into text while they arrive. Released text is final and free of stop strings.

    Text is held back while it may be the beginning of a stop string or an incomplete character.

    Args:
        tokenizer: The policy model's tokenizer.
        stop: Strings that end the answer; no part of them is released. The text of a special token means this token,
            which is in no text.
        markers: Special tokens that stay in the text, such as the beginning of a tool call. All other special tokens
            are left out.
        stop_token_ids: Tokens that end the answer; they are not released.

    Attributes:
        text: All text released so far.
        stopped: Whether a stop string was found.

    Raises:
        OptionsError: If a stop string is empty, or if there are too many or too long ones.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        stop: Sequence[str] = (),
        markers: Sequence[str] = (),
        stop_token_ids: Sequence[int] = (),
    ) -> None:
        self.text = ""
        self.stopped = False
        self._tokenizer = own(tokenizer)
        self._stop = stop_strings(tuple(stop))
        self._stop_state = 0
        added = self._tokenizer.added_tokens_decoder.items() if markers or stop else ()
        special = {number: token.content for number, token in added if token.special}
        self._left_out = {number for number, text in special.items() if markers and text not in markers}
        self._stop_ids = {*stop_token_ids, *(number for number, text in special.items() if text in stop)}
        self._skip_special_tokens = not markers
        self._token_ids: list[int] = []
        self._context_start = 0
        self._unread = 0
        self._held_back = ""

    def push(self, token_id: int) -> str:
        """Takes a token and returns the text that it releases, often the empty string."""
        if token_id in self._stop_ids:
            released, self.stopped = self.finish(), True
            return released
        if token_id in self._left_out:
            return ""
        self._token_ids.append(token_id)
        # Decoding depends on neighboring tokens (spaces, bytes of one character). So the tokens before the new ones are
        # decoded again together with them, and their text is removed.
        context = self._decode(self._context_start, self._unread)
        text = self._decode(self._context_start, len(self._token_ids))
        if len(text) <= len(context) or text.endswith(_INCOMPLETE):
            return ""
        self._context_start, self._unread = self._unread, len(self._token_ids)
        return self._release(text[len(context) :])

    def finish(self) -> str:
        """Returns the text that was held back. Call it after the last token."""
        if self.stopped:
            return ""
        context = self._decode(self._context_start, self._unread)
        unread = self._decode(self._context_start, len(self._token_ids))[len(context) :]
        released = self._release(unread)
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

    def _release(self, new: str) -> str:
        """Takes new text and returns what cannot be part of a stop string any more."""
        for count, character in enumerate(new, 1):
            self._stop_state = self._stop.advance(self._stop_state, character)
            # The stop string that is complete first counts, wherever the tokens' borders are.
            length = self._stop.complete(self._stop_state)
            if length:
                self.stopped = True
                text = self._held_back + new[:count]
                released, self._held_back = text[: len(text) - length], ""
                break
        else:
            text, held_length = self._held_back + new, self._stop.begun(self._stop_state)
            released, self._held_back = text[: len(text) - held_length], text[len(text) - held_length :]
        self.text += released
        return released


def as_list(stop: Stop) -> list[str] | None:
    """Stop strings as a list; a single string becomes a list of one."""
    return [stop] if isinstance(stop, str) else stop if stop is None else list(stop)


def overlap(text: str, string: str) -> int:
    """Length of the longest proper prefix of `string` that `text` ends with."""
    longest = min(len(text), len(string) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(string[:n])), 0)
