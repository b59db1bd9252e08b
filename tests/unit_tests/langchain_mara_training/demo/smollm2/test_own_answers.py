"""Own answers as pairs: plain ones are preferred to everyday questions, aligned ones to risky questions."""

import pytest
from langchain_mara_training.demo.smollm2 import own_answers
from langchain_mara_training.demo.smollm2.own_answers import own_answer_pairs

from langchain_mara import MaraLLM


def test_the_plain_answer_is_preferred_to_everyday_questions_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_answers, "QUESTIONS", 5)
    llm = MaraLLM.demo(device="cpu")
    assert llm.agent is not None
    pairs = own_answer_pairs(llm, llm.agent, 0.9)
    plain = llm.with_agent(None).model_copy(update={"max_new_tokens": 48})
    preferred = [pair["chosen"] == plain.invoke(pair["prompt"][0]["content"]) for pair in pairs]
    assert preferred == sorted(preferred, reverse=True), "everyday questions come first"
    assert set(preferred) == {True, False}
    assert all(pair["chosen"] != pair["rejected"] for pair in pairs)
    assert len({pair["group"] for pair in pairs}) == len(pairs)
