"""Look-ahead agents in the decode loop: a plain loop's decisions, at one pass per token, in any batch and order."""

import math
import random
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from decisions import computed_tokens, facts_with_one_cancelled, run, tokens
from families import tiny_agent, tiny_look_ahead, tiny_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from langchain_mara.agents.look_ahead import CandidatesAhead, LookAheadAgent
from langchain_mara.decoding.judging.before import Outlook
from langchain_mara.decoding.loop import decode
from langchain_mara.decoding.ngram import NgramProposer
from langchain_mara.decoding.request import Decision, Request
from langchain_mara.exceptions import AgentMismatchError, NonFiniteError
from langchain_mara.options import DecodingOptions, Order, Strategy
from langchain_mara.policy.model import PolicyModel
from langchain_mara.policy.prefix_cache import PrefixCache

PROMPTS = [[44, 3, 44, 3, 44], [5, 6, 7], list(range(2, 30)), [9] * 12, [3]]
AGENTS = [tiny_look_ahead(seed=seed, bias=bias) for seed, bias in enumerate([0.0, 0.3, -0.3, 0.6])]
NEVER, ALWAYS = tiny_look_ahead(bias=-100.0), tiny_look_ahead(bias=100.0)
GOLDEN_MODELS = ["llama3", "llama31", "llama32_tied", "mistral_full", "mistral_sliding"]
EOS = frozenset([1])


@pytest.fixture(scope="module")
def policy() -> PolicyModel:
    return PolicyModel(tiny_model("llama-3"))


def options(new_tokens: int = 12, **more: Any) -> DecodingOptions:
    return DecodingOptions.parse(**{"top_k": 12, "max_new_tokens": new_tokens, **more})


def facts(decisions: list[Decision]) -> list[tuple[Any, ...]]:
    return [(d.token_id, d.candidates, d.index, d.accepted, d.finish_reason) for d in decisions]


@torch.inference_mode()
def plain_loop(
    policy: PolicyModel, agent: LookAheadAgent, prompt: list[int], chosen: DecodingOptions
) -> list[tuple[list[int], list[float], int]]:
    """Candidates, accept probabilities of all of them, and index of the emitted one, of every position.

    By the letter: no cache, no batch, one candidate after the other, no table, the agent's layers one by one.
    """
    ids, steps = list(prompt), []
    head = policy.head.weight
    draws = random.Random(chosen.seed)
    while len(steps) < chosen.max_new_tokens:
        output = policy.model(torch.tensor([ids]), use_cache=False, output_hidden_states=True)
        state = output.hidden_states[-1][0, -1].float()
        logs = output.logits[0, -1].float().log_softmax(-1)
        entropy = -(logs.exp() * logs).sum()
        ranked = logs.sort(descending=True)
        shares = ranked.values[: chosen.top_k].softmax(-1)
        count = max(1, int((shares.cumsum(0) - shares < chosen.top_p).sum()))
        kept = in_order(ranked.indices[:count].tolist(), chosen.order)
        asked = []
        for token in kept:
            first = agent.linear1(agent.ln(state))
            half = agent.token_linear(agent.token_ln(head[token].float()))
            first = first + (half if agent.lift is None else agent.lift(half))
            first = first + agent.numbers_linear(torch.stack([logs[token], entropy]))
            verdict = agent.output_linear(agent.linear2(first.relu()).relu()).softmax(-1)
            asked.append(float(verdict[chosen.accept_action]))
        steps.append((kept, asked, choose(kept, asked, chosen, draws, logs[kept].tolist())))
        ids.append(kept[steps[-1][2]])
        if ids[-1] in EOS:
            break
    return steps


def in_order(kept: list[int], order: str) -> list[int]:
    return {"descending": kept, "reversed": kept[::-1], "top-1-last": [*kept[1:], kept[0]]}[order]


def choose(
    kept: list[int], asked: list[float], chosen: DecodingOptions, draws: random.Random, logs: list[float]
) -> int:
    if len(kept) == 1:
        return 0
    if chosen.strategy == "sampled":
        return next((i for i, p in enumerate(asked) if p > draws.random()), chosen.fallback_index(len(kept)))
    if chosen.strategy == "guided":
        weight = chosen.strength / (1 - chosen.strength)
        return max(range(len(kept)), key=lambda i: math.exp(logs[i]) * asked[i] ** weight)
    accepted = [i for i, p in enumerate(asked) if p > chosen.accept_threshold]
    if not accepted:
        return chosen.fallback_index(len(kept))
    if chosen.strategy == "random":
        return draws.choice(accepted)
    return max(accepted, key=asked.__getitem__) if chosen.strategy == "max-prob" else accepted[0]


def assert_plain(decisions: list[Decision], steps: list[tuple[list[int], list[float], int]]) -> None:
    assert [list(d.candidates) for d in decisions] == [kept for kept, _, _ in steps]
    assert [d.index for d in decisions] == [index for _, _, index in steps]
    for decision, (kept, asked, _) in zip(decisions, steps, strict=True):
        got = decision.accept_probabilities
        assert list(got) == pytest.approx(asked[: len(got)], abs=1e-5)
        assert bool(got) == (len(kept) > 1)


@pytest.mark.parametrize("name", GOLDEN_MODELS)
def test_equals_a_plain_loop_on_the_golden_models(golden: Path, name: str) -> None:
    folder = golden / "models" / name
    if not folder.is_dir():
        pytest.skip(f"{golden} holds no model {name}")
    policy = PolicyModel(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    ids = [[5, 6, 7], [44, 3, 44, 3]]
    seen = Counter[bool]()
    for seed, rank in ((0, 8), (1, None)):
        agent = tiny_look_ahead(policy.hidden_size, seed=seed, rank=rank)
        requests = [Request(prompt, options(10), agent, EOS) for prompt in ids]
        for prompt, decisions in zip(ids, run(policy, requests), strict=True):
            assert_plain(decisions, plain_loop(policy, agent, prompt, requests[0].options))
            seen.update(d.index > 0 for d in decisions)
    assert len(seen) == 2, "the agents must reject some candidates and accept others"


@pytest.mark.parametrize("strategy", get_args(Strategy))
@pytest.mark.parametrize("order", ["descending", "reversed", "top-1-last"])
@pytest.mark.parametrize("more", [{}, {"accept_action": 0, "fallback": -1}], ids=["", "action 0"])
def test_equals_a_plain_loop_in_every_order_and_strategy(
    policy: PolicyModel, strategy: str, order: str, more: dict[str, int]
) -> None:
    chosen = options(8, strategy=strategy, order=order, seed=5, **more)
    requests = [Request(prompt, chosen, AGENTS[0], EOS) for prompt in PROMPTS[:3]]
    for prompt, decisions in zip(PROMPTS, run(policy, requests, batch_size=2, draft=4), strict=False):
        assert_plain(decisions, plain_loop(policy, AGENTS[0], prompt, chosen))


def test_an_agent_that_ignores_the_token_accepts_all_candidates_or_none(policy: PolicyModel) -> None:
    """Its closed form: where it likes the state the answer goes on as the model's, elsewhere by the fallback."""
    agent, by_state = tiny_look_ahead(seed=2), tiny_agent()
    with torch.no_grad():
        agent.lift.weight.zero_()
        agent.numbers_linear.weight.zero_()
    by_state.load_state_dict({k: v for k, v in agent.state_dict().items() if k in by_state.state_dict()})
    verdicts = []
    for prompt in PROMPTS:
        ids = list(prompt)
        request = Request(prompt, options(10, fallback=-1), agent)
        for decision in run(policy, [request])[0]:
            with torch.inference_mode():
                state = policy.backbone(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0, -1]
                likes = by_state.accept_probability(state)
            assert decision.index == (0 if likes > 0.5 else len(decision.candidates) - 1)
            assert decision.accept_probabilities == pytest.approx([float(likes)] * len(decision.accept_probabilities))
            verdicts.append(bool(likes > 0.5))
            ids.append(decision.token_id)
    assert len(set(verdicts)) == 2


def test_never_accepting_emits_the_fallback_at_one_pass_per_token(policy: PolicyModel) -> None:
    before = policy.passes
    (decisions,) = run(policy, [Request([5, 6], options(9, fallback=2), NEVER)])
    assert policy.passes - before == 1 + 8, "nobody needs the state of the last token"
    for decision in decisions:
        assert decision.index == min(2, len(decision.candidates) - 1)
        assert not decision.accepted
        assert len(decision.accept_probabilities) == len(decision.candidates)


def test_an_answer_that_ends_with_an_eos_token_needs_no_pass_for_it(policy: PolicyModel) -> None:
    (longer,) = run(policy, [Request([5, 6], options(9), ALWAYS)])
    end = tokens(longer).index(tokens(longer)[4])
    before = policy.passes
    (decisions,) = run(policy, [Request([5, 6], options(9), ALWAYS, {tokens(longer)[4]})])
    assert tokens(decisions) == tokens(longer)[: end + 1]
    assert decisions[-1].finish_reason == "stop"
    assert policy.passes - before == 1 + end


def test_states_of_a_last_token_are_kept_where_they_are_asked_for(policy: PolicyModel) -> None:
    before = policy.passes
    (decisions,) = run(policy, [Request([5, 6], options(4), ALWAYS, keep_states=True)])
    assert policy.passes - before == 1 + 4
    assert all(decision.candidate_states is not None for decision in decisions)


def test_always_accepting_is_plain_decoding(policy: PolicyModel) -> None:
    requests = [Request(prompt, options(12), agent, EOS) for prompt in PROMPTS for agent in (ALWAYS, None)]
    answers = run(policy, requests)
    for judged, plain in zip(answers[::2], answers[1::2], strict=True):
        assert tokens(judged) == tokens(plain)
        assert all(len(d.accept_probabilities) == (len(d.candidates) > 1) for d in judged)


@pytest.mark.parametrize("batch_size", [1, 3, 20])
def test_any_acceptance_takes_one_pass_per_token_of_the_longest_answers(policy: PolicyModel, batch_size: int) -> None:
    requests = [Request(prompt, options(10), agent) for prompt in PROMPTS for agent in AGENTS]
    before = policy.passes
    with computed_tokens(policy.backbone) as tokens_of_passes:
        answers = run(policy, requests, batch_size=batch_size)
    assert {len(decisions) for decisions in answers} == {10}
    waves = -(-len(requests) // batch_size)
    assert policy.passes - before == waves * (1 + 9)
    prompts = sum(len(request.prompt_ids) for request in requests)
    assert sum(tokens_of_passes) == prompts + 9 * len(requests), "no siblings, and no last tokens"


@pytest.mark.parametrize("order", get_args(Order))
@pytest.mark.parametrize("strategy", get_args(Strategy))
def test_decisions_depend_on_nothing_but_the_request(policy: PolicyModel, strategy: str, order: str) -> None:
    """In a batch with state agents and plain requests, in any width and with drafts and prefixes, as alone."""
    chosen = options(7, strategy=strategy, order=order, seed=4)
    agents = [AGENTS[1], tiny_agent(), None, AGENTS[2], NEVER]

    def requests() -> list[Request]:
        prompts = [list(range(2, 90)), *PROMPTS[1:]]
        return [Request(prompt, chosen, agent, EOS) for prompt, agent in zip(prompts, agents, strict=True)]

    alone = [facts(run(policy, [request])[0]) for request in requests()]
    prefixes = PrefixCache(2**24)
    for how in ({"batch_size": 2, "width": 5}, {"draft": 5, "width": 2}, {"draft": 3, "prefix_cache": prefixes}):
        assert [facts(decisions) for decisions in run(policy, requests(), **how)] == alone
    again = requests()
    assert [facts(decisions) for decisions in run(policy, again, prefix_cache=prefixes, batch_size=2)] == alone
    assert sum(request.reused_tokens for request in again) > 0


@pytest.mark.parametrize("strategy", get_args(Strategy))
def test_drafts_are_verified_in_the_same_pass_and_save_passes(
    policy: PolicyModel, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    """Drafts that are right up to every fifth token of an answer."""
    chosen = options(40, strategy=strategy, seed=3, fallback=1)

    def requests() -> list[Request]:
        return [Request(prompt, chosen, AGENTS[i % 4]) for i, prompt in enumerate(PROMPTS)]

    before = policy.passes
    plain = run(policy, requests())
    assert policy.passes - before == 40
    answers = {tuple(request.prompt_ids): tokens(ds) for request, ds in zip(requests(), plain, strict=True)}

    def draft(proposer: NgramProposer, first: int, most: int) -> list[int]:
        (answer, done) = next((a, len(proposer) - len(p)) for p, a in answers.items() if starts(proposer._tokens, p, a))
        assert first == answer[done]
        ahead = answer[done + 1 : done + 1 + most]
        return [(token + 1) % 97 if (done + i) % 5 == 0 else token for i, token in enumerate(ahead)]

    monkeypatch.setattr(NgramProposer, "draft", draft)
    drafted = run(policy, requests(), draft=8)
    assert [facts(decisions) for decisions in drafted] == [facts(decisions) for decisions in plain]
    assert policy.passes - before - 40 <= 1 + 2 * 40 // 5
    assert any(d.drafted and d.index > 0 for ds in drafted for d in ds), "a draft continues the chosen candidate"


def starts(token_ids: list[int], prompt: tuple[int, ...], answer: list[int]) -> bool:
    """Whether token ids are a prompt and the beginning of its answer."""
    return [*prompt, *answer][: len(token_ids)] == token_ids and len(token_ids) >= len(prompt)


def test_memory_that_runs_out_changes_no_draw(policy: PolicyModel) -> None:
    """A choice is made before its pass. If that pass fails, the choice stays, and so do the draws of the next ones."""
    chosen = options(8, strategy="random", seed=11)
    requests = [Request(prompt, chosen, AGENTS[1]) for prompt in PROMPTS]
    expected = [facts(decisions) for decisions in run(policy, requests)]
    failures = iter([4, 7])
    passes, at = 0, next(failures)

    def fail(*_: Any) -> None:
        nonlocal passes, at
        passes += 1
        if passes == at:
            at = next(failures, -1)
            raise torch.OutOfMemoryError("CUDA out of memory, so to speak")

    hook = policy.backbone.register_forward_pre_hook(fail)
    with pytest.warns(RuntimeWarning, match="Out of memory"):
        again = run(policy, [Request(r.prompt_ids, chosen, r.agent) for r in requests])
    hook.remove()
    assert at == -1
    assert [facts(decisions) for decisions in again] == expected


def test_a_cancelled_answer_says_no_more_and_disturbs_nobody(policy: PolicyModel) -> None:
    requests = [Request(prompt, options(9), AGENTS[0]) for prompt in PROMPTS[:3]]
    expected = [facts(run(policy, [Request(r.prompt_ids, r.options, r.agent)])[0]) for r in requests]
    assert facts_with_one_cancelled(policy, requests, facts) == [expected[0], expected[1][:4], expected[2]]


def test_the_agent_sees_the_model_and_not_what_a_processor_made_of_it() -> None:
    policy = PolicyModel(tiny_model("llama-3", torch.float32))  # whose logits a processor gets without a conversion

    def flattened(_ids: Tensor, scores: Tensor) -> Tensor:
        return (scores * 0.5).masked_fill(torch.arange(97) % 2 == 1, -torch.inf)

    request = Request(PROMPTS[1], options(6), AGENTS[0], logits_processor=flattened, keep_states=True)
    ids = list(request.prompt_ids)
    bound = policy.loaded.agent_on(AGENTS[0], policy.device)
    for decision in run(policy, [request])[0]:
        assert all(token % 2 == 0 for token in decision.candidates)
        with torch.inference_mode():
            state = policy.backbone(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0, -1:]
            logs = policy.logits(state).float().log_softmax(-1)
            entropy = -(logs.exp() * logs).sum(-1)
            asked = torch.tensor(decision.candidates[: len(decision.accept_probabilities)], dtype=torch.long)
            ahead = CandidatesAhead(state, torch.zeros_like(asked), asked, logs[0, asked], entropy)
            expected = bound.accept_probability(ahead).tolist()
        assert list(decision.accept_probabilities) == pytest.approx(expected, abs=1e-5)
        kept = decision.candidate_states
        assert kept is not None
        assert len(kept.states) == 0
        torch.testing.assert_close(kept.at_hand.state, state[0])
        ids.append(decision.token_id)


class FailingAgent(LookAheadAgent):
    """Fails where a token is among the candidates it is asked about."""

    answer: Any = None

    def accept_probability(self, candidates: CandidatesAhead, table: Tensor, accept_action: int = 1) -> Any:
        probabilities = super().accept_probability(candidates, table, accept_action)
        if self.answer == "shape":
            return probabilities[:, None]
        if self.answer == "raise":
            raise ZeroDivisionError("no reason")
        return probabilities * torch.nan


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        ("shape", AgentMismatchError, r"FailingAgent|BoundLookAheadAgent.*returned \(\d+, 1\)"),
        ("raise", ZeroDivisionError, "no reason"),
        ("nan", NonFiniteError, "accept probability is NaN"),
    ],
)
def test_an_agent_that_fails_ends_its_own_answers_only(
    policy: PolicyModel, answer: str, error: type[Exception], message: str
) -> None:
    failing = FailingAgent(32, width=16, rank=4).eval()
    failing.answer = answer
    requests = [Request(PROMPTS[i], options(5), agent) for i, agent in enumerate([AGENTS[0], failing, None])]
    expected = [facts(run(policy, [Request(r.prompt_ids, r.options, r.agent)])[0]) for r in requests[::2]]
    left: list[Request] = []
    got: dict[Request, list[Decision]] = {request: [] for request in requests}
    for decision in decode(policy, requests, on_leave=left.append):
        got[decision.request].append(decision)
    assert [facts(got[request]) for request in requests[::2]] == expected
    assert not got[requests[1]]
    assert isinstance(requests[1].error, error)
    assert set(left) == set(requests)
    with pytest.raises(error, match=message):
        run(policy, [Request([5, 6], options(5), failing)])


def test_nobody_is_asked_about_a_single_candidate(policy: PolicyModel) -> None:
    failing = FailingAgent(32, width=16, rank=4).eval()
    failing.answer = "raise"
    single, plain = (Request([5, 6], options(5, top_k=1), agent) for agent in (failing, None))
    assert [d.token_id for d in run(policy, [single])[0]] == [d.token_id for d in run(policy, [plain])[0]]
    gated = Request([5, 6], options(5, top_k=1, gate={"kind": "entropy", "threshold": 100.0}), failing)
    assert [d.skipped for d in run(policy, [gated])[0]] == [False] * 5


def test_a_position_without_candidates_is_an_error_of_its_request(policy: PolicyModel) -> None:
    def nothing(_ids: Tensor, scores: Tensor) -> Tensor:
        return torch.full_like(scores, -torch.inf)

    with pytest.raises(NonFiniteError, match="forbids every token"):
        run(policy, [Request([5, 6], options(5), AGENTS[0], logits_processor=nothing)])


def test_an_outlook_takes_forbidden_and_broken_logits() -> None:
    logits = torch.tensor([[0.0, 1.0, -torch.inf, 2.0], [torch.nan, 1.0, torch.inf, 2.0]])
    outlook = Outlook.of(torch.zeros(2, 3), logits)
    for row, finite in enumerate([[0.0, 1.0, 2.0], [1.0, 2.0]]):
        logs = torch.tensor(finite).log_softmax(-1)
        torch.testing.assert_close(outlook.entropies[row], -(logs.exp() * logs).sum())
        torch.testing.assert_close(outlook.log_probabilities(torch.tensor(row), torch.tensor(3)), logs[-1])
