"""Mixtures in the decode loop: what their members say by rule and weight, in any batch, order and strategy."""

from typing import Any, get_args

import pytest
import torch
from decisions import check_independence, facts_with_one_cancelled, run
from families import tiny_agent, tiny_look_ahead, tiny_model

from langchain_mara.agents.base import Agent
from langchain_mara.agents.look_ahead import look_ahead_features
from langchain_mara.agents.mixture import MixtureAgent
from langchain_mara.agents.stacking import Rule
from langchain_mara.decoding.request import Decision, Request
from langchain_mara.gates.kinds import TrustGate
from langchain_mara.options import DecodingOptions, Order, Strategy
from langchain_mara.policy.model import PolicyModel

PROMPTS = [[44, 3, 44, 3, 44], [5, 6, 7], list(range(2, 30))]
WEIGHTS = (0.8, 0.6)
MEMBERS: dict[str, list[Agent]] = {
    "after": [tiny_agent(seed=3), tiny_agent(seed=4, bias=0.5)],
    "before": [tiny_look_ahead(seed=1, bias=-0.3), tiny_look_ahead(seed=2)],
}
EOS = frozenset([1])


@pytest.fixture(scope="module")
def policy() -> PolicyModel:
    return PolicyModel(tiny_model("llama-3"))


def mixture(judges: str, rule: Rule) -> MixtureAgent:
    return MixtureAgent(MEMBERS[judges], WEIGHTS, rule)


def options(new_tokens: int = 8, **more: Any) -> DecodingOptions:
    return DecodingOptions.parse(**{"top_k": 8, "max_new_tokens": new_tokens, **more})


def facts(decisions: list[Decision]) -> list[tuple[Any, ...]]:
    return [(d.token_id, d.candidates, d.index, d.accepted, d.skipped, d.finish_reason) for d in decisions]


@torch.inference_mode()
def log_odds(policy: PolicyModel, agent: Agent, ids: list[int], candidates: tuple[int, ...]) -> torch.Tensor:
    """Log-odds of each candidate by one agent, without table, stack and cache."""
    if agent.judges == "after":
        rows = torch.tensor([[*ids, token] for token in candidates])
        features = policy.model(rows, use_cache=False, output_hidden_states=True).hidden_states[-1][:, -1]
    else:
        output = policy.model(torch.tensor([ids]), use_cache=False, output_hidden_states=True)
        logs = output.logits[0, -1].float().log_softmax(-1)
        entropy = -(logs.exp() * logs).sum()
        features = look_ahead_features(
            output.hidden_states[-1][0, -1].expand(len(candidates), -1),
            policy.head.weight[list(candidates)],
            logs[list(candidates)],
            entropy.expand(len(candidates)),
        )
    logits: torch.Tensor = agent(features)
    return logits[:, 1] - logits[:, 0]


@pytest.mark.parametrize("rule", get_args(Rule))
@pytest.mark.parametrize("judges", MEMBERS)
def test_a_mixture_says_what_rule_and_weights_make_of_its_members(policy: PolicyModel, judges: str, rule: Rule) -> None:
    chosen = options(strategy="max-prob", fallback=-1)
    agent = mixture(judges, rule)  # one, so that all answers are judged together
    requests = [Request(prompt, chosen, agent, EOS) for prompt in PROMPTS]
    chose = set()
    for request, decisions in zip(requests, run(policy, requests, width=3), strict=True):
        ids = list(request.prompt_ids)
        for decision in decisions:
            one, other = (log_odds(policy, member, ids, decision.candidates) for member in MEMBERS[judges])
            by_rule = {"product": 0.8 * one + 0.6 * other, "all": one.minimum(other), "any": one.maximum(other)}
            expected = by_rule[rule].sigmoid()
            assert decision.accept_probabilities == pytest.approx(expected.tolist(), abs=1e-5)
            accepted = bool((expected > 0.5).any())
            assert decision.index == (int(expected.argmax()) if accepted else len(expected) - 1)
            chose.add(decision.index > 0)
            ids.append(decision.token_id)
    assert chose == {True, False}


@pytest.mark.parametrize("order", get_args(Order))
@pytest.mark.parametrize("strategy", get_args(Strategy))
def test_decisions_depend_on_nothing_but_the_request(policy: PolicyModel, strategy: str, order: str) -> None:
    """In a batch with single agents and plain requests, in any width and with drafts and prefixes, as alone."""
    chosen = options(6, strategy=strategy, order=order, seed=4)
    ahead = mixture("before", "product")
    agents = [ahead, mixture("after", "all"), ahead, mixture("before", "any"), None]

    def requests() -> list[Request]:
        prompts = [list(range(2, 90)), *PROMPTS, [9] * 12]
        return [Request(prompt, chosen, agent, EOS) for prompt, agent in zip(prompts, agents, strict=True)]

    check_independence(policy, requests, facts)


def test_look_ahead_members_take_one_pass_per_token_together(policy: PolicyModel) -> None:
    before = policy.passes
    (decisions,) = run(policy, [Request(PROMPTS[0], options(9, strategy="max-prob"), mixture("before", "all"))])
    assert policy.passes - before == len(decisions), "the last token needs none"
    assert all(len(decision.accept_probabilities) == len(decision.candidates) > 1 for decision in decisions)


@pytest.mark.parametrize("gate", [None, TrustGate(alpha=1.0, window=3)], ids=["", "gate"])
@pytest.mark.parametrize("judges", MEMBERS)
def test_a_cancelled_answer_disturbs_nobody(policy: PolicyModel, judges: str, gate: TrustGate | None) -> None:
    """Neither the answers next to it, nor what a gate remembers of these."""
    chosen = options(9, gate=gate)
    requests = [Request(prompt, chosen, mixture(judges, "product")) for prompt in PROMPTS]
    expected = [facts(run(policy, [Request(prompt, chosen, mixture(judges, "product"))])[0]) for prompt in PROMPTS]
    assert any(fact[4] for fact in expected[2]) == (gate is not None)
    assert facts_with_one_cancelled(policy, requests, facts) == [expected[0], expected[1][:4], expected[2]]
