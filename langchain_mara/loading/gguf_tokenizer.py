"""The tokenizer of a GGUF file: llama.cpp's own rules under the interface of transformers."""

import ctypes
from functools import cached_property
from typing import TYPE_CHECKING, Any

from transformers import AddedToken, BatchEncoding, PreTrainedTokenizer

from langchain_mara.policy.llama_cpp.library import library
from langchain_mara.policy.llama_cpp.model import LlamaCppModel

if TYPE_CHECKING:
    from llguidance import LLTokenizer

_TEMPLATE = "tokenizer.chat_template"
_SPACE_PREFIX = "tokenizer.ggml.add_space_prefix"
_LONGEST_PIECE = 1024  # bytes


class GgufVocabulary:
    """The vocabulary of a loaded model: text to ids, and ids to bytes. Copies of a tokenizer share it.

    Args:
        model: The loaded model, which lives as long as this.
    """

    def __init__(self, model: LlamaCppModel) -> None:
        self.model = model
        self._lib, self._pointer = library(), model.vocabulary
        self.size = int(self._lib.llama_vocab_n_tokens(self._pointer))
        self.texts = [self._text(token) for token in range(self.size)]
        self.ids = {text: token for token, text in reversed(list(enumerate(self.texts)))}
        self._pieces: dict[int, bytes] = {}
        self._buffer = ctypes.create_string_buffer(_LONGEST_PIECE)

    def __deepcopy__(self, memo: dict[int, Any]) -> "GgufVocabulary":
        return self

    def _text(self, token: int) -> str:
        return str(self._lib.llama_vocab_get_text(self._pointer, token).decode(errors="replace"))

    def _has(self, token: int, attribute: int) -> bool:
        return bool(self._lib.llama_vocab_get_attr(self._pointer, token) & attribute)

    @cached_property
    def control(self) -> frozenset[int]:
        """Tokens that are no text, such as the end of a turn."""
        return frozenset(i for i in range(self.size) if self._has(i, self._lib.LLAMA_TOKEN_ATTR_CONTROL))

    @cached_property
    def added(self) -> dict[int, AddedToken]:
        """Tokens that are found in text before it is cut into tokens: control tokens, and those of the user."""
        own = [i for i in range(self.size) if self._has(i, self._lib.LLAMA_TOKEN_ATTR_USER_DEFINED)]
        return {
            token: AddedToken(self.texts[token], special=token in self.control, normalized=False)
            for token in sorted({*own, *self.control})
        }

    def token(self, name: str) -> str | None:
        """Text of the special token `bos`, `eos` or `pad`; None if the file names none."""
        token = int(getattr(self._lib, f"llama_vocab_{name}")(self._pointer))
        return None if token < 0 else self.texts[token]

    def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of a text.

        Args:
            text: The text.
            add_special: Whether to add the tokens that the file puts around a text, such as a BOS.
            parse_special: Whether the texts of control tokens mean these tokens.
        """
        data = text.encode(errors="replace")
        room = len(data) + 8
        while True:
            ids = (ctypes.c_int32 * room)()
            count = self._lib.llama_tokenize(self._pointer, data, len(data), ids, room, add_special, parse_special)
            if count >= 0:
                return ids[:count]
            room = -count

    def piece(self, token: int) -> bytes:
        """Bytes of a token, those of its name for a control token."""
        if token not in self._pieces:
            buffer = self._buffer
            size = self._lib.llama_token_to_piece(self._pointer, token, buffer, _LONGEST_PIECE, 0, True)
            self._pieces[token] = buffer.raw[: max(0, size)]
        return self._pieces[token]


class GgufTokenizer(PreTrainedTokenizer):
    """A tokenizer of transformers that encodes and decodes by the rules in a GGUF file.

    Args:
        model: The loaded model.
    """

    def __init__(self, model: LlamaCppModel) -> None:
        self._vocabulary = vocabulary = GgufVocabulary(model)
        self._added_tokens_decoder = dict(vocabulary.added)
        self._space_prefix = model.metadata.get(
            _SPACE_PREFIX, str(model.metadata.get("tokenizer.ggml.model") == "llama").lower()
        )
        names = {f"{name}_token": vocabulary.token(name) for name in ("bos", "eos", "pad")}
        super().__init__(clean_up_tokenization_spaces=False, **{k: v for k, v in names.items() if v is not None})  # type: ignore[no-untyped-call]
        self.name_or_path = model.name_or_path
        self.chat_template = _chat_template(model.metadata)

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return self._vocabulary.size

    def get_vocab(self) -> dict[str, int]:
        """All tokens by the texts that the file names them by."""
        return dict(self._vocabulary.ids)

    def _convert_token_to_id(self, token: str) -> int | None:
        return self._vocabulary.ids.get(token)

    def _convert_id_to_token(self, index: int) -> str:
        return self._vocabulary.texts[index]

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return [self._vocabulary.texts[token] for token in self._ids(text, add_special_tokens=False)]

    def _ids(self, text: str, *, add_special_tokens: bool) -> list[int]:
        parse = not getattr(self, "split_special_tokens", False)
        return self._vocabulary.encode(text, add_special=add_special_tokens, parse_special=parse)

    def _encode_plus(  # type: ignore[override]
        self, text: Any, text_pair: Any = None, add_special_tokens: bool = True, **kwargs: Any
    ) -> BatchEncoding:
        if isinstance(text, str):
            text, add_special_tokens = self._ids(text, add_special_tokens=add_special_tokens), False
            if not text:
                return BatchEncoding({"input_ids": [], "attention_mask": []})
        return super()._encode_plus(text, text_pair, add_special_tokens, **kwargs)

    def _decode(
        self,
        token_ids: int | list[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,  # noqa: ARG002 - text is never changed
        **_: Any,
    ) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else list(map(int, token_ids))
        control = self._vocabulary.control
        shown = [token for token in ids if not (skip_special_tokens and token in control)]
        data = b"".join(map(self._vocabulary.piece, shown))
        # Some vocabularies put a space before a text, which is none of it.
        starts_text = self._space_prefix == "true" and shown and shown[0] not in control
        return data.removeprefix(b" " if starts_text else b"").decode(errors="replace")

    def grammar_tokenizer(self) -> tuple["LLTokenizer", int]:
        """The vocabulary as llguidance reads it, and the id of an end of answers that is no token of the model."""
        from llguidance.llamacpp import lltokenizer_from_vocab  # noqa: PLC0415 - an optional dependency

        end = self._vocabulary.size
        return lltokenizer_from_vocab(self._vocabulary.model.vocabulary, n_vocab=end + 1, eos_token=end), end


def _chat_template(metadata: dict[str, str]) -> str | dict[str, str] | None:
    """The template, or several by name as transformers has them."""
    named = {
        key.removeprefix(f"{_TEMPLATE}."): text for key, text in metadata.items() if key.startswith(f"{_TEMPLATE}.")
    }
    default = metadata.get(_TEMPLATE)
    return {"default": default, **named} if named and default else default
