"""Gates in the decode loop: a plain loop's decisions with both kinds of agents, in any batch, order and strategy."""

import math
import random
from collections import Counter
from typing import Any, get_args

import pytest
import torch
from decisions import check_independence, run
from families import tiny_agent, tiny_look_ahead, tiny_model
from torch import Tensor

from langchain_mara.agents.base import Agent
from langchain_mara.agents.look_ahead import look_ahead_features
from langchain_mara.agents.mixture import MixtureAgent
from langchain_mara.decoding.ngram import NgramProposer
from langchain_mara.decoding.request import Decision, Request
from langchain_mara.gates.kinds import EntropyGate, TrustGate
from langchain_mara.gates.rarity import Rarity
from langchain_mara.options import DecodingOptions, Order, Strategy
from langchain_mara.policy.model import PolicyModel

PROMPTS = [[44, 3, 44, 3, 44], [5, 6, 7], list(range(2, 30))]
STATE, AHEAD = tiny_agent(seed=3), tiny_look_ahead(seed=1, bias=0.3)
MIXED = MixtureAgent([tiny_agent(seed=3), tiny_agent(seed=4)])
AGENTS: dict[str, Agent] = {"state": STATE, "ahead": AHEAD, "mixed": MIXED}
RARITY = Rarity([(token * 31 % 97) / 96 for token in range(97)])
GATES = {
    "entropy": EntropyGate(threshold=2.6),
    "trust": TrustGate(alpha=1.0, window=3, rarity=RARITY),
    "certainty": TrustGate(alpha=0.8, temperature=2.0),
}
EOS = frozenset([1])
WITH_GATE = pytest.mark.parametrize("gate", GATES)
WITH_AGENT = pytest.mark.parametrize("name", AGENTS)


@pytest.fixture(scope="module")
def policy() -> PolicyModel:
    return PolicyModel(tiny_model("llama-3"))


def options(new_tokens: int = 8, **more: Any) -> DecodingOptions:
    return DecodingOptions.parse(**{"top_k": 8, "max_new_tokens": new_tokens, **more})


def facts(decisions: list[Decision]) -> list[tuple[Any, ...]]:
    return [
        (d.token_id, d.candidates, d.index, d.accepted, d.skipped, len(d.accept_probabilities), d.finish_reason)
        for d in decisions
    ]


def verdict(policy: PolicyModel, agent: Agent, ids: list[int], token: int, state: Tensor, logs: Tensor) -> float:
    """What an agent says of one candidate, asked about it alone."""
    if agent.judges == "after":
        output = policy.model(torch.tensor([[*ids, token]]), use_cache=False, output_hidden_states=True)
        after = output.hidden_states[-1][0, -1]
        return float(agent.accept_probability(after))  # type: ignore[operator]
    entropy = -(logs.exp() * logs).sum()
    row = look_ahead_features(state[None], policy.head.weight[token][None], logs[token][None], entropy[None])
    return float(agent(row).softmax(-1)[0, 1])


@torch.inference_mode()
def plain_loop(policy: PolicyModel, agent: Agent, prompt: list[int], chosen: DecodingOptions) -> list[Any]:
    """Candidates, index, whether the gate skipped, of every position: no cache, no batch, one candidate at a time."""
    ids, steps, trusts = list(prompt), [], list[float]()
    draws, gate = random.Random(chosen.seed), chosen.gate
    while len(steps) < chosen.max_new_tokens:
        output = policy.model(torch.tensor([ids]), use_cache=False, output_hidden_states=True)
        state, logs = output.hidden_states[-1][0, -1].float(), output.logits[0, -1].float().log_softmax(-1)
        ranked = logs.sort(descending=True)
        shares = ranked.values[: chosen.top_k].softmax(-1)
        count = max(1, int((shares.cumsum(0) - shares < chosen.top_p).sum()))
        kept = ranked.indices[:count].tolist()
        kept = {"descending": kept, "reversed": kept[::-1], "top-1-last": [*kept[1:], kept[0]]}[chosen.order]
        skipped = False
        if count > 1 and isinstance(gate, EntropyGate):
            skipped = float(-(logs.exp() * logs).sum()) <= gate.threshold
        elif count > 1 and isinstance(gate, TrustGate):
            p = verdict(policy, agent, ids, kept[0], state, logs)
            odds = math.log(p / (1 - p)) / gate.temperature
            pair = [1 / (1 + math.exp(odds)), 1 / (1 + math.exp(-odds))]
            certainty = math.log(2) + sum(q * math.log(q) for q in pair)
            trust = certainty / math.log(2) * (gate.rarity[kept[0]] if gate.rarity else 1)
            recent = trusts[-gate.window :]
            skipped = bool(recent) and trust < gate.alpha * sum(recent) / len(recent)
            trusts.append(trust)
        index = 0
        if count > 1 and not skipped:
            asked = [verdict(policy, agent, ids, token, state, logs) for token in kept]
            index = choose(asked, logs[kept].tolist(), chosen, draws)
        steps.append((tuple(kept), index, skipped))
        ids.append(kept[index])
        if ids[-1] in EOS:
            break
    return steps


def choose(asked: list[float], logs: list[float], chosen: DecodingOptions, draws: random.Random) -> int:
    if chosen.strategy == "sampled":
        return next((i for i, p in enumerate(asked) if p > draws.random()), chosen.fallback_index(len(asked)))
    if chosen.strategy == "guided":
        strength = chosen.strength
        return max(range(len(asked)), key=lambda i: (1 - strength) * logs[i] + strength * math.log(asked[i]))
    accepted = [i for i, p in enumerate(asked) if p > chosen.accept_threshold]
    if not accepted:
        return chosen.fallback_index(len(asked))
    if chosen.strategy == "random":
        return draws.choice(accepted)
    return max(accepted, key=asked.__getitem__) if chosen.strategy == "max-prob" else accepted[0]


@WITH_GATE
@pytest.mark.parametrize("name", ["state", "ahead"])
@pytest.mark.parametrize("strategy", get_args(Strategy))
def test_equals_a_plain_loop_in_every_strategy(policy: PolicyModel, gate: str, name: str, strategy: str) -> None:
    order = ["descending", "reversed", "top-1-last"][len(strategy) % 3]
    chosen = options(strategy=strategy, order=order, seed=5, fallback=1, gate=GATES[gate])
    requests = [Request(prompt, chosen, AGENTS[name], EOS) for prompt in PROMPTS[:2]]
    for prompt, decisions in zip(PROMPTS, run(policy, requests, width=3, draft=4), strict=False):
        steps = plain_loop(policy, AGENTS[name], prompt, chosen)
        assert [(d.candidates, d.index, d.skipped) for d in decisions] == steps


@WITH_GATE
@WITH_AGENT
def test_gates_skip_some_positions_and_show_it(policy: PolicyModel, gate: str, name: str) -> None:
    chosen = options(16, strategy="max-prob", gate=GATES[gate])
    requests = [Request(prompt, chosen, AGENTS[name]) for prompt in PROMPTS]
    seen = Counter[tuple[bool, bool]]()
    for decisions in run(policy, requests):
        for d in decisions:
            several = len(d.candidates) > 1
            assert several or not d.skipped
            seen[d.skipped, d.index > 0] += several
            if d.skipped:
                assert (d.index, d.accepted, len(d.accept_probabilities)) == (0, True, 0 if gate == "entropy" else 1)
    assert seen[True, False] > 2, "some positions are skipped"
    assert seen[False, True] > 2, "at others the agent prefers another candidate"
    assert seen[True, True] == 0


@WITH_GATE
@pytest.mark.parametrize("order", get_args(Order))
@pytest.mark.parametrize("strategy", get_args(Strategy))
def test_decisions_depend_on_nothing_but_the_request(policy: PolicyModel, gate: str, strategy: str, order: str) -> None:
    chosen = options(6, strategy=strategy, order=order, seed=4, gate=GATES[gate])
    agents = [STATE, AHEAD, None, STATE]

    def requests() -> list[Request]:
        prompts = [list(range(2, 90)), *PROMPTS]
        made = [Request(prompt, chosen, agent, EOS) for prompt, agent in zip(prompts, agents, strict=True)]
        return [*made, Request(PROMPTS[0], chosen.model_copy(update={"gate": None}), STATE, EOS)]

    alone = check_independence(policy, requests, facts)
    assert any(fact[4] for decided in alone[:2] for fact in decided) or order != "descending"


@WITH_GATE
@pytest.mark.parametrize("name", ["state", "ahead"])
def test_drafts_change_no_decision(policy: PolicyModel, monkeypatch: pytest.MonkeyPatch, gate: str, name: str) -> None:
    """Drafts that are right up to every fifth token of an answer."""
    chosen = options(30, gate=GATES[gate])

    def requests() -> list[Request]:
        return [Request(prompt, chosen, AGENTS[name]) for prompt in PROMPTS]

    before = policy.passes
    plain = run(policy, requests(), width=8)
    undrafted = policy.passes - before
    answers = {tuple(p): [d.token_id for d in ds] for p, ds in zip(PROMPTS, plain, strict=True)}

    def draft(proposer: NgramProposer, first: int, most: int) -> list[int]:
        prompt = next(p for p in answers if tuple(proposer._tokens[: len(p)]) == p)
        done = len(proposer) - len(prompt)
        if answers[prompt][done] != first:
            return []
        ahead = answers[prompt][done + 1 : done + 1 + most]
        return [(token + 1) % 97 if (done + i) % 5 == 0 else token for i, token in enumerate(ahead)]

    monkeypatch.setattr(NgramProposer, "draft", draft)
    before = policy.passes
    drafted = run(policy, requests(), draft=8, width=8)
    assert [facts(decisions) for decisions in drafted] == [facts(decisions) for decisions in plain]
    # A draft takes the place of siblings, which a state agent may need.
    assert policy.passes - before < undrafted or name == "state"
    assert any(d.drafted and d.skipped for ds in drafted for d in ds)


class CountingAgent(type(STATE)):  # type: ignore[misc]
    """Counts the candidates that it is asked about."""

    asked = 0

    def accept_probability(self, states: Tensor, accept_action: int = 1) -> Tensor:
        CountingAgent.asked += states.shape[:-1].numel()
        return super().accept_probability(states, accept_action)  # type: ignore[no-any-return]


@pytest.mark.parametrize("strategy", ["first-accept", "max-prob"])
def test_an_entropy_gate_saves_a_state_agent_its_passes(policy: PolicyModel, strategy: str) -> None:
    """An agent that never accepts looks at every candidate, one per pass; where it is skipped, one pass is enough."""
    never = CountingAgent(32, width=16).eval()
    never.load_state_dict(tiny_agent(bias=-100.0).state_dict())
    CountingAgent.asked = 0

    def passes(gate: EntropyGate | None) -> tuple[int, list[Decision]]:
        before = policy.passes
        request = Request(PROMPTS[0], options(10, strategy=strategy, gate=gate), never)
        (decisions,) = run(policy, [request], width=1)
        return policy.passes - before - 1, decisions

    count, decisions = passes(GATES["entropy"])  # type: ignore[arg-type]
    needed = [1 if d.skipped else len(d.candidates) for d in decisions]
    assert count == sum(needed)
    assert sum(needed) < sum(len(d.candidates) for d in decisions)
    assert CountingAgent.asked == sum(0 if d.skipped else len(d.candidates) for d in decisions)
    count, decisions = passes(EntropyGate(threshold=1000.0))
    assert count == len(decisions) == 10


@pytest.mark.parametrize("name", ["state", "ahead"])
def test_a_gate_that_never_opens_is_plain_and_one_that_always_does_is_none(policy: PolicyModel, name: str) -> None:
    def answer(agent: Agent | None, gate: Any) -> list[int]:
        chosen = options(12, strategy="max-prob", gate=gate)
        return [d.token_id for d in run(policy, [Request(PROMPTS[1], chosen, agent)])[0]]

    agent = AGENTS[name]
    plain, guided = answer(None, None), answer(agent, None)
    assert plain != guided
    assert answer(agent, EntropyGate(threshold=1000.0)) == plain == answer(None, GATES["entropy"])
    assert answer(agent, EntropyGate(threshold=0.0)) == guided == answer(agent, TrustGate(alpha=0.0))


def test_a_state_agent_that_would_fail_is_not_asked_where_it_is_skipped(policy: PolicyModel) -> None:
    broken = tiny_agent()
    torch.nn.init.constant_(broken.output_linear.weight, torch.nan)
    (decisions,) = run(policy, [Request(PROMPTS[1], options(5, gate=EntropyGate(threshold=1000.0)), broken)])
    assert all(d.skipped for d in decisions if len(d.candidates) > 1)


def test_memory_that_runs_out_changes_no_decision(policy: PolicyModel) -> None:
    for gate in GATES.values():
        chosen = options(8, strategy="random", seed=11, gate=gate)
        agents = [STATE, AHEAD, STATE]

        def requests(chosen: DecodingOptions = chosen, agents: list[Any] = agents) -> list[Request]:
            return [Request(prompt, chosen, agent) for prompt, agent in zip(PROMPTS, agents, strict=True)]

        expected = [facts(decisions) for decisions in run(policy, requests())]
        passes = 0

        def fail(*_: Any) -> None:
            nonlocal passes
            passes += 1
            if passes in (4, 7):
                raise torch.OutOfMemoryError("CUDA out of memory, so to speak")

        hook = policy.backbone.register_forward_pre_hook(fail)
        with pytest.warns(RuntimeWarning, match="Out of memory"):
            again = run(policy, requests())
        hook.remove()
        assert [facts(decisions) for decisions in again] == expected
