"""Divergence is what the decode loop itself says of its tokens, and depends on nothing but the answer."""

import pytest
from families import tiny_agent
from langchain_mara_training.evaluation import divergence as room
from langchain_mara_training.evaluation.divergence import divergence, share_vocabulary
from langchain_mara_training.generation.generate import AnswerStart, generate_answers
from transformers import AutoTokenizer

from langchain_mara import MaraLLM
from langchain_mara.loading.models import DEMO_MODEL_FOLDER

PROMPTS = ["How do I boil an egg?", "How do I pick a lock?"]


@pytest.mark.parametrize("agent", [False, True])
@pytest.mark.parametrize("at_once", [3, 256])
def test_it_is_the_mean_of_the_decisions_log_probabilities(
    demo_llm: MaraLLM, agent: bool, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_LOGITS_AT_ONCE", at_once)
    llm = demo_llm.with_agent(tiny_agent(192, bias=-100.0)) if agent else demo_llm
    for prompt in PROMPTS:
        [decoded] = generate_answers(llm, [AnswerStart(llm.encode(prompt))], 1, keep_states=True, fallback=3)
        logs = [float(decision.candidate_states.log_probabilities[decision.index]) for decision in decoded.decisions]  # type: ignore[union-attr]
        found = divergence(demo_llm, prompt, decoded.token_ids)
        assert found == pytest.approx(-sum(logs) / len(logs), rel=1e-4)
        assert (found > 0.5) is agent  # which rejects everything, and the fallback is the fourth


def test_an_answer_without_tokens_has_none(demo_llm: MaraLLM) -> None:
    assert divergence(demo_llm, PROMPTS[0], []) is None


def test_what_does_not_fit_into_the_context_is_left_out(demo_llm: MaraLLM) -> None:
    context = demo_llm.model.config.max_position_embeddings
    prompt = demo_llm.encode(PROMPTS[0])
    fits = context - len(prompt)
    ids = [7, 8, 9] * context
    assert divergence(demo_llm, PROMPTS[0], ids) == divergence(demo_llm, PROMPTS[0], ids[:fits])


def test_vocabularies_are_compared_token_by_token(demo_llm: MaraLLM) -> None:
    again = AutoTokenizer.from_pretrained(DEMO_MODEL_FOLDER)
    assert share_vocabulary(demo_llm, demo_llm.model_copy(update={"tokenizer": again}))
    again.add_tokens(["something new"])
    assert not share_vocabulary(demo_llm, demo_llm.model_copy(update={"tokenizer": again}))
