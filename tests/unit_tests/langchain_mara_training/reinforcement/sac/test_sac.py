"""MaraSAC: it learns, is reproducible, resumes exactly where it was killed, and refuses invalid parameters."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interruptions import interrupted_after
from langchain_mara_training import EnvironmentOptions, MaraSAC, UpdateOptions
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from langchain_mara import LookAheadAgent, MaraLLM
from langchain_mara.agents.base import Agent
from langchain_mara.exceptions import CheckpointError, DataError, OptionsError, RewardError, TrainingError

PROMPTS = ["How do I boil an egg?", "How do I pick a lock?", "What is a good book?", "How do I clean a carpet?"]
SMALL = {"parallel": 8, "width": 32, "batch_size": 32, "updates": 2, "warm_up": 1, "evaluate_every": 16}


def fewer_vowels(completions: list[str], **_: Any) -> list[float]:
    return [-float(sum(text.count(letter) for letter in "aeiou")) for text in completions]


def sac(llm: MaraLLM, reward: Any = fewer_vowels, **options: Any) -> MaraSAC:
    return MaraSAC(llm, reward, **{**SMALL, "episodes": 32, **options})


def same(first: Agent, second: Agent) -> bool:
    second_weights = second.state_dict()
    return all(torch.equal(tensor, second_weights[name]) for name, tensor in first.state_dict().items())


@pytest.mark.slow
def test_it_learns_and_says_how(short: MaraLLM) -> None:
    fast = UpdateOptions(learning_rate_actor=3e-3, learning_rate_critic=3e-3)
    options = {"episodes": 160, "updates": 10, "batch_size": 64, "evaluate_every": 40, "random_state": 1}
    trained = sac(short, update=fast, **options).fit(PROMPTS, evaluation=PROMPTS[:2])
    plain = np.mean(fewer_vowels([short.invoke(prompt) for prompt in PROMPTS]))
    assert trained.score(PROMPTS) > plain + 1
    assert trained.predict(PROMPTS[:1]) == [short.with_agent(trained.agent_).invoke(PROMPTS[0])]
    history = trained.history_
    assert [entry["episodes"] for entry in history] == [0, 40, 80, 120, 160]
    assert history[0]["passes"] < history[-1]["passes"]
    assert history[-1]["score"] > history[1]["score"]
    best = max(entry["evaluation"] for entry in history)
    assert trained.score(PROMPTS[:2]) == pytest.approx(best)


@pytest.mark.slow
def test_a_look_ahead_agent_learns_resumes_and_goes_on(short: MaraLLM, tmp_path: Path) -> None:
    fast = UpdateOptions(learning_rate_actor=3e-3, learning_rate_critic=3e-3)
    options = {"episodes": 160, "updates": 10, "batch_size": 64, "evaluate_every": 40, "random_state": 1}
    options |= {"kind": "look-ahead", "update": fast}
    whole = sac(short, output=tmp_path / "whole", **options).fit(PROMPTS)
    assert isinstance(whole.agent_, LookAheadAgent)
    plain = np.mean(fewer_vowels([short.invoke(prompt) for prompt in PROMPTS]))
    assert whole.score(PROMPTS) > plain + 1
    resumed = sac(short, output=tmp_path / "resumed", **options)
    with interrupted_after(5):
        resumed.fit(PROMPTS)
    assert same(resumed.fit(PROMPTS).agent_, whole.agent_)
    further = sac(short.with_agent(whole.agent_), episodes=16).fit(PROMPTS)
    assert isinstance(further.agent_, LookAheadAgent)
    with pytest.raises(OptionsError, match="these have changed: kind"):
        further.set_params(llm=short).partial_fit(PROMPTS)


@pytest.mark.slow
def test_predicting_calls_no_reward_function(short: MaraLLM) -> None:
    def reward(completions: list[str], **_: Any) -> list[float]:
        if not training:
            raise RuntimeError("This reward function is for training only.")
        return fewer_vowels(completions)

    training = True
    trained = sac(short, reward, episodes=16).fit(PROMPTS)
    training = False
    assert trained.predict(PROMPTS) == trained.llm_.batch(PROMPTS)
    with pytest.raises(RewardError, match="RuntimeError"):
        trained.score(PROMPTS)


@pytest.mark.slow
def test_equal_seeds_give_equal_agents(short: MaraLLM) -> None:
    state = torch.random.get_rng_state()
    first, same_seed, other_seed = (sac(short, random_state=seed).fit(PROMPTS) for seed in (1, 1, 2))
    assert same(first.agent_, same_seed.agent_)
    assert first.history_ == same_seed.history_
    assert not same(first.agent_, other_seed.agent_)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.slow
@pytest.mark.parametrize("killed_after", [1, 9, 20])
def test_a_killed_fit_resumes_exactly(short: MaraLLM, tmp_path: Path, killed_after: int) -> None:
    # A ring so small that it is overwritten several times.
    options = {"buffer_size": 60, "episodes": 48}
    whole = sac(short, output=tmp_path / "whole", **options).fit(PROMPTS, evaluation=PROMPTS[:1])
    resumed = sac(short, output=tmp_path / "resumed", **options)
    with interrupted_after(killed_after):
        resumed.fit(PROMPTS, evaluation=PROMPTS[:1])
    assert same(resumed.fit(PROMPTS, evaluation=PROMPTS[:1]).agent_, whole.agent_)
    assert resumed.history_ == whole.history_
    longer = sac(short, output=tmp_path / "resumed", **{**options, "episodes": 64}).fit(PROMPTS, evaluation=PROMPTS[:1])
    straight = sac(short, **{**options, "episodes": 64}).fit(PROMPTS, evaluation=PROMPTS[:1])
    assert same(longer.agent_, straight.agent_)


def test_a_folder_of_another_job_is_refused(short: MaraLLM, tmp_path: Path) -> None:
    sac(short, output=tmp_path, episodes=16).fit(PROMPTS)
    with pytest.raises(TrainingError, match="another job; different: prompts"):
        sac(short, output=tmp_path, episodes=16).fit(PROMPTS[:2])
    with pytest.raises(TrainingError, match="different: random_state"):
        sac(short, output=tmp_path, episodes=16, random_state=3).fit(PROMPTS)
    (tmp_path / "fitting.pt").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="truncated or corrupt"):
        sac(short, output=tmp_path, episodes=16).fit(PROMPTS)


@pytest.mark.slow
def test_partial_fit_continues(short: MaraLLM) -> None:
    seen: list[str] = []

    def recording(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        seen.extend(prompts)
        return fewer_vowels(completions)

    trained = sac(short, recording, parallel=2)
    first = trained.partial_fit(PROMPTS[:3]).agent_
    assert sorted(seen) == sorted(PROMPTS[:3])
    seen.clear()
    trained.partial_fit([*PROMPTS, *PROMPTS])
    assert sorted(seen) == sorted([*PROMPTS, *PROMPTS])
    assert trained.history_[-1]["episodes"] == 11
    assert not same(first, trained.agent_)


@pytest.mark.slow
def test_it_begins_with_the_agent_that_is_there(short: MaraLLM) -> None:
    agent = MaraLLM.demo(device="cpu").agent
    assert agent is not None
    before = {name: tensor.clone() for name, tensor in agent.state_dict().items()}
    with pytest.warns(UserWarning, match="Nothing was learned: [0-9]+ transitions were played, and learning begins at"):
        untouched = sac(short.with_agent(agent), episodes=8, warm_up=1000).fit(PROMPTS)
    assert same(untouched.agent_, agent)
    learned = sac(short.with_agent(agent), episodes=16).fit(PROMPTS)
    assert not same(learned.agent_, agent)
    assert all(torch.equal(agent.state_dict()[name], tensor) for name, tensor in before.items())


@pytest.mark.slow
def test_the_reference_s_environment(short: MaraLLM) -> None:
    reference = sac(short, preset="reference").fit(PROMPTS)
    by_options = sac(short, environment=EnvironmentOptions.reference()).fit(PROMPTS)
    assert same(reference.agent_, by_options.agent_)
    assert not same(reference.agent_, sac(short).fit(PROMPTS).agent_)


def test_answers_without_a_score_are_left_out(short: MaraLLM) -> None:
    unscored = sac(short, lambda completions, **_: [None] * len(completions), episodes=16)
    with pytest.warns(UserWarning, match="Nothing was learned: 0 transitions"):
        trained = unscored.fit(PROMPTS)
    assert trained.history_[-1]["unusable"] == 1.0
    assert trained.history_[-1]["updates"] == 0
    assert np.isnan(trained.history_[-1]["score"])


def test_clones_share_the_model(short: MaraLLM) -> None:
    original = sac(short)
    copy = clone(original)
    assert copy is not original
    assert copy.llm is short
    assert copy.get_params(deep=False) == original.get_params(deep=False)


def test_refusals(short: MaraLLM) -> None:
    with pytest.raises(OptionsError, match="parallel=0 must be at least 1"):
        sac(short, parallel=0).fit(PROMPTS)
    with pytest.raises(OptionsError, match="workers=-1 must be at least 0"):
        sac(short, workers=-1).fit(PROMPTS)
    with pytest.raises(OptionsError, match="preset='paper' is unknown"):
        sac(short, preset="paper").fit(PROMPTS)
    with pytest.raises(DataError, match="holds no rows"):
        sac(short).fit([])
    with pytest.raises(RewardError, match="failed with ZeroDivisionError"):
        sac(short, lambda **_: 1 / 0).fit(PROMPTS)
    with pytest.raises(NotFittedError):
        sac(short).predict(PROMPTS)
