"""PreferenceReward: it tells chosen answers from rejected ones by their words, as a logistic regression does."""

import math
from typing import Any

import numpy as np
import pytest
from langchain_mara_training.demo.corpus import preference_pairs
from langchain_mara_training.rewards.preference_reward import PreferenceReward
from langchain_mara_training.rewards.weighted import WeightedRewards

from langchain_mara.exceptions import DataError, RewardError


def pairs_of(split: str, seed: int) -> list[dict[str, Any]]:
    return [vars(pair) for pair in preference_pairs(split, seed, 4)]


def as_messages(pair: dict[str, Any]) -> dict[str, Any]:
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    return {key: [{"role": role, "content": pair[key]}] for key, role in roles.items()}


def margins(reward: PreferenceReward, pairs: list[dict[str, Any]]) -> np.ndarray:
    sides = [
        reward(prompts=[pair["prompt"] for pair in pairs], completions=[pair[side] for pair in pairs])
        for side in ("chosen", "rejected")
    ]
    return np.array(sides[0]) - np.array(sides[1])


def test_tells_answers_about_other_topics_apart() -> None:
    reward = PreferenceReward().fit(pairs_of("train", 0))
    held_out = pairs_of("test", 1)
    assert (margins(reward, held_out) > 0).mean() > 0.95
    swapped = PreferenceReward().fit([p | {"chosen": p["rejected"], "rejected": p["chosen"]} for p in held_out])
    assert (margins(swapped, held_out) > 0).mean() < 0.05


def test_is_the_log_odds() -> None:
    reward = PreferenceReward().fit(pairs_of("train", 0))
    text = "Just do it."
    chosen = reward._pipeline.predict_proba([text])[0, list(reward._pipeline.classes_).index(1)]
    assert reward(prompts=["How?"], completions=[text]) == pytest.approx([math.log(chosen / (1 - chosen))])


def test_of_messages_is_that_of_their_text() -> None:
    pairs = pairs_of("train", 0)
    messages = [as_messages(pair) for pair in pairs]
    plain, rendered = PreferenceReward().fit(pairs), PreferenceReward().fit(messages)
    assert np.array_equal(margins(plain, pairs), margins(rendered, messages))


def test_reads_the_prompt_only_when_told() -> None:
    pairs = [
        {"prompt": "cats", "chosen": "yes", "rejected": "no"},
        {"prompt": "dogs", "chosen": "no", "rejected": "yes"},
    ]
    blind, reading = PreferenceReward().fit(pairs), PreferenceReward(with_prompt=True).fit(pairs)
    assert margins(blind, pairs) == pytest.approx([0.0, 0.0], abs=1e-6)
    assert (margins(reading, pairs) > 0).all()


def test_fits_equally_twice() -> None:
    pairs = pairs_of("train", 0)
    assert np.array_equal(margins(PreferenceReward().fit(pairs), pairs), margins(PreferenceReward().fit(pairs), pairs))


def test_refuses() -> None:
    with pytest.raises(RewardError, match=r"not fitted. Call fit\(pairs\)"):
        PreferenceReward()(prompts=["a"], completions=["b"])
    with pytest.raises(DataError, match="Nothing can be learned from the words"):
        PreferenceReward().fit([{"prompt": "a", "chosen": "", "rejected": ""}])
    with pytest.raises(DataError, match="rejected must be text"):
        PreferenceReward().fit([{"prompt": "a", "chosen": "b"}])


def test_as_a_reward_function() -> None:
    rewards = WeightedRewards(PreferenceReward().fit(pairs_of("train", 0)))
    assert rewards.names == ["PreferenceReward"]
    assert rewards(prompts=["How?"], completions=["Just do it."], topic=["x"]).shape == (1,)
