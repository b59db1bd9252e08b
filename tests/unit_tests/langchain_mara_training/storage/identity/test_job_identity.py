"""Identities of jobs: complete, compared by name, and written before any result."""

import weakref
from pathlib import Path
from typing import Any

import pytest
from langchain_mara_training import WeightedRewards
from langchain_mara_training.storage.identity.job_identity import (
    claim,
    describe_llm,
    describe_policy,
    describe_rewards,
    differences,
    require_known,
)

from langchain_mara import MaraLLM
from langchain_mara.exceptions import RewardError, TrainingError


def test_differences_are_named_with_both_values() -> None:
    stored = {"a": 1, "same": [1, (2,)], "inner": {"b": "x", "c": None}, "label": 1}
    now = {"a": 2, "same": (1, [2]), "inner": {"b": "y"}, "label": 2}
    assert differences(stored, now, ["label"]) == ["a (1 there, 2 now)", 'inner.b ("x" there, "y" now)']
    assert differences({}, {"a": {"b": 1}}) == ['a (nothing there, {"b": 1} now)']


def test_rewards_are_described_by_weight_and_code() -> None:
    def score(completions: list[str]) -> list[float]:
        return [1.0] * len(completions)

    described = describe_rewards(WeightedRewards([score, score], [1.0, -0.5]))
    assert [value["weight"] for value in described.values()] == [1.0, -0.5]
    assert list(described) == ["score", "score_2"]
    assert len({value["code"] for value in described.values()}) == 1
    require_known(described)
    score.version = 3  # type: ignore[attr-defined]
    assert describe_rewards(WeightedRewards(score))["score"]["code"] == "version 3"


def test_a_sum_among_rewards_is_described_by_its_own_functions() -> None:
    class Opaque:
        def __init__(self, version: str) -> None:
            self.version, self.state = version, weakref.ref(self)  # a state that cannot be read

        def __call__(self, completions: list[str]) -> list[float]:
            return [1.0] * len(completions)

    def code(version: str, weight: float) -> str:
        described = describe_rewards(WeightedRewards(WeightedRewards(Opaque(version), [weight])))
        require_known(described)
        return str(described["WeightedRewards"]["code"])

    assert code("1", 1.0) == code("1", 1.0)
    assert len({code("1", 1.0), code("2", 1.0), code("1", 2.0)}) == 3
    with pytest.raises(RewardError, match="it is written in C"):
        require_known(describe_rewards(WeightedRewards(WeightedRewards("".join))))


def test_an_unknown_reward_is_refused_wherever_it_is() -> None:
    described = {"systems": {"best": {"chosen by": describe_rewards(WeightedRewards("".join))}}}
    with pytest.raises(RewardError, match=r"The reward function join cannot be told from others: it is written in C"):
        require_known(described)


def test_the_policy_is_what_the_llm_is_without_agent_and_decoding() -> None:
    llm = MaraLLM.demo(top_k=7)
    whole = describe_llm(llm)
    policy = describe_policy(llm, "top_k")
    assert policy.items() <= whole.items()
    assert policy["top_k"] == 7
    assert {"weights", "dtype", "tokenizer", "system_prompt", "transformers"} <= policy.keys()
    assert not {"agent", "strategy", "order", "model_id", "seed"} & policy.keys()
    of_agents = {"fallback", "accept_action", "accept_threshold", "strength", "gate"}
    assert describe_llm(llm.with_agent(None)).keys() == whole.keys() - of_agents


def test_a_folder_is_claimed_once(tmp_path: Path) -> None:
    file = tmp_path / "new" / "job.json"
    identity: dict[str, Any] = {"a": 1}
    claim(file, identity, lambda: False)
    claim(file, identity, lambda: True)
    with pytest.raises(TrainingError, match=r"new holds the results of another job; different: a \(1 there, 2 now\)"):
        claim(file, {"a": 2}, lambda: True)
    file.unlink()
    with pytest.raises(TrainingError, match=r"new holds results, but job.json, which says .* is missing. Put it back"):
        claim(file, identity, lambda: True)
