"""The grammar engine, llguidance: tokenizers and grammars as it reads them, each made once.

It computes the tokens that may come next from the bytes of all tokens. So an answer conforms however it is cut into
tokens.
"""

import re
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from langchain_mara.exceptions import GrammarError
from langchain_mara.grammar.specification import GrammarText
from langchain_mara.text.own_tokenizer import own

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MOST_GRAMMARS = 64
"""Most compiled grammars that are kept for a tokenizer; those unused for longest are forgotten."""

# Lines of a report that show the place of an error in a drawing.
_DRAWN = re.compile(r"\s*\d+ \|.*|[\s^|]*")
# The engine needs an end that is none of the model's tokens, because a checkpoint may name ordinary ones.
_END = "<|end of the grammar|>"
_HINTS = {
    "response_format": "Leave out what cannot be enforced, or give 'strict': False, which ignores it.",
    "regex": "The syntax is that of Rust's regex crate.",
    "grammar": "Give a Lark grammar with a rule `start`, or a GBNF grammar with a rule `root`.",
    "choice": "Give other texts.",
}


class GrammarEngine:
    """Compiles grammars for one tokenizer and keeps those used last.

    Args:
        tokenizer: The library's own copy of a tokenizer.

    Attributes:
        end: Id of the end of answers as the engine has it, which is none of the tokenizer's.

    Raises:
        GrammarError: If llguidance is not installed, or the tokenizer is none of the `tokenizers` library.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._lock = threading.Lock()
        self._compiled: OrderedDict[GrammarText, LLMatcher] = OrderedDict()
        self._tokenizer, self.end = _engine_tokenizer(tokenizer)

    @staticmethod
    def of(tokenizer: PreTrainedTokenizerBase) -> "GrammarEngine":
        """The engine of a tokenizer, which lives as long as its state.

        Args:
            tokenizer: The user's tokenizer.
        """
        copy = own(tokenizer)
        with _creation:
            if copy not in _engines:
                _engines[copy] = GrammarEngine(copy)
            return _engines[copy]

    @property
    def compiled(self) -> int:
        """Number of compiled grammars that are kept."""
        return len(self._compiled)

    def matcher(self, grammar: GrammarText) -> "LLMatcher":
        """A matcher at the beginning of an answer.

        Args:
            grammar: What the answer conforms to.

        Raises:
            GrammarError: If the grammar is wrong, or holds what the engine cannot enforce.
        """
        with self._lock:
            found = self._compiled.get(grammar)
        if found is None:
            found = self._compile(grammar)
        with self._lock:
            self._compiled[grammar] = found
            self._compiled.move_to_end(grammar)
            while len(self._compiled) > MOST_GRAMMARS:
                self._compiled.popitem(last=False)
            return found.deep_copy()

    def _compile(self, grammar: GrammarText) -> "LLMatcher":
        from llguidance import LLMatcher, grammar_from  # noqa: PLC0415 - an optional dependency

        try:
            text = grammar_from(grammar.kind, grammar.text)  # type: ignore[arg-type]
        except ValueError as error:
            raise _refused(grammar, str(error)) from None
        matcher = LLMatcher(self._tokenizer, text, log_level=0)
        if matcher.is_error():
            raise _refused(grammar, matcher.get_error())
        return matcher


_engines: WeakKeyDictionary[PreTrainedTokenizerBase, GrammarEngine] = WeakKeyDictionary()
_creation = threading.Lock()


def _engine_tokenizer(tokenizer: PreTrainedTokenizerBase) -> tuple["LLTokenizer", int]:
    try:
        from llguidance import LLTokenizer  # noqa: PLC0415 - an optional dependency
    except ImportError:
        raise GrammarError(
            'response_format, regex, grammar and choice need llguidance: pip install "langchain-mara[grammar]"'
        ) from None
    own_kind = getattr(tokenizer, "grammar_tokenizer", None)
    if own_kind is not None:
        return own_kind()  # type: ignore[no-any-return]
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise GrammarError(
            f"{type(tokenizer).__name__} is not made by the tokenizers library, so no grammar can be enforced. "
            "Load the fast tokenizer of the model."
        )
    copy = Tokenizer.from_str(backend.to_str())
    copy.add_special_tokens([_END])
    end = copy.get_vocab()[_END]
    return LLTokenizer(copy.to_str(), eos_token=end), end


def _refused(grammar: GrammarText, report: str) -> GrammarError:
    lines = [line.strip() for line in report.splitlines() if not _DRAWN.fullmatch(line)]
    reason = " ".join(line for line in lines if line)[:300]
    return GrammarError(f"{grammar.option} cannot be enforced: {reason.rstrip('.')}. {_HINTS[grammar.option]}")
