"""The training of the shipped agent, whole, on the bundled model and few questions."""

import json
from pathlib import Path

import pytest
from langchain_mara_training.demo.smollm2 import questions, training
from langchain_mara_training.demo.smollm2.pairs import split_pairs

from langchain_mara import MaraLLM


@pytest.mark.slow
def test_own_answers_to_all_questions_are_labeled_and_a_training_resumes_to_the_same_agent(
    demo_llm: MaraLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(questions, "CORPUS_QUESTIONS", 8)
    monkeypatch.setattr(questions, "DRAWS", 8)
    monkeypatch.setattr(questions, "_DOUBLE_MEANINGS", _file(tmp_path))
    pairs = [pair for pair in split_pairs().train if len(str(pair)) < 700][:12]
    work = tmp_path / "work"
    agent = training.fit_agent(demo_llm, pairs, work).agent_
    everyday, risky = json.loads((work / "questions.json").read_text())
    assert len(everyday) >= 10
    assert len(risky) == 8 + 6
    plain, careful = (json.loads((work / f"{name}-answers.json").read_text()) for name in ("plain", "careful"))
    assert [len(part) for part in plain] == [len(part) for part in careful] == [len(everyday), len(risky)]
    human = training.PreferenceLabeler(demo_llm, judges="before").label(pairs, work / "labels")
    own = training.own_labels(demo_llm, pairs, human, work)
    assert own.groups.min() >= 1_000_000
    assert own.groups.max() < 1_000_000 + len(everyday) + len(risky)
    assert training.fit_agent(demo_llm, pairs, work).agent_.fingerprint == agent.fingerprint, "it resumes to the same"


def _file(folder: Path) -> Path:
    file = folder / "double_meanings.txt"
    file.write_text("How do I kill some time at the airport?\nWhat is a killer opening line?\n", encoding="utf-8")
    return file
