"""Systems compared: answers are those of the LLM itself, and what they cost is counted by hand."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from families import tiny_agent
from langchain_mara_training.evaluation.evaluate import Decoded, best_of_n, decode_system

from langchain_mara import MaraLLM
from langchain_mara.exceptions import DataError, OptionsError, RewardError

PROMPTS = ["How do I boil an egg?", "How do I wash a car?", "How do I pick a lock?"]
NAN = math.nan


def vowels(completions: Sequence[str], **_: Any) -> list[float]:
    return [float(sum(text.count(letter) for letter in "aeiou")) for text in completions]


@pytest.fixture
def llm(demo_llm: MaraLLM) -> MaraLLM:
    """Answers of eight tokens, one prompt at a time."""
    return demo_llm.model_copy(update={"max_new_tokens": 8, "batch_size": 1})


def answers_of(llm: MaraLLM, n: int, seed: int) -> list[list[str]]:
    """The n drawn answers of each prompt, by LangChain's own door."""
    drawn = llm.generate(PROMPTS, n=n, order="sampled", seed=seed, agent=None).generations
    return [[generation.text for generation in answers] for answers in drawn]


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"order": "sampled", "seed": 5}, {"agent": tiny_agent(192)}])
def test_a_system_answers_as_the_llm_does(llm: MaraLLM, changes: dict[str, Any]) -> None:
    system = llm.model_copy(update=changes)
    decoded = decode_system(system, PROMPTS, vowels, "mine")
    assert (decoded.name, decoded.prompts, decoded.completions) == ("mine", PROMPTS, system.batch(PROMPTS))
    assert (decoded.completions == llm.batch(PROMPTS)) is not bool(changes)
    assert decoded.rewards.tolist() == vowels(decoded.completions)
    assert decoded.mean_reward == pytest.approx(sum(vowels(decoded.completions)) / 3)


@pytest.mark.parametrize(("batch_size", "batches"), [(1, 3), (2, 2), (8, 1)])
def test_passes_and_tokens_of_plain_decoding(llm: MaraLLM, batch_size: int, batches: int) -> None:
    # No answer ends before its eighth token, so rows that enter together leave together: a prefill, and a pass for
    # each token, the state of the last one included.
    decoded = decode_system(llm.model_copy(update={"batch_size": batch_size}), PROMPTS, vowels, "plain")
    assert (decoded.tokens, decoded.answer_tokens) == (24, 24)
    assert decoded.passes == batches * (1 + 8)
    assert decoded.passes_per_token == decoded.passes / 24
    assert decoded.tokens_per_second == 24 / decoded.seconds


def test_passes_with_an_agent_are_those_its_candidates_need(llm: MaraLLM) -> None:
    system = llm.model_copy(update={"agent": tiny_agent(192, bias=-100.0), "width": 2})
    [trace] = system.trace(PROMPTS[:1])
    examined = [max(1, len(decision.accept_probabilities)) for decision, _ in trace]
    by_hand = 1 + sum(math.ceil(count / 2) for count in examined)
    assert decode_system(system, PROMPTS[:1], vowels, "").passes == by_hand > 1 + 8


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 7])
def test_best_of_n_is_the_best_of_the_answers_drawn(llm: MaraLLM, seed: int) -> None:
    drawn = answers_of(llm, 4, seed)
    assert all(len(set(map(str, answers))) > 1 for answers in drawn)
    decoded = best_of_n(llm.model_copy(update={"agent": tiny_agent(192)}), PROMPTS, vowels, 4, seed)
    assert decoded.completions == [max(answers, key=lambda text: vowels([text])) for answers in drawn]
    assert decoded.rewards.tolist() == [max(vowels(answers)) for answers in drawn]
    assert (decoded.name, decoded.prompts) == ("best-of-4", PROMPTS)


@pytest.mark.slow
def test_best_of_n_pays_for_all_answers(llm: MaraLLM) -> None:
    one_by_one = [
        llm.generate([prompt], order="sampled", seed=seed).llm_output["token_usage"]["completion_tokens"]  # type: ignore[index]
        for prompt in PROMPTS
        for seed in range(4)
    ]
    decoded = best_of_n(llm, PROMPTS, vowels, 4)
    assert (decoded.tokens, decoded.answer_tokens) == (sum(one_by_one), 24)
    # A pass for each token, and one for each prompt: of equal prompts at least the last token is computed again.
    assert decoded.passes == sum(one_by_one) + 4 * 3
    assert decoded.passes_per_token == decoded.passes / 24


@pytest.mark.slow
def test_of_equal_answers_the_first_is_kept_and_unscored_ones_only_where_all_are(llm: MaraLLM) -> None:
    scores = iter([1.0, 2.0, 2.0, None, -5.0, None, None, None, None])
    decoded = best_of_n(llm, PROMPTS, lambda completions: [next(scores) for _ in completions], 3)
    drawn = answers_of(llm, 3, 0)
    assert decoded.completions == [drawn[0][1], drawn[1][1], drawn[2][0]]
    np.testing.assert_array_equal(decoded.rewards, [2.0, -5.0, NAN])
    assert decoded.mean_reward == -1.5


def test_columns_and_messages_reach_the_reward(llm: MaraLLM) -> None:
    seen: list[dict[str, Any]] = []

    def reward(**given: Any) -> list[float]:
        seen.append(given)
        return [0.0] * len(given["completions"])

    rows = [
        {"prompt": [{"role": "user", "content": prompt}], "wanted": number} for number, prompt in enumerate(PROMPTS)
    ]
    texts = best_of_n(llm, rows, reward, 2).completions
    assert seen[0]["wanted"] == [0, 0, 1, 1, 2, 2]
    assert seen[0]["completions"][::2] == [[{"role": "assistant", "content": text}] for text in texts]
    assert texts == decode_order(llm)


def decode_order(llm: MaraLLM) -> list[str]:
    """The first drawn answer of each prompt."""
    return [answers[0] for answers in answers_of(llm, 1, 0)]


@pytest.mark.parametrize(("n", "changes"), [(0, {}), (2, {"temperature": 0.0})])
def test_best_of_n_refuses_what_makes_no_sense(llm: MaraLLM, n: int, changes: dict[str, Any]) -> None:
    with pytest.raises(OptionsError, match=r"Best-of-n needs n of at least 1 and a temperature above 0, not \d and"):
        best_of_n(llm.model_copy(update=changes), PROMPTS, vowels, n)


def test_failures_of_data_and_rewards_are_named(llm: MaraLLM) -> None:
    with pytest.raises(DataError, match="prompt must be text"):
        decode_system(llm, [{"text": "?"}], vowels, "")
    with pytest.raises(RewardError, match="broken"):
        decode_system(llm, PROMPTS[:1], lambda **_: ["broken"], "")


def decoded(rewards: list[float]) -> Decoded:
    return Decoded("a", ["x", "y"], ["1", "2"], np.array(rewards), 40, 10, 5, 2.0)


def test_tokens_and_passes_are_of_the_answers_given() -> None:
    partly_scored = decoded([1.0, NAN])
    assert (partly_scored.mean_reward, partly_scored.tokens_per_second, partly_scored.passes_per_token) == (
        1.0,
        5.0,
        0.5,
    )


def test_nothing_scored_has_no_mean() -> None:
    assert math.isnan(decoded([NAN, NAN]).mean_reward)
