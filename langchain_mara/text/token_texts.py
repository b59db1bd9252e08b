"""Texts of single tokens, and texts as the special tokens and the text between them."""

import re

from transformers import PreTrainedTokenizerBase

from langchain_mara.text.own_tokenizer import own

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class TokenTexts:
    """What each token adds to a text in which it is not the first.

    Args:
        tokenizer: The policy model's tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = own(tokenizer)
        self._texts: dict[int, str] = {}

    def text(self, token_id: int) -> str:
        """The text of a token; bytes that are no whole character are shown as replacement characters."""
        if token_id not in self._texts:
            # Some tokenizers leave out the space before a first token, so the second one tells.
            once, twice = self._decode([token_id]), self._decode([token_id, token_id])
            self._texts[token_id] = twice[len(once) :] if twice.startswith(once) else once
        return self._texts[token_id]

    def entry(self, token_id: int, log_probability: float) -> dict[str, object]:
        """Text, bytes and log-probability of a token, as OpenAI lists them; no bytes for a part of a character."""
        text = self.text(token_id)
        read = None if _INCOMPLETE in text else list(text.encode())
        return {"token": text, "logprob": log_probability, "bytes": read}

    def _decode(self, token_ids: list[int]) -> str:
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def pieces(tokenizer: PreTrainedTokenizerBase, text: str) -> list[str | int]:
    """A text as ids of the special tokens in it and the texts between them.

    Args:
        tokenizer: The policy model's tokenizer.
        text: The text.
    """
    added = own(tokenizer).added_tokens_decoder.items()
    special = {token.content: number for number, token in added if token.special}
    if not special:
        return [text]
    longest_first = sorted(special, key=len, reverse=True)
    parts = re.split(f"({'|'.join(map(re.escape, longest_first))})", text)
    return [special.get(part, part) for part in parts if part]
