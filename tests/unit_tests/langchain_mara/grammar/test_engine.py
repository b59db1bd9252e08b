"""Compiled grammars are kept, a few of them, and what cannot be enforced is refused in a sentence."""

import sys
from typing import Any

import pytest
from grammars import TOKENIZER, engine, promised, text_of
from transformers import PreTrainedTokenizerBase

from langchain_mara.exceptions import GrammarError
from langchain_mara.grammar.engine import GrammarEngine
from langchain_mara.text.own_tokenizer import own


def test_a_grammar_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fresh, compiled = GrammarEngine(own(TOKENIZER)), []
    whole = GrammarEngine._compile
    monkeypatch.setattr(GrammarEngine, "_compile", lambda self, text: compiled.append(text.text) or whole(self, text))
    for regex in ("a", "b", "a"):
        fresh.matcher(text_of(regex=regex))
    assert compiled == ["a", "b"]


def test_those_used_last_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("langchain_mara.grammar.engine.MOST_GRAMMARS", 2)
    fresh = GrammarEngine(own(TOKENIZER))
    for regex in ("a", "b", "a", "c"):
        fresh.matcher(text_of(regex=regex))
    assert fresh.compiled == 2
    assert [text.text for text in fresh._compiled] == ["a", "c"]


def test_matchers_of_one_grammar_are_independent() -> None:
    first, second = (engine().matcher(text_of(regex="ab")) for _ in range(2))
    first.consume_tokens([TOKENIZER.convert_tokens_to_ids("a")])
    assert second.validate_tokens([TOKENIZER.convert_tokens_to_ids("b")]) == 0


def test_an_engine_lives_as_long_as_the_state_of_its_tokenizer(make_tokenizer: Any) -> None:
    tokenizer = make_tokenizer()
    before = GrammarEngine.of(tokenizer)
    assert GrammarEngine.of(tokenizer) is before
    tokenizer.add_tokens(["newword"])
    after = GrammarEngine.of(tokenizer)
    assert after is not before
    matcher = after.matcher(text_of(regex="newword"))
    assert matcher.validate_tokens([tokenizer.convert_tokens_to_ids("newword")]) == 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"regex": "("}, r"regex cannot be enforced: .*unclosed group\. The syntax is that of Rust"),
        ({"regex": "(?=a)b"}, "look-around.* is not supported"),
        ({"grammar": "nonsense"}, "grammar cannot be enforced: .*Expected ::=.* Give a Lark grammar with a rule"),
        ({"grammar": "start: foo"}, 'unknown name: "foo"'),
        ({"response_format": promised({"not": {}})}, r'Unimplemented keys: \["not"\]\. Leave out .* \'strict\': False'),
        ({"response_format": promised({"type": "objekt"})}, "Invalid type: objekt"),
        ({"response_format": promised({"$ref": "https://example.org/schema"})}, "does not fetch"),
        ({"response_format": promised(False)}, "cannot be enforced"),
    ],
)
def test_what_cannot_be_enforced_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(GrammarError, match=sentence) as caught:
        engine().matcher(text_of(**options))
    assert "\n" not in str(caught.value)
    assert engine().matcher(text_of(regex="a")).is_error() is False


def test_without_strictness_the_rest_is_enforced() -> None:
    schema = {"type": "boolean", "not": {"const": True}}
    matcher = engine().matcher(text_of(response_format=promised(schema, strict=False)))
    assert matcher.validate_tokens(TOKENIZER("true", add_special_tokens=False).input_ids) > 0


def test_without_the_engine_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(GrammarError, match=r'pip install "langchain-mara\[grammar\]"'):
        GrammarEngine(own(TOKENIZER))


def test_slow_tokenizers_are_refused() -> None:
    class Slow(PreTrainedTokenizerBase):
        pass

    with pytest.raises(GrammarError, match="Slow is not made by the tokenizers library"):
        GrammarEngine(Slow())
