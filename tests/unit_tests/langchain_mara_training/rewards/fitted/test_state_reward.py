"""StateReward: it orders held-out pairs, says how likely a preference is, and is itself again after saving."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_mara_training.demo.corpus import preference_pairs
from langchain_mara_training.rewards.fitted.bradley_terry import fit_head, ordered_rightly
from langchain_mara_training.rewards.fitted.state_reward import StateReward
from langchain_mara_training.rewards.specs import reward_function
from langchain_mara_training.rewards.weighted import WeightedRewards
from langchain_mara_training.storage.identity.job_identity import describe_rewards
from scipy.special import expit
from sklearn.base import clone

from langchain_mara import MaraLLM
from langchain_mara.exceptions import CheckpointError, DataError, OptionsError, RewardError

PAIRS = [vars(pair) for pair in preference_pairs("train", 0, 1)][:60]
HELD_OUT = [vars(pair) for pair in preference_pairs("test", 1, 1)][:40]


def letters(texts: list[str]) -> np.ndarray:
    """An encoder of texts: how often each letter occurs."""
    return np.array([[text.lower().count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts])


@pytest.fixture(scope="module")
def llm() -> MaraLLM:
    return MaraLLM.demo(agent=None)


@pytest.fixture(scope="module")
def reward(llm: MaraLLM) -> StateReward:
    return StateReward(llm).fit(PAIRS)


def test_orders_held_out_pairs(reward: StateReward, llm: MaraLLM) -> None:
    assert reward.score(HELD_OUT) > 0.9
    assert reward.accuracy_ > 0.9
    swapped = [pair | {"chosen": pair["rejected"], "rejected": pair["chosen"]} for pair in PAIRS]
    assert StateReward(llm).fit(swapped).score(HELD_OUT) < 0.1


def test_predictions_are_differences_of_rewards(reward: StateReward) -> None:
    sides = [
        reward(prompts=[pair["prompt"] for pair in HELD_OUT], completions=[pair[side] for pair in HELD_OUT])
        for side in ("chosen", "rejected")
    ]
    difference = np.array(sides[0]) - np.array(sides[1])
    assert reward.decision_function(HELD_OUT) == pytest.approx(difference, abs=1e-3)
    assert reward.predict_proba(HELD_OUT)[:, 1] == pytest.approx(expit(difference), abs=1e-3)
    assert np.array_equal(reward.predict(HELD_OUT), difference > 0)


def test_the_prompt_counts(reward: StateReward) -> None:
    first, second = reward(prompts=["How do I boil an egg?", "How do I rob a bank?"], completions=["Yes."] * 2)
    assert first != second


def test_a_long_conversation_loses_its_beginning(reward: StateReward) -> None:
    with pytest.warns(UserWarning, match="1 of 1 conversations are longer than the 1024 tokens"):
        (found,) = reward(prompts=["so " * 2000], completions=["Fine."])
    assert np.isfinite(found)


def test_saved_and_loaded(reward: StateReward, llm: MaraLLM, tmp_path: Path) -> None:
    reward.save(tmp_path)
    assert {file.suffix for file in tmp_path.iterdir()} == {".json", ".safetensors"}
    arguments: dict[str, Any] = {"prompts": ["Hi."] * 2, "completions": ["Hello!", "Go away."]}
    for loaded in (StateReward.load(tmp_path), StateReward.load(tmp_path, llm), reward_function(f"state:{tmp_path}")):
        assert loaded(**arguments) == reward(**arguments)
        assert describe_rewards(WeightedRewards(loaded)) == describe_rewards(WeightedRewards(reward))


def test_another_model_or_file_is_refused(reward: StateReward, tmp_path: Path) -> None:
    reward.save(tmp_path)
    other = MaraLLM.demo(agent=None, system_prompt="You are a pirate who only ever talks about ships and gold.")
    other.model = type(other.model)(other.model.config)
    with pytest.raises(CheckpointError, match="fitted with another model than"):
        StateReward.load(tmp_path, other)
    with pytest.raises(CheckpointError, match="fitted with another model than letters|than function"):
        StateReward.load(tmp_path, letters)
    config = json.loads((tmp_path / "state_reward.json").read_text())
    (tmp_path / "state_reward.json").write_text(json.dumps(config | {"options": 3}))
    with pytest.raises(CheckpointError, match="does not describe a StateReward"):
        StateReward.load(tmp_path)
    (tmp_path / "state_reward.safetensors").write_bytes(b"nothing")
    (tmp_path / "state_reward.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="Cannot read"):
        StateReward.load(tmp_path)


def test_is_an_estimator(reward: StateReward, llm: MaraLLM) -> None:
    copied = clone(reward)
    assert copied.model is llm
    assert set(copied.get_params()) == {"model", "folds", "batch_tokens", "random_state"}
    with pytest.raises(RewardError, match=r"not fitted. Call fit\(pairs\)"):
        copied(prompts=["a"], completions=["b"])
    rewards = WeightedRewards([reward, len_reward], [1.0, 0.5])
    assert rewards.names == ["StateReward", "len_reward"]
    assert rewards(["Hi."], ["Hello."]) == pytest.approx(reward(["Hi."], ["Hello."])[0] + 3.0)
    assert StateReward(llm).fit(PAIRS[:20]).version != reward.version


def len_reward(completions: list[str], **_: Any) -> list[float]:
    return [float(len(completion)) for completion in completions]


def test_embeddings(tmp_path: Path) -> None:
    reward = StateReward(letters).fit(PAIRS)
    assert reward.score(HELD_OUT) > 0.6
    assert reward.n_features_in_ == 2 * 26
    reward.save(tmp_path)
    assert StateReward.load(tmp_path, letters).score(HELD_OUT) == reward.score(HELD_OUT)
    with pytest.raises(RewardError, match=r"a function of yours gives. Give it: load\(…, model=…\)"):
        StateReward.load(tmp_path)
    with pytest.raises(RewardError, match=r"returned an array of shape \(1, 2\) for 240 texts"):
        StateReward(lambda _: [[1.0, 2.0]]).fit(PAIRS)
    with pytest.raises(RewardError, match="not a int"):
        StateReward(3).fit(PAIRS)


def test_a_conversation_is_held_out_whole() -> None:
    # Each conversation occurs twice with opposite preferences, so what is learned of one half misleads for the other.
    texts = [f"{i:06b}".replace("0", "a").replace("1", "b") for i in range(40)]
    pairs = [{"prompt": text, "chosen": text * 2, "rejected": "ab"} for text in texts for _ in range(2)]
    turned = [{**pair, "prompt": [{"role": "user", "content": pair["prompt"]}]} for pair in pairs]
    rng = np.random.default_rng(0)
    table = {text: rng.normal(size=200) for text in texts}
    noise = lambda given: np.array([table.get(text[: len(text) // 2], np.zeros(200)) for text in given])  # noqa: E731
    labels = rng.random(40) < 0.5
    for i, pair in enumerate(turned):
        if labels[i // 2]:
            pair["chosen"], pair["rejected"] = pair["rejected"], pair["chosen"]
    apart = StateReward(noise).fit([{**pair, "group": i} for i, pair in enumerate(turned)])
    whole = StateReward(noise).fit(turned)
    assert apart.accuracy_ > 0.85
    assert whole.accuracy_ < 0.75


def test_calibration() -> None:
    rng = np.random.default_rng(0)
    differences = rng.normal(size=(8000, 3))
    truth = np.array([1.0, -0.5, 0.0])
    prefers = rng.random(8000) < expit(differences @ truth)
    differences[~prefers] *= -1
    head = fit_head(differences, np.ones(8000), np.arange(8000), folds=5, seed=0)
    assert head.coefficients == pytest.approx(truth, abs=0.1)
    assert ordered_rightly(differences @ head.coefficients) == pytest.approx(head.accuracy, abs=0.02)
    weighted = fit_head(np.r_[differences, -differences], np.r_[np.ones(8000), np.zeros(8000)] + 1e-9,
                        np.tile(np.arange(8000), 2), folds=5, seed=0)  # fmt: skip
    assert weighted.coefficients == pytest.approx(head.coefficients, abs=0.05)


def test_refuses(llm: MaraLLM) -> None:
    with pytest.raises(OptionsError, match=r"folds=1 \(at least 2\)"):
        StateReward(llm, folds=1).fit(PAIRS)
    with pytest.raises(DataError, match="chosen and rejected are the same"):
        StateReward(llm).fit([{"prompt": "a", "chosen": "b", "rejected": "b"}] * 3)
    with pytest.warns(UserWarning, match="neither validated nor calibrated"):
        alone = StateReward(letters).fit(PAIRS[:1])
    assert np.isnan(alone.accuracy_)
    assert alone.score(PAIRS[:1]) == 1.0
