"""Answers whole and continued are what the LLM itself would say."""

from typing import Any

import numpy as np
import pytest
from langchain_mara_training.generation.generate import AnswerStart, GeneratedAnswer, generate_answers, score_answers

from langchain_mara import MaraLLM
from langchain_mara.exceptions import PromptError
from langchain_mara.text.chat_template import eos_token_ids

PROMPTS = ["I want to keep a lost wallet. Where should I start?", "How do I boil an egg?"]


@pytest.fixture(scope="module")
def aligned(demo_llm: MaraLLM) -> MaraLLM:
    return demo_llm.with_agent(MaraLLM.demo(device="cpu").agent)


def starts(llm: MaraLLM, **kwargs: Any) -> list[AnswerStart]:
    return [AnswerStart(llm.encode(prompt), **kwargs) for prompt in PROMPTS]


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 8])
def test_answers_are_those_of_batch(aligned: MaraLLM, batch_size: int) -> None:
    found = generate_answers(aligned, starts(aligned), batch_size)
    assert [answer.text for answer in found] == aligned.batch(PROMPTS)
    assert all(len(answer.decisions) == len(answer.token_ids) for answer in found)
    assert [answer.text for answer in found] != aligned.with_agent(None).batch(PROMPTS)


@pytest.mark.parametrize("kept", [1, 5, 10])
def test_an_answer_goes_on_as_it_went(aligned: MaraLLM, kept: int) -> None:
    whole = generate_answers(aligned, starts(aligned), 8)
    begun = [
        AnswerStart(start.prompt_ids, full.token_ids[:kept]) for start, full in zip(starts(aligned), whole, strict=True)
    ]
    continued = generate_answers(aligned, begun, 8)
    assert [(answer.text, answer.token_ids) for answer in continued] == [(item.text, item.token_ids) for item in whole]
    assert [len(answer.decisions) for answer in continued] == [len(item.token_ids) - kept for item in whole]


def test_what_has_ended_is_not_continued(demo_llm: MaraLLM) -> None:
    whole = generate_answers(demo_llm, starts(demo_llm), 8)[0].token_ids
    eos = min(eos_token_ids(demo_llm.model, demo_llm.tokenizer))
    prompt = demo_llm.encode(PROMPTS[0])
    ended, full = generate_answers(
        demo_llm, [AnswerStart(prompt, [*whole[:3], eos]), AnswerStart(prompt, whole[:24])], 8
    )
    assert (ended.decisions, ended.token_ids) == ([], [*whole[:3], eos])
    assert ended.text == demo_llm.tokenizer.decode(whole[:3])
    assert not full.decisions


def test_stop_strings_count_from_the_answers_beginning(demo_llm: MaraLLM) -> None:
    whole = generate_answers(demo_llm, starts(demo_llm), 8)[0]
    word = whole.text.split()[2]
    llm = demo_llm.model_copy(update={"stop": [word]})
    begun = generate_answers(llm, [AnswerStart(llm.encode(PROMPTS[0]), whole.token_ids[:10])], 8)[0]
    assert begun.text == whole.text[: whole.text.index(word)] == llm.invoke(PROMPTS[0])
    assert begun.decisions == []


def test_draws_are_those_of_generate(demo_llm: MaraLLM) -> None:
    drawn = generate_answers(
        demo_llm, [AnswerStart(demo_llm.encode(PROMPTS[1]), seed=7 + i, sampled=True) for i in range(4)], 8
    )
    generations = demo_llm.generate([PROMPTS[1]], n=4, seed=7, order="sampled").generations[0]
    assert [answer.text for answer in drawn] == [generation.text for generation in generations]
    assert len({answer.text for answer in drawn}) > 1


def test_prompts_longer_than_the_context_are_refused(demo_llm: MaraLLM) -> None:
    with pytest.raises(PromptError, match="Shorten the prompt"):
        generate_answers(demo_llm, [AnswerStart([5] * 5000)], 8)


def test_scores_get_columns_ids_and_the_form_of_the_prompt() -> None:
    seen: dict[str, Any] = {}

    def reward(prompts: list[Any], completions: list[Any], completion_ids: list[Any], **columns: Any) -> list[Any]:
        seen.update(columns, prompts=prompts, completions=completions, completion_ids=completion_ids)
        return [1.5, None]

    message = [{"role": "user", "content": "hi"}]
    rows = [{"prompt": "hi", "topic": "a", "self": "reserved"}, {"prompt": message, "completion": "reserved"}]
    scores = score_answers(reward, rows, [GeneratedAnswer("x", [1], []), GeneratedAnswer("y", [2, 3], [])])
    np.testing.assert_array_equal(scores, [1.5, np.nan])
    assert seen == {
        "topic": ["a", None],
        "prompts": ["hi", message],
        "completions": ["x", [{"role": "assistant", "content": "y"}]],
        "completion_ids": [[1], [2, 3]],
    }


def test_the_checkpoints_generation_config_and_stop_tokens_count(demo_llm: MaraLLM) -> None:
    plain = generate_answers(demo_llm, starts(demo_llm), 8)
    stopping = demo_llm.model_copy(update={"stop_token_ids": [plain[0].token_ids[4]]})
    assert [answer.text for answer in generate_answers(stopping, starts(stopping), 8)] == stopping.batch(PROMPTS)
    config = demo_llm.model.generation_config
    before, config.repetition_penalty = config.repetition_penalty, 5.0
    try:
        whole = generate_answers(demo_llm, starts(demo_llm), 8)
        assert [answer.text for answer in whole] == demo_llm.batch(PROMPTS) != [answer.text for answer in plain]
        begun = [
            AnswerStart(start.prompt_ids, full.token_ids[:6], logits_processor=lambda _, scores: scores)
            for start, full in zip(starts(demo_llm), whole, strict=True)
        ]
        continued = generate_answers(demo_llm, begun, 8)
    finally:
        config.repetition_penalty = before
    assert [answer.token_ids for answer in continued] == [answer.token_ids for answer in whole]


def test_the_least_length_counts_from_the_answers_beginning(demo_llm: MaraLLM) -> None:
    whole = generate_answers(demo_llm, starts(demo_llm), 8, min_new_tokens=20)
    begun = [
        AnswerStart(start.prompt_ids, full.token_ids[:12]) for start, full in zip(starts(demo_llm), whole, strict=True)
    ]
    continued = generate_answers(demo_llm, begun, 8, min_new_tokens=20)
    assert [answer.token_ids for answer in continued] == [answer.token_ids for answer in whole]
