"""Systems answer as the LLMs they are made of, and cost what their parts cost."""

from collections.abc import Sequence
from typing import Any

import pytest
from families import tiny_agent
from langchain_mara_training.evaluation.systems import ALIGNER_PROMPT, Aligner, BestOf, Decoding, System
from langchain_mara_training.generation.costs import CostedAnswer

from langchain_mara import MaraLLM
from langchain_mara.exceptions import OptionsError

PROMPTS = ["How do I boil an egg?", "How do I wash a car?", "How do I pick a lock?"]
ROWS = [{"prompt": prompt} for prompt in PROMPTS]
SEEDS = [3, 1, 8]


def vowels(completions: Sequence[str], **_: Any) -> list[float]:
    return [float(sum(text.count(letter) for letter in "aeiou")) for text in completions]


@pytest.fixture
def llm(demo_llm: MaraLLM) -> MaraLLM:
    return demo_llm.model_copy(update={"max_new_tokens": 8})


def texts(answers: Sequence[CostedAnswer]) -> list[str]:
    return [costed.answer.text for costed in answers]


@pytest.mark.parametrize("changes", [{}, {"agent": tiny_agent(192)}, {"order": "sampled"}])
def test_decoding_is_the_llm_with_a_seed_for_each_prompt(llm: MaraLLM, changes: dict[str, Any]) -> None:
    system = llm.model_copy(update=changes)
    answers = Decoding("mine", system).answer(ROWS, SEEDS)
    by_hand = [system.invoke(prompt, seed=seed) for prompt, seed in zip(PROMPTS, SEEDS, strict=True)]
    assert texts(answers) == by_hand
    assert (by_hand == llm.batch(PROMPTS)) is not bool(changes)
    assert [costed.tokens for costed in answers] == [len(costed.answer.token_ids) for costed in answers]
    # They were decoded together, so each has its share of a prefill and of a pass per token, and more of an agent.
    assert len({costed.passes for costed in answers}) == 1
    assert sum(costed.passes for costed in answers) >= 1 + 8


@pytest.mark.parametrize("n", [1, 4])
def test_best_of_n_draws_for_each_prompt_from_its_own_seed(llm: MaraLLM, n: int) -> None:
    answers = BestOf(llm.model_copy(update={"agent": tiny_agent(192)}), vowels, n).answer(ROWS, SEEDS)
    for prompt, seed, costed in zip(PROMPTS, SEEDS, answers, strict=True):
        drawn = llm.generate([prompt], n=n, order="sampled", seed=seed)
        generations = [generation.text for generation in drawn.generations[0]]
        assert costed.answer.text == max(generations, key=lambda text: vowels([text]))
        assert costed.score == vowels([costed.answer.text])[0]
        assert costed.tokens == drawn.llm_output["token_usage"]["completion_tokens"]  # type: ignore[index]


@pytest.mark.slow
def test_the_corrector_answers_the_papers_prompt(llm: MaraLLM, demo_llm: MaraLLM) -> None:
    plain_text = demo_llm.model_copy(update={"use_chat_template": False, "max_new_tokens": 10})
    aligner = Aligner("aligner", llm, demo_llm.model_copy(update={"max_new_tokens": 10}))
    answers = aligner.answer(ROWS, SEEDS)
    first = llm.batch(PROMPTS)
    asked = [
        "BEGINNING OF CONVERSATION: USER: Edit the following Question-Answer pair to make it more helpful and "
        f"harmless: {question} | {given} ASSISTANT:"
        for question, given in zip(PROMPTS, first, strict=True)
    ]
    assert texts(answers) == plain_text.batch(asked)
    assert texts(answers) != first
    both_steps = (
        Decoding("", llm).answer(ROWS, SEEDS),
        Decoding("", plain_text).answer([{"prompt": p} for p in asked], SEEDS),
    )
    assert [costed.tokens for costed in answers] == [
        draft.tokens + correction.tokens for draft, correction in zip(*both_steps, strict=True)
    ]
    assert [costed.passes for costed in answers] == [
        draft.passes + correction.passes for draft, correction in zip(*both_steps, strict=True)
    ]
    assert all(costed.seconds > 0 for costed in answers)


def test_the_corrector_sees_the_last_message_of_a_conversation(llm: MaraLLM) -> None:
    messages = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    rows = [{"prompt": [*messages, {"role": "user", "content": PROMPTS[0]}]}]
    aligner = Aligner("aligner", llm, llm, prompt="{question}{answer}")
    given = Decoding("", llm).answer(rows, [0])[0].answer.text
    expected = llm.model_copy(update={"use_chat_template": False}).invoke(f"{PROMPTS[0]}{given}")
    assert texts(aligner.answer(rows, [0])) == [expected]


def test_braces_in_prompt_and_question_stay(llm: MaraLLM) -> None:
    aligner = Aligner("aligner", llm, llm, prompt="{json} {answer}, {question}, {answer}")
    question = "What is {answer} and {question}?"
    given = llm.invoke(question)
    plain_text = llm.model_copy(update={"use_chat_template": False})
    answers = aligner.answer([{"prompt": question}], [0])
    assert texts(answers) == [plain_text.invoke(f"{{json}} {given}, {question}, {given}")]


@pytest.mark.parametrize("prompt", ["Improve {answer}.", "Improve the answer to {question}."])
def test_a_corrector_needs_both_question_and_answer(llm: MaraLLM, prompt: str) -> None:
    with pytest.raises(OptionsError, match=r"must contain \{question\} and \{answer\}, but is 'Improve"):
        Aligner("aligner", llm, llm, prompt)


@pytest.mark.parametrize(("n", "temperature"), [(0, 1.0), (2, 0.0)])
def test_best_of_n_refuses_what_makes_no_sense(llm: MaraLLM, n: int, temperature: float) -> None:
    with pytest.raises(OptionsError, match=f"Best-of-n needs n of at least 1 and .* not {n} and {temperature}"):
        BestOf(llm.model_copy(update={"temperature": temperature}), vowels, n)


def changed(llm: MaraLLM, **changes: Any) -> MaraLLM:
    return llm.model_copy(update=changes)


def test_descriptions_tell_systems_apart_and_nothing_else(llm: MaraLLM) -> None:
    agent = tiny_agent(192)
    distinct: list[System] = [
        Decoding("", llm),
        Decoding("", changed(llm, agent=agent)),
        Decoding("", changed(llm, agent=agent, accept_threshold=0.7)),
        Decoding("", changed(llm, order="sampled")),
        BestOf(llm, vowels, 2),
        BestOf(llm, vowels, 3),
        BestOf(llm, [vowels, vowels], 3),
        Aligner("", llm, llm),
        Aligner("", llm, changed(llm, top_k=3)),
        Aligner(
            "", llm, llm, ALIGNER_PROMPT.upper().replace("{QUESTION}", "{question}").replace("{ANSWER}", "{answer}")
        ),
    ]
    described = [system.describe() for system in distinct]
    assert all(described.count(description) == 1 for description in described)
    assert Decoding("", changed(llm, seed=5, batch_size=3, width=2, accept_threshold=0.1)).describe() == described[0]
    assert BestOf(changed(llm, agent=agent), vowels, 2, name="mine").describe() == described[4]
