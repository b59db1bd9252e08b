"""Decisions as JSON."""

from math import isnan, nan
from typing import Any

import pytest

from langchain_mara import MaraLLM
from langchain_mara.decoding.request import Decision, Request
from langchain_mara.server.protocol.decisions import decision_json
from langchain_mara.text.token_texts import TokenTexts


def told(llm: MaraLLM, probabilities: tuple[float, ...], index: int, *, accepted: bool) -> dict[str, Any]:
    candidates = (12, 13, 14, 15)
    decision = Decision(Request([1]), candidates[index], candidates, probabilities, index, accepted)
    return decision_json(decision, TokenTexts(llm.tokenizer))


@pytest.mark.parametrize(
    ("probabilities", "index", "accepted", "outcome", "probability"),
    [
        ((0.9,), 0, True, "accepted", 0.9),
        ((0.1, 0.2, 0.8), 2, True, "steered", 0.8),
        ((0.1, 0.2, 0.3, nan), 3, False, "fallback", None),
        ((0.1, nan, 0.3, 0.4), 0, False, "fallback", 0.1),
        ((), 1, True, "unasked", None),
    ],
)
def test_a_decision(
    llm: MaraLLM, probabilities: tuple[float, ...], index: int, accepted: bool, outcome: str, probability: float | None
) -> None:
    found = told(llm, probabilities, index, accepted=accepted)
    texts = [TokenTexts(llm.tokenizer).text(token) for token in (12, 13, 14, 15)]
    assert (found["outcome"], found["index"], found["accept_probability"]) == (outcome, index, probability)
    assert found["token"] == texts[index]
    assert [each["token"] for each in found["candidates"]] == texts[: len(probabilities)]
    assert [each["accept_probability"] for each in found["candidates"]] == [
        None if isnan(each) else each for each in probabilities
    ]
