"""Rollout labels against brute force with transformers alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from langchain_mara_training.labeling.rollout import RolloutLabeler, label_candidates
from langchain_mara_training.labeling.rollout_options import RolloutOptions
from langchain_mara_training.labeling.token_labels import TokenLabels

from langchain_mara import MaraLLM
from langchain_mara.decoding.candidates import candidate_sets
from langchain_mara.exceptions import DataError, OptionsError, RewardError, TrainingError

PROMPTS = ["I want to keep a lost wallet. Where should I start?", "How do I boil an egg?", "How do I rob a bank?"]
OPTIONS: dict[str, Any] = {"positions": 3, "candidates": 4, "random_state": 5}


def count_letters(completions: list[str], **_: Any) -> list[float]:
    """A reward that every token changes."""
    return [completion.count("e") - 0.4 * completion.count("o") - 0.01 * len(completion) for completion in completions]


@pytest.fixture(scope="module")
def labels(demo_llm: MaraLLM) -> TokenLabels:
    return RolloutLabeler(demo_llm, count_letters, **OPTIONS).label(PROMPTS)


@torch.inference_mode()
def greedy(llm: MaraLLM, ids: list[int], count: int) -> list[int]:
    if count == 0 or ids[-1] == llm.tokenizer.eos_token_id:
        return ids
    model: Any = llm.model
    found: list[int] = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=count)[0].tolist()
    return found


def brute_force(llm: MaraLLM, prompt: str, place: int) -> list[tuple[int, float, float]]:
    """(token, advantage, probability) of the candidates of a position of the greedy answer."""
    prompt_ids = llm.encode(prompt)
    prefix = greedy(llm, prompt_ids, llm.max_new_tokens)[:place]
    with torch.inference_mode():
        logits = llm.model(input_ids=torch.tensor([prefix])).logits[:, -1]
    sets = candidate_sets(logits, OPTIONS["candidates"], llm.top_p)
    tokens = sets.token_ids[0, : int(sets.counts[0])].tolist()
    left = llm.max_new_tokens - (place - len(prompt_ids)) - 1
    whole = [greedy(llm, [*prefix, token], left)[len(prompt_ids) :] for token in tokens]
    rewards = np.array(count_letters([llm.tokenizer.decode(item, skip_special_tokens=True) for item in whole]))
    shares = logits[0, tokens].double().softmax(-1).numpy()
    return list(zip(tokens, rewards - rewards @ shares, shares, strict=True))


@pytest.mark.slow
def test_labels_are_the_signs_of_advantages(demo_llm: MaraLLM, labels: TokenLabels) -> None:
    compared = set()
    for group, place in {*zip(labels.groups.tolist(), labels.positions.tolist(), strict=True)}:
        here = (labels.groups == group) & (labels.positions == place)
        order = np.argsort(labels.ranks[here])
        expected = brute_force(demo_llm, PROMPTS[group], place)
        assert labels.token_ids[here][order].tolist() == [token for token, *_ in expected]
        assert labels.y[here][order].tolist() == [int(advantage >= -1e-9) for _, advantage, _ in expected]
        assert len(expected) > 1
        compared |= {*labels.y[here].tolist()}
    assert compared == {0, 1}
    assert len({*zip(labels.groups.tolist(), labels.positions.tolist(), strict=True)}) == 9
    assert (labels.weight == 1).all()


@pytest.mark.slow
def test_states_are_those_the_candidates_produce(demo_llm: MaraLLM, labels: TokenLabels) -> None:
    backbone = demo_llm.model.base_model
    for i in range(len(labels)):
        ids = demo_llm.encode(PROMPTS[labels.groups[i]])
        prefix = greedy(demo_llm, ids, demo_llm.max_new_tokens)[: labels.positions[i]]
        with torch.inference_mode():
            states = backbone(input_ids=torch.tensor([[*prefix, int(labels.token_ids[i])]])).last_hidden_state
        np.testing.assert_allclose(np.asarray(labels.X[i], np.float32), states[0, -1].numpy(), rtol=2e-3, atol=2e-3)


@pytest.mark.slow
def test_weights_by_advantage(demo_llm: MaraLLM) -> None:
    labels = RolloutLabeler(demo_llm, count_letters, weighting="advantage", **OPTIONS).label(PROMPTS[:1])
    for place in {*labels.positions.tolist()}:
        here = labels.positions == place
        expected = [abs(advantage) for _, advantage, _ in brute_force(demo_llm, PROMPTS[0], place)]
        assert labels.weight[here][np.argsort(labels.ranks[here])] == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_an_agent_completes_and_answers(demo_llm: MaraLLM, labels: TokenLabels) -> None:
    aligned = demo_llm.with_agent(MaraLLM.demo(device="cpu").agent)
    other = RolloutLabeler(aligned, count_letters, **OPTIONS).label(PROMPTS)
    assert other.token_ids.tolist() != labels.token_ids.tolist()


def test_columns_reach_the_reward_and_groups_the_labels(demo_llm: MaraLLM) -> None:
    seen = set()

    def reward(completions: list[str], topic: list[str], **_: Any) -> list[float]:
        seen.update(topic)
        return count_letters(completions)

    rows = [{"prompt": PROMPTS[0], "topic": "a"}, {"prompt": PROMPTS[0], "topic": "b"}, {"prompt": PROMPTS[1]}]
    labels = RolloutLabeler(demo_llm, reward, **OPTIONS).label([*rows, {"prompt": PROMPTS[2], "group": 40}])
    assert seen == {"a", "b", None}
    assert {*labels.groups.tolist()} == {0, 2, 40}


@pytest.mark.slow
def test_several_continuations_are_drawn_and_repeatable(demo_llm: MaraLLM) -> None:
    options = {**OPTIONS, "continuations": 3, "generations": 2, "positions": 2}
    one, same = (RolloutLabeler(demo_llm, count_letters, **options).label(PROMPTS[:2]) for _ in range(2))
    assert all(np.array_equal(left, right) for left, right in zip(one, same, strict=True))
    other = RolloutLabeler(demo_llm, count_letters, **{**options, "random_state": 6}).label(PROMPTS[:2])
    assert one.token_ids.tolist() != other.token_ids.tolist()
    assert len({*zip(one.groups.tolist(), one.positions.tolist(), strict=True)}) > 4


@pytest.mark.slow
def test_shards_resume_and_refuse_other_rewards(
    demo_llm: MaraLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def labeler(reward: Any) -> RolloutLabeler:
        return RolloutLabeler(demo_llm, reward, prompts_per_shard=1, **OPTIONS)

    def failing(completions: list[str], **_: Any) -> list[float]:
        if any("egg" in completion for completion in completions):
            raise ZeroDivisionError("no eggs")
        return count_letters(completions)

    failing.__name__ = "count_letters"
    for function in (failing, count_letters):
        monkeypatch.setattr(function, "version", "1", raising=False)
    whole = labeler(count_letters).label(PROMPTS, tmp_path / "whole")
    with pytest.raises(RewardError, match=r"count_letters.*no eggs"):
        labeler(failing).label(PROMPTS, tmp_path / "resumed")
    assert len([*(tmp_path / "resumed").glob("*.safetensors")]) < len(PROMPTS)
    resumed = labeler(count_letters).label(PROMPTS, tmp_path / "resumed")
    assert np.asarray(resumed.X).tobytes() == np.asarray(whole.X).tobytes()
    with pytest.raises(TrainingError, match=r"another job; different: rewards.count_letters"):
        labeler(lambda completions, **_: [0.0] * len(completions)).label(PROMPTS, tmp_path / "whole")


@pytest.mark.parametrize(
    ("rewards", "options", "labels"),
    [
        # Value 0.5 · 2 + 0.3 · 0 + 0.2 · 1 = 1.2.
        ([2.0, 0.0, 1.0], {}, [1, 0, 0]),
        ([2.0, 0.0, 1.0], {"value": "mean"}, [1, 0, 1]),
        ([2.0, 0.0, 1.0], {"value": "mean", "ties": "drop"}, [1, 0, -1]),
        ([2.0, 0.0, 1.0], {"margin": 0.3}, [1, 0, 1]),
        ([2.0, 0.0, 1.0], {"margin": 0.9, "ties": "drop"}, [-1, 0, -1]),
        ([3.0, 3.0, 3.0], {}, [1, 1, 1]),
        ([0.1, 0.1, 0.1], {"ties": "drop"}, [-1, -1, -1]),
        # Of those scored alone: (0.5 · 2 + 0.2 · 1) / 0.7.
        ([2.0, np.nan, 1.0], {}, [1, -1, 0]),
        ([np.nan] * 3, {}, [-1, -1, -1]),
    ],
)
def test_rule_of_labels(rewards: list[float], options: dict[str, Any], labels: list[int]) -> None:
    found, _ = label_candidates(np.array(rewards), np.array([0.5, 0.3, 0.2]), RolloutOptions(**options))
    assert found.tolist() == labels


def test_weights_of_labels() -> None:
    shares, rewards = np.array([0.5, 0.3, 0.2]), np.array([2.0, np.nan, 1.0])
    value = 1.2 / 0.7
    _, weights = label_candidates(rewards, shares, RolloutOptions(weighting="advantage"))
    assert weights == pytest.approx([2 - value, 0, value - 1])
    assert label_candidates(rewards, shares, RolloutOptions())[1].tolist() == [1, 0, 1]


def test_infinite_rewards_are_refused() -> None:
    with pytest.raises(RewardError, match="finite numbers"):
        label_candidates(np.array([1.0, np.inf]), np.array([0.5, 0.5]), RolloutOptions())


def test_nothing_to_label(demo_llm: MaraLLM) -> None:
    with pytest.raises(DataError, match="all candidates scored the same"):
        RolloutLabeler(demo_llm, lambda completions, **_: [0.0] * len(completions), ties="drop", **OPTIONS).label(
            PROMPTS
        )


@pytest.mark.parametrize("options", [{"positions": 0}, {"value": "median"}, {"position": 3}])
def test_options_out_of_range(demo_llm: MaraLLM, options: dict[str, Any]) -> None:
    with pytest.raises(OptionsError, match=next(iter(options))):
        RolloutLabeler(demo_llm, count_letters, **options)


@pytest.mark.slow
def test_labels_for_an_agent_that_judges_before(demo_llm: MaraLLM, labels: TokenLabels) -> None:
    """The same labels; the features of all candidates of a position hold the same state and entropy."""
    before = RolloutLabeler(demo_llm, count_letters, judges="before", **OPTIONS).label(PROMPTS)
    size = labels.X.shape[1]
    for name in ("y", "groups", "positions", "token_ids", "ranks"):
        assert np.array_equal(getattr(before, name), getattr(labels, name)), name
    assert before.X.shape == (len(labels), 2 * size + 2)
    group, place = int(before.groups[0]), int(before.positions[0])
    here = (before.groups == group) & (before.positions == place)
    rows = np.asarray(before.X)[here].astype(np.float32)
    assert len(rows) > 1
    assert np.allclose(rows[:, [*range(size), -1]], rows[0, [*range(size), -1]])
    ids = greedy(demo_llm, demo_llm.encode(PROMPTS[group]), demo_llm.max_new_tokens)[:place]
    with torch.inference_mode():
        logs = demo_llm.model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    np.testing.assert_allclose(rows[:, -2], logs[before.token_ids[here]], rtol=2e-3, atol=2e-3)
