"""DecisionStatistics: counts over decisions, and how each token was chosen."""

from dataclasses import replace
from math import nan

import pytest
from trace_pages import Page

from langchain_mara.decoding.request import Decision, Request
from langchain_mara.tracing.statistics import DecisionStatistics, outcome
from langchain_mara.tracing.trace import Trace


def decision(request: Request, token_id: int, probabilities: tuple[float, ...] = ()) -> Decision:
    """A decision for the first candidate above 0.5, or for the fallback."""
    index = next((i for i, probability in enumerate(probabilities) if probability > 0.5), 0)
    accepted = not probabilities or probabilities[index] > 0.5
    return Decision(request, token_id, (5, 6, 7, 8), probabilities, index, accepted=accepted)


def test_statistics_count_what_a_hand_counts() -> None:
    request = Request([0])
    decisions = [
        decision(request, 5),  # agent not asked
        decision(request, 5, (0.9,)),
        decision(request, 7, (0.1, 0.2, 0.8)),
        decision(request, 5, (0.1, nan, 0.4, 0.2)),  # all rejected
        decision(request, 6, (nan, 0.7)),
        decision(request, 6, (0.3, 0.6)),
    ]
    statistics = DecisionStatistics.of(decisions)
    assert statistics.as_info() == {
        "tokens": 6,
        "decided": 5,
        "fallbacks": 1,
        "examined": 12,
        "nonfinite": 2,
        "accepted_index": [1, 2, 1],
        "drafted": 0,
        "skipped": 0,
    }
    one_by_one = DecisionStatistics()
    for step in decisions:
        one_by_one.add(step)
    assert one_by_one == statistics


def test_no_decisions_have_empty_statistics() -> None:
    assert DecisionStatistics().as_info()["accepted_index"] == []
    assert DecisionStatistics.of([]).tokens == 0


@pytest.mark.parametrize(
    ("probabilities", "expected"),
    [((), "unasked"), ((0.9,), "accepted"), ((0.1, 0.9), "steered"), ((0.1, 0.2, nan), "fallback")],
)
def test_outcome_names_how_a_token_was_chosen(probabilities: tuple[float, ...], expected: str) -> None:
    assert outcome(decision(Request([0]), 5, probabilities)) == expected


def test_drafted_tokens_are_counted() -> None:
    plain = decision(Request([0]), 5)
    assert DecisionStatistics.of([plain, replace(plain, drafted=True), plain]).drafted == 1


def test_statistics_are_those_of_the_decisions(trace: Trace) -> None:
    assert trace.statistics == DecisionStatistics.of(decision for decision, _ in trace)
    assert 0 < trace.statistics.fallbacks < trace.statistics.decided
    caption = " ".join(Page(trace.to_html()).caption.split())
    statistics = trace.statistics
    assert f"{statistics.tokens} tokens, agent asked at {statistics.decided} positions" in caption
    assert f"{statistics.examined} candidates examined, fallbacks: {statistics.fallbacks}." in caption
