"""One answer's way through a grammar: forward, back, and to its end."""

from typing import Any

import pytest
from grammars import EOS, TOKENIZER, engine, ids, promised, text_of
from hypothesis import given, settings
from hypothesis import strategies as st

from langchain_mara.exceptions import GrammarError
from langchain_mara.grammar.constraint import GrammarConstraint

PERSON = promised({
    "type": "object", "properties": {"name": {"type": "string"}, "ok": {"type": "boolean"}}, "required": ["name", "ok"],
    "additionalProperties": False,
})  # fmt: skip
ANSWER = ids('{"name": "Ada said \\"so\\"", "ok": true}')


def constraint(beginning: tuple[int, ...] = (), eos: tuple[int, ...] = (EOS,), **options: Any) -> GrammarConstraint:
    return GrammarConstraint(engine(), text_of(**options), eos, beginning)


def allowed(grammar: GrammarConstraint, answer: list[int]) -> list[int]:
    return grammar.allowed(answer).nonzero().flatten().tolist()


@given(st.lists(st.tuples(st.integers(0, len(ANSWER)), st.lists(st.sampled_from([EOS, 70, *ANSWER]), max_size=3))))
@settings(max_examples=40, deadline=None)
def test_any_order_of_questions_gives_what_a_fresh_one_gives(questions: list[tuple[int, list[int]]]) -> None:
    followed = constraint(response_format=PERSON)
    for length, drafted in questions:
        answer = [*ANSWER[:length], *drafted]
        fresh = constraint(response_format=PERSON)
        assert allowed(followed, answer) == allowed(fresh, answer)
        assert followed.is_complete(answer) == fresh.is_complete(answer) == (answer == ANSWER)


def test_the_right_token_is_always_allowed() -> None:
    grammar = constraint(response_format=PERSON)
    for i, token in enumerate(ANSWER):
        assert token in allowed(grammar, ANSWER[:i])
    assert allowed(grammar, ANSWER) == [EOS]


def test_nothing_follows_what_does_not_conform() -> None:
    grammar = constraint(choice=["yes", "no"])
    assert allowed(grammar, ids("xyz")) == []
    assert not grammar.is_complete(ids("xyz"))
    assert {TOKENIZER.decode([token])[0] for token in allowed(grammar, [])} == {"y", "n"}


def test_the_eos_comes_only_where_the_grammar_may_end() -> None:
    one = ids("1")[0]
    grammar = constraint(regex="1{2,4}", eos=(EOS, 0))
    ends = [{EOS, 0} <= set(allowed(grammar, [one] * n)) for n in range(5)]
    assert ends == [False, False, True, True, True]
    assert [grammar.is_complete([one] * n) for n in range(5)] == [False] * 4 + [True]
    assert not constraint(regex="1+").is_complete([one] * 3)


def test_an_ordinary_token_may_be_the_eos() -> None:
    one, two = ids("1")[0], ids("2")[0]
    grammar = constraint(regex="1212", eos=(two, -1, 10**6))
    assert allowed(grammar, [one]) == []
    assert allowed(grammar, []) == [one]


def test_no_special_token_is_text() -> None:
    special = set(TOKENIZER.all_special_ids)
    assert special & set(allowed(constraint(regex=".*"), [])) == {EOS}


def test_an_answer_may_have_begun() -> None:
    whole = constraint(response_format=PERSON)
    begun = constraint(tuple(ANSWER[:5]), response_format=PERSON)
    assert allowed(begun, ANSWER[5:9]) == allowed(whole, ANSWER[:9])
    assert begun.is_complete(ANSWER[5:])
    with pytest.raises(GrammarError, match="The beginning of the answer does not conform to choice"):
        constraint(tuple(ids("maybe")), choice=["yes", "no"])


def test_closing_frees_the_matcher_until_it_is_asked_again() -> None:
    grammar = constraint(response_format=PERSON)
    assert grammar._matcher is None
    before = allowed(grammar, ANSWER[:4])
    assert grammar._matcher is not None
    grammar.close()
    assert grammar._matcher is None
    assert allowed(grammar, ANSWER[:4]) == before


def test_an_engine_that_gives_up_is_reported() -> None:
    grammar = constraint(regex="(a|b|ab)*")
    allowed(grammar, [])

    class Exhausted:
        def __getattr__(self, name: str) -> Any:
            return lambda *_: {"get_error": "lexer too complex", "is_error": True, "try_consume_tokens": 0}.get(
                name, b""
            )

    grammar._matcher = Exhausted()
    with pytest.raises(GrammarError, match="gave up on regex after 0 tokens: lexer too complex. Give a simpler one"):
        grammar.allowed([])
