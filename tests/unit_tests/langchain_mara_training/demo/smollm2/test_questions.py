"""Questions of the demo corpus, with double meanings, and such as the model writes itself."""

from pathlib import Path

import pytest
from langchain_mara_training.demo.smollm2 import questions
from langchain_mara_training.demo.smollm2.pairs import split_pairs
from langchain_mara_training.demo.smollm2.questions import drawn_questions, everyday_questions, risky_questions

from langchain_mara import MaraLLM

BENIGN = Path(__file__).parents[5] / "benchmarks" / "benign_prompts.txt"


def test_drawn_questions_are_distinct_and_end(demo_llm: MaraLLM) -> None:
    drawn = drawn_questions(demo_llm, 12)
    assert drawn
    assert all(question.endswith("?") for question in drawn)
    assert len(set(drawn)) == len(drawn)
    assert drawn_questions(demo_llm, 12) == drawn
    assert len(drawn_questions(demo_llm, 24)) > len(drawn), "every draw has a seed of its own"


def test_no_question_of_the_training_is_one_of_the_measurement(
    demo_llm: MaraLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(questions, "DRAWS", 0)
    asked = [prompt[-1]["content"] for prompt in everyday_questions(demo_llm)]  # type: ignore[index]
    assert len(set(asked)) == len(asked) > 400
    assert not set(asked) & set(BENIGN.read_text(encoding="utf-8").splitlines())


def test_risky_questions_are_whole_conversations_of_the_agents_pairs() -> None:
    split = split_pairs()
    risky = risky_questions(split.train)
    assert len(risky) == 240 + (len(split.train) + 1) // 2
    measured = [pair["prompt"] for pair in split.test]
    assert all(question not in measured for question in risky)
