"""Reward-guided search against a loop of its own over the model, token by token."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from langchain_mara_training.evaluation.reward_guided import RewardGuided, _Guide
from langchain_mara_training.rewards.weighted import WeightedRewards
from langchain_mara_training.storage.identity.job_identity import describe_rewards

from langchain_mara import MaraLLM
from langchain_mara.exceptions import OptionsError, RewardError
from langchain_mara.text.chat_template import eos_token_ids

PROMPTS = ["How do I boil an egg?", "How do I pick a lock?"]
ROWS = [{"prompt": prompt} for prompt in PROMPTS]


def vowels(completions: Sequence[str], **_: Any) -> list[float]:
    return [float(sum(text.count(letter) for letter in "aeiou")) for text in completions]


@pytest.fixture
def llm(demo_llm: MaraLLM) -> MaraLLM:
    return demo_llm.model_copy(update={"max_new_tokens": 10})


@torch.inference_mode()
def searched(llm: MaraLLM, prompt: str, reward: Callable[..., Any], weight: float, candidates: int) -> list[int]:
    """The published algorithm with the whole sequence through the model for each token."""
    answer: list[int] = []
    while len(answer) < llm.max_new_tokens:
        logits = llm.model(torch.tensor([[*llm.encode(prompt), *answer]])).logits[0, -1]
        logs, tokens = logits.float().log_softmax(-1).topk(candidates)
        texts = [llm.tokenizer.decode([*answer, token], skip_special_tokens=True) for token in tokens.tolist()]
        scores = logs.double() + weight * torch.tensor(reward(texts), dtype=torch.float64)
        answer.append(int(tokens[scores.argmax()]))
        if answer[-1] in eos_token_ids(llm.model, llm.tokenizer):
            break
    return answer


@pytest.mark.parametrize(("weight", "candidates"), [(0.3, 10), (2.0, 4), (-1.0, 10)])
def test_tokens_are_those_of_the_published_loop(llm: MaraLLM, weight: float, candidates: int) -> None:
    answers = RewardGuided(llm, vowels, weight, candidates).answer(ROWS, [0, 0])
    expected = [searched(llm, prompt, vowels, weight, candidates) for prompt in PROMPTS]
    assert [costed.answer.token_ids for costed in answers] == expected
    assert [costed.answer.text for costed in answers] != llm.batch(PROMPTS)
    assert [costed.tokens for costed in answers] == [len(ids) for ids in expected]
    # A prefill for both, and a pass for each position: search costs rewards, not passes.
    assert sum(costed.passes for costed in answers) == 1 + max(map(len, expected))


@pytest.mark.parametrize("changes", [{}, {"order": "sampled", "top_k": 3, "agent": None, "strategy": "random"}])
def test_without_weight_it_is_plain_decoding(llm: MaraLLM, changes: dict[str, Any]) -> None:
    answers = RewardGuided(llm.model_copy(update=changes), vowels, weight=0.0).answer(ROWS, [4, 5])
    assert [costed.answer.text for costed in answers] == llm.batch(PROMPTS)


def test_each_row_and_token_is_one_call_with_columns_and_the_form_of_the_prompt(llm: MaraLLM) -> None:
    calls: list[dict[str, Any]] = []

    def reward(**given: Any) -> list[float]:
        calls.append(given)
        return [0.0] * len(given["completions"])

    rows = [{"prompt": [{"role": "user", "content": PROMPTS[0]}], "topic": "eggs"}]
    [costed] = RewardGuided(llm, reward, candidates=3).answer(rows, [0])
    assert len(calls) == len(costed.answer.token_ids)
    assert all(call["topic"] == ["eggs"] * 3 and call["prompts"] == [rows[0]["prompt"]] * 3 for call in calls)
    assert [call["completion_ids"][0] for call in calls] == [
        costed.answer.token_ids[: i + 1] for i in range(len(costed.answer.token_ids))
    ]
    [message] = calls[-1]["completions"][0]
    assert (message["role"], message["content"].startswith("To be")) == ("assistant", True)


def test_unscored_candidates_come_last_unless_all_are(llm: MaraLLM) -> None:
    greedy = llm.batch(PROMPTS)
    nothing = RewardGuided(llm, lambda completions: [None] * len(completions)).answer(ROWS, [0, 0])
    assert [costed.answer.text for costed in nothing] == greedy
    only_last = RewardGuided(llm, lambda completions: [*[None] * (len(completions) - 1), 0.0], candidates=2)
    second = searched(llm, PROMPTS[0], lambda _: [0.0, 1e6], 1.0, 2)
    assert only_last.answer(ROWS[:1], [0])[0].answer.token_ids == second


def test_ranks_are_exact_in_any_dtype_and_of_equals_the_more_probable_wins(llm: MaraLLM) -> None:
    system = RewardGuided(llm, lambda completions: [100.0, 100.25, 100.5, 100.25][: len(completions)], candidates=4)
    scores = torch.full((1, llm.model.config.vocab_size), -9.0)
    scores[0, [7, 5, 3, 11]] = torch.tensor([0.75, 0.5, 0.25, 0.0])
    ranked = _Guide(system, ROWS[0], 2)(torch.tensor([[1, 2]]), scores).to(torch.bfloat16)
    # 0.75 + 100, 0.5 + 100.25 and 0.25 + 100.5 are equal, and 0 + 100.25 is less.
    assert ranked[0, [7, 5, 3, 11]].tolist() == [0, -1, -2, -3]
    assert int(ranked.isfinite().sum()) == 4


def test_where_the_end_may_not_come_yet_the_next_best_does(llm: MaraLLM) -> None:
    eos = min(eos_token_ids(llm.model, llm.tokenizer))

    def ending(completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
        return [1e3 * (ids[-1] == eos) for ids in completion_ids]

    vocabulary = llm.model.config.vocab_size
    begun = RewardGuided(llm, ending, candidates=vocabulary).answer(ROWS[:1], [0])[0]
    assert begun.answer.token_ids == [eos]
    later = RewardGuided(llm.model_copy(update={"min_new_tokens": 4}), ending, candidates=vocabulary)
    ids = later.answer(ROWS[:1], [0])[0].answer.token_ids
    assert (len(ids), ids[-1]) == (5, eos)


def test_weighted_rewards_and_failures(llm: MaraLLM) -> None:
    halves = RewardGuided(llm, WeightedRewards([vowels, vowels], [0.1, 0.2]), 1.0).answer(ROWS, [0, 0])
    whole = RewardGuided(llm, vowels, 0.3).answer(ROWS, [0, 0])
    np.testing.assert_equal([costed.answer.text for costed in halves], [costed.answer.text for costed in whole])
    with pytest.raises(RewardError, match="broken"):
        RewardGuided(llm, lambda **_: ["broken"] * 10).answer(ROWS, [0, 0])
    with pytest.raises(OptionsError, match="Reward-guided search needs at least 2 candidates, not 1"):
        RewardGuided(llm, vowels, candidates=1)


def test_the_description_holds_what_guides_and_nothing_that_has_no_part(llm: MaraLLM) -> None:
    description = RewardGuided(llm, vowels).describe()
    assert (
        RewardGuided(llm.model_copy(update={"top_k": 3, "order": "sampled"}), vowels, name="x").describe()
        == description
    )
    for changed in (RewardGuided(llm, vowels, 2.0), RewardGuided(llm, vowels, candidates=3)):
        assert changed.describe() != description
    assert description["guided by"] == describe_rewards(WeightedRewards(vowels))
