"""The `guided` strategy: between the model and the agent by a strength, drawn or best, for agents of both kinds."""

from collections import Counter
from typing import Any

import pytest
import torch
from decisions import run, tokens
from families import tiny_agent, tiny_look_ahead, tiny_model

from langchain_mara.agents.base import Agent
from langchain_mara.decoding.request import Decision, Request
from langchain_mara.options import DecodingOptions
from langchain_mara.policy.model import PolicyModel

PROMPT = [5, 6, 7]
AGENTS = {"state": tiny_agent(seed=3), "look-ahead": tiny_look_ahead(seed=3)}
DRAWS = 4000


@pytest.fixture(scope="module")
def policy() -> PolicyModel:
    return PolicyModel(tiny_model("llama-3"))


def answers(policy: PolicyModel, agent: Agent | None, count: int = 1, **options: Any) -> list[list[Decision]]:
    chosen = {"top_k": 6, "top_p": 1.0, "strategy": "guided", "max_new_tokens": 8, **options}
    requests = [Request(PROMPT, DecodingOptions.parse(**chosen, seed=seed), agent) for seed in range(count)]
    return run(policy, requests, batch_size=256)


@pytest.mark.parametrize("kind", AGENTS)
def test_strength_0_is_the_plain_model(policy: PolicyModel, kind: str) -> None:
    (guided,) = answers(policy, AGENTS[kind], strength=0)
    (plain,) = answers(policy, None, strategy="first-accept")
    assert tokens(guided) == tokens(plain)
    assert all(decision.accepted for decision in guided)


@pytest.mark.parametrize("kind", AGENTS)
def test_strength_1_is_the_agents_choice(policy: PolicyModel, kind: str) -> None:
    (guided,) = answers(policy, AGENTS[kind], strength=1)
    for decision in guided:
        probabilities = decision.accept_probabilities
        assert len(probabilities) == len(decision.candidates)
        assert probabilities[decision.index] == max(probabilities)
    assert any(decision.index > 0 for decision in guided)


@pytest.mark.parametrize("kind", AGENTS)
@pytest.mark.parametrize("strength", [0.3, 0.7, 0.95])
def test_the_best_by_the_closed_form_is_emitted(policy: PolicyModel, kind: str, strength: float) -> None:
    (guided,) = answers(policy, AGENTS[kind], strength=strength)
    ids = list(PROMPT)
    for decision in guided:
        logs = policy.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)[list(decision.candidates)]
        weights = logs.exp() ** (1 - strength) * torch.tensor(decision.accept_probabilities) ** strength
        assert decision.index == int(weights.argmax())
        ids.append(decision.token_id)


@pytest.mark.parametrize("kind", AGENTS)
def test_in_the_sampled_order_candidates_are_drawn_in_proportion(policy: PolicyModel, kind: str) -> None:
    options = {"order": "sampled", "temperature": 0.7, "strength": 0.6, "max_new_tokens": 1}
    drawn = Counter(decisions[0].token_id for decisions in answers(policy, AGENTS[kind], DRAWS, **options))
    (decided,) = answers(policy, AGENTS[kind], max_new_tokens=1)
    logs = policy.model(torch.tensor([PROMPT])).logits[0, -1][list(decided[0].candidates)]
    weights = (logs / 0.7).softmax(-1) * torch.tensor(decided[0].accept_probabilities) ** (0.6 / 0.4)
    expected = (weights / weights.sum()).tolist()
    shares = [drawn[token] / DRAWS for token in decided[0].candidates]
    assert shares == pytest.approx(expected, abs=0.03)  # four standard deviations


def test_an_agent_that_refuses_everything_leaves_the_models_choice(policy: PolicyModel) -> None:
    (guided,) = answers(policy, tiny_look_ahead(bias=-1000.0), strength=0.9)
    (plain,) = answers(policy, None, strategy="first-accept")
    assert tokens(guided) == tokens(plain)


def test_without_an_agent_it_is_plain_decoding(policy: PolicyModel) -> None:
    (guided,) = answers(policy, None)
    assert tokens(guided) == tokens(answers(policy, None, strategy="first-accept")[0])
