"""A tokenizer that nobody else uses: a copy of the user's, with which all prompts are encoded.

A fast tokenizer holds one setting of truncation and padding for all its users. While another thread truncates its own
texts, every text is cut. So prompts are encoded by a copy, which is made anew when the user changes the original.
"""

import copy
import hashlib
import json
import threading
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase

from langchain_mara.exceptions import PromptError

_COMPONENTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
# Settings of a tokenizer that single calls replace, or that say nothing of ids.
_UNUSED = {"padding_side", "truncation_side", "model_max_length", "verbose", "name_or_path", "files_loaded"}
_lock = threading.Lock()


@dataclass(frozen=True, eq=False)
class OwnTokenizer:
    """A copy of a tokenizer that neither cuts nor pads.

    Attributes:
        state: What the original was when it was copied.
        tokenizer: The copy.
    """

    state: tuple[Any, ...]
    tokenizer: PreTrainedTokenizerBase

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that depend on all that turns text into ids and ids into text."""
        tokenizer, digest = self.tokenizer, hashlib.sha256(repr(self.state).encode(errors="surrogatepass"))
        backend = getattr(tokenizer, "backend_tokenizer", None)
        content = json.dumps(tokenizer.get_vocab(), sort_keys=True) if backend is None else backend.to_str()
        digest.update(content.encode(errors="surrogatepass"))
        return digest.hexdigest()[:16]


_copies: WeakKeyDictionary[PreTrainedTokenizerBase, OwnTokenizer] = WeakKeyDictionary()


def own(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The copy of a tokenizer that only this library uses. Making it takes up to a second; it is kept until it changes.

    Args:
        tokenizer: The user's tokenizer, which is left as it is.
    """
    return _own(tokenizer).tokenizer


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Sixteen hexadecimal digits that depend on a tokenizer's vocabulary, rules, special tokens and chat template.

    Args:
        tokenizer: The tokenizer.
    """
    return _own(tokenizer).fingerprint


def encode(tokenizer: PreTrainedTokenizerBase, text: str, *, add_special_tokens: bool = False) -> list[int]:
    """Token ids of a text, whole and without padding, whatever other threads do with the tokenizer.

    Args:
        tokenizer: The user's tokenizer.
        text: Text to encode.
        add_special_tokens: Whether to add the special tokens that the tokenizer puts around a text.

    Raises:
        PromptError: If the text holds half of a character.
    """
    refuse_half_characters(text)
    return list(own(tokenizer)(text, add_special_tokens=add_special_tokens).input_ids)


def refuse_half_characters(text: str) -> None:
    """Refuses text that is no Unicode, such as a JSON escape cut in two.

    Args:
        text: Text of a prompt.

    Raises:
        PromptError: If the text holds a surrogate, which is half of a character.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(
            f"The text holds {text[error.start]!a} at character {error.start}, a lone surrogate, which is half of a "
            "character. Text was cut inside an escape such as \\ud83d\\ude00, or decoded with "
            "errors='surrogateescape'. Repair it where it comes from, or text.encode(errors='replace').decode()."
        ) from None


def _own(tokenizer: PreTrainedTokenizerBase) -> OwnTokenizer:
    state = _state(tokenizer)
    with _lock:
        found = _copies.get(tokenizer)
        if found is None or found.state != state:
            found = _copies[tokenizer] = OwnTokenizer(state, _copy(tokenizer))
        return found


def _copy(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    copied = copy.deepcopy(tokenizer)
    backend = getattr(copied, "backend_tokenizer", None)
    if backend is not None:
        # Another thread may have set them at this moment.
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = copied.split_special_tokens
    return copied


def _state(tokenizer: PreTrainedTokenizerBase) -> tuple[Any, ...]:
    """What users change in a tokenizer, read in a fraction of a millisecond."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return (
        type(tokenizer).__name__,
        len(tokenizer),
        str(tokenizer.added_tokens_decoder),
        str(tokenizer.special_tokens_map),
        repr(tokenizer.chat_template),
        [repr(getattr(backend, name, None)) for name in _COMPONENTS],
        [
            (name, value)
            for name, value in sorted(vars(tokenizer).items())
            if name not in _UNUSED and isinstance(value, bool | int | float | str)
        ],
    )
