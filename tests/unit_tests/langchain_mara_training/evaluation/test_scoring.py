"""What is said of an answer comes from its own decisions, its prompt's columns and the plain model."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import tiny_agent
from langchain_mara_training.evaluation.divergence import divergence
from langchain_mara_training.evaluation.scoring import Asked, Judges, Scoring, rounding_of
from langchain_mara_training.evaluation.systems import BestOf, Decoding

from langchain_mara import MaraLLM

ROWS = [{"prompt": f"How do I {wish}?", "hard": hard} for wish, hard in (("boil an egg", 0), ("pick a lock", 1))]


def hardness(hard: Sequence[int], **_: Any) -> list[float | None]:
    return [None if difficulty else 2.0 for difficulty in hard]


@pytest.fixture
def mara(demo_llm: MaraLLM) -> MaraLLM:
    return demo_llm.model_copy(update={"max_new_tokens": 8, "agent": tiny_agent(192)})


@pytest.mark.parametrize("numbers", [[0, 1], [1]])
def test_answers_carry_their_numbers_counts_and_scores(mara: MaraLLM, demo_llm: MaraLLM, numbers: list[int]) -> None:
    judges = Judges(hardness, lambda hard, **_: [-1.0 if difficulty else None for difficulty in hard])
    scoring = Scoring(judges, [Decoding("MARA", mara)], demo_llm, 0)
    answers = scoring.answers(Asked("MARA", numbers, [ROWS[number] for number in numbers]))
    traces = mara.trace([ROWS[number]["prompt"] for number in numbers])
    for number, answer, trace in zip(numbers, answers, traces, strict=True):
        accepted = [decision.index for decision, _ in trace if decision.accept_probabilities and decision.accepted]
        assert (answer.number, answer.completion) == (number, "".join(text for _, text in trace))
        assert answer.accepted_index == [accepted.count(i) for i in range(max(accepted, default=-1) + 1)]
        assert answer.fallbacks == sum(not decision.accepted for decision, _ in trace)
        assert answer.answer_tokens == answer.tokens == len(trace)
        assert answer.rewards == {"hardness": None if number else 2.0}
        assert answer.harmful is (False if number else None)
        ids = [decision.token_id for decision, _ in trace]
        assert answer.token_ids == ids
        assert answer.divergence == divergence(demo_llm, ROWS[number]["prompt"], ids)  # type: ignore[arg-type]
    assert any(answer.accepted_index for answer in answers)


def test_without_a_classifier_nothing_is_harmful_or_not(mara: MaraLLM) -> None:
    scoring = Scoring(Judges(hardness, None), [Decoding("", mara)], mara, 0)
    assert scoring.judges.describe()["harmful"] is None
    assert [answer.harmful for answer in scoring.answers(Asked("", [0, 1], ROWS))] == [None, None]


def test_the_rewards_that_chose_an_answer_are_its_rewards(demo_llm: MaraLLM) -> None:
    calls: list[int] = []

    def unsteady(completions: Sequence[str], **_: Any) -> list[float]:
        """Rounds differently in every call."""
        calls.append(len(completions))
        return [len(text) + 1e-6 * len(calls) for text in completions]

    llm = demo_llm.model_copy(update={"max_new_tokens": 8})
    best = BestOf(llm, unsteady, 3)
    scoring = Scoring(Judges([unsteady, hardness], None), [best, Decoding("plain", llm)], llm, 0)
    answers = scoring.answers(Asked(best.name, [0, 1], ROWS))
    assert calls == [6]
    assert [answer.rewards["unsteady"] for answer in answers] == [len(answer.completion) + 1e-6 for answer in answers]
    assert [answer.rewards["hardness"] for answer in answers] == [2.0, None]
    scoring.answers(Asked("plain", [0, 1], ROWS))
    assert calls == [6, 2]


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({}, 2.0**-18),
        ({"model": SimpleNamespace(dtype=torch.bfloat16)}, 2.0**-5),
        ({"model": SimpleNamespace(dtype=torch.float16)}, 2.0**-8),
        ({"model": "a name"}, 2.0**-18),
        ({"model": SimpleNamespace(dtype=torch.bfloat16), "rounding": 0}, 0.0),
    ],
)
def test_rewards_are_rounded_like_their_model(attributes: dict[str, Any], expected: float) -> None:
    def reward() -> None:
        pass

    for name, value in attributes.items():
        setattr(reward, name, value)
    assert rounding_of(reward) == expected
