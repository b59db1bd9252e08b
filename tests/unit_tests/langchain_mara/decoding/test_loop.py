"""The decode loop against the reference's recordings and against its own promises."""

import json
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from decisions import run
from families import cache_free, tiny_agent, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from langchain_mara.agents.agent import MaraAgent
from langchain_mara.decoding.loop import decode
from langchain_mara.decoding.request import Decision, Request
from langchain_mara.exceptions import AgentMismatchError, PromptError
from langchain_mara.options import DecodingOptions
from langchain_mara.policy.model import PolicyModel

GOLDEN_MODELS = ["llama3", "llama31", "llama32_tied", "mistral_full", "mistral_sliding"]
EVERY_PROMPT = -1


class GoldenModel(NamedTuple):
    """A model of the golden vectors, its agents by file name, and its recorded generations."""

    policy: PolicyModel
    agents: dict[str, MaraAgent]
    records: list[dict[str, Any]]


@pytest.fixture(scope="module")
def policy() -> PolicyModel:
    return PolicyModel(tiny_model("llama-3"))


def tokens(decisions: list[Decision]) -> list[int | None]:
    return [decision.token_id for decision in decisions]


def plain_facts(decisions: list[Decision]) -> list[tuple[Any, ...]]:
    return [(d.token_id, d.candidates, d.index, d.accepted, d.finish_reason) for d in decisions]


def golden_options(options: dict[str, Any]) -> DecodingOptions:
    order = "reversed" if options["reverse_choice"] else "descending"
    return DecodingOptions(
        top_k=options["topk"],
        top_p=options["topp"],
        max_new_tokens=options["max_new_token"],
        accept_action=options["accept_action"],
        fallback=options["default_action_idx"],
        strategy="max-prob" if options["proxy_strategy"] == "max_prob" else "first-accept",
        order="top-1-last" if options["state_transition"] == "v1" else order,
    )


def assert_reproduces(record: dict[str, Any], decisions: list[Decision]) -> None:
    assert tokens(decisions) == record["output_ids"], record["id"]
    decided = [decision for decision in decisions if len(decision.candidates) > 1]
    for decision, step in zip(decided, record["steps"], strict=True):
        assert list(decision.candidates) == step["candidates"], record["id"]
        assert decision.index == step["accepted"], record["id"]
        # Where the reference asked about every candidate, the engine may stop at the first accepted.
        got, recorded = decision.accept_probabilities, step["accept_probs"]
        assert len(got) == len(recorded) or not record["options"]["serial_action"]
        # The reference records the probability of action 1 whichever action accepts.
        swapped = record["options"]["accept_action"] == 0
        expected = [1 - p if swapped else p for p in recorded[: len(got)]]
        assert list(got) == pytest.approx(expected, abs=1e-4), record["id"]


@pytest.fixture(scope="module")
def golden_model(golden: Path) -> Callable[[str], GoldenModel]:
    """Loads a model of the golden vectors with its agents and recorded generations, each once."""
    by_model = defaultdict(list)
    for record in json.loads((golden / "decoding.json").read_text()):
        by_model[record["model"]].append(record)

    @cache
    def load(name: str) -> GoldenModel:
        if name not in by_model:
            pytest.skip(f"{golden} holds no model {name}")
        policy = PolicyModel(AutoModelForCausalLM.from_pretrained(golden / "models" / name, dtype=torch.float32))
        names = {record["agent"] for record in by_model[name]}
        agents = {agent: MaraAgent.from_reference(golden / "agents" / agent) for agent in names}
        return GoldenModel(policy, agents, by_model[name])

    return load


@pytest.mark.parity
@pytest.mark.parametrize("name", GOLDEN_MODELS)
@pytest.mark.parametrize(
    ("width", "batch_size", "draft", "prompts"),
    [
        (5, 90, 0, EVERY_PROMPT),
        pytest.param(1, 32, 0, 0, marks=pytest.mark.slow),
        pytest.param(2, 32, 0, 1, marks=pytest.mark.slow),
        pytest.param(5, 7, 0, 2, marks=pytest.mark.slow),
        pytest.param(40, 16, 0, 0, marks=pytest.mark.slow),
        pytest.param(40, 1, 0, 1, marks=pytest.mark.slow),
        pytest.param(1, 16, 6, 2, marks=pytest.mark.slow),
        pytest.param(5, 8, 3, 0, marks=pytest.mark.slow),
    ],
)
def test_reproduces_the_reference_in_every_width_and_batch(
    golden_model: Callable[[str], GoldenModel],
    name: str,
    width: int,
    batch_size: int,
    draft: int,
    prompts: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every recording once, then in each way of batching a third: one prompt with every agent and setting."""
    monkeypatch.setattr("langchain_mara.decoding.ngram.LOOKUP_TOKENS", 1)  # many drafts, most of them wrong
    policy, agents, records = golden_model(name)
    if prompts != EVERY_PROMPT:
        records = records[prompts::3]
    requests = [
        Request(r["prompt_ids"], golden_options(r["options"]), agents[r["agent"]], frozenset([1])) for r in records
    ]
    results = run(policy, requests, width=width, batch_size=batch_size, draft=draft)
    for record, decisions in zip(records, results, strict=True):
        assert_reproduces(record, decisions)
    drafted = sum(decision.drafted for decisions in results for decision in decisions)
    assert bool(drafted) == bool(draft)


@pytest.mark.parity
def test_the_golden_vectors_are_complete(golden: Path) -> None:
    records = json.loads((golden / "decoding.json").read_text())
    subset = golden / "subset.json"
    expected = json.loads(subset.read_text())["generations"][0] if subset.exists() else 450
    assert len(records) == expected
    assert len({record["setting"] for record in records}) == 10


def test_reproduces_the_recorded_sample() -> None:
    sample = Path(__file__).parents[3] / "data" / "sample"
    policy = PolicyModel(AutoModelForCausalLM.from_pretrained(sample / "model", dtype=torch.float32))
    agent = MaraAgent.from_pretrained(sample / "agent")
    records = json.loads((sample / "decoding.json").read_text())
    requests = [
        Request(r["prompt_ids"], DecodingOptions(top_k=r["top_k"], max_new_tokens=12), agent, frozenset([1]))
        for r in records
    ]
    for record, decisions in zip(records, run(policy, requests, width=3), strict=True):
        assert tokens(decisions) == record["token_ids"]
        assert [list(decision.candidates) for decision in decisions] == record["candidates"]
        for decision, probabilities in zip(decisions, record["probabilities"], strict=True):
            assert list(decision.accept_probabilities) == pytest.approx(probabilities, abs=1e-4)


PROMPTS = [[5, 6, 7], [9] * 12, [3], list(range(2, 30)), [44, 3, 44, 3, 44]]
AGENTS = [tiny_agent(seed=seed, bias=bias) for seed, bias in enumerate([0.0, 1.0, -1.0, 2.0])]


@pytest.mark.slow
@settings(max_examples=12)
@given(
    st.lists(st.tuples(st.sampled_from(range(5)), st.sampled_from([0, 1, 2, 3, None])), min_size=1, max_size=6),
    st.integers(1, 6),
    st.integers(1, 14),
    st.sampled_from(["first-accept", "max-prob", "random", "guided"]),
    st.sampled_from(["descending", "reversed", "top-1-last", "sampled"]),
)
def test_results_depend_on_nothing_but_the_request(
    policy: PolicyModel,
    picks: list[tuple[int, int | None]],
    batch_size: int,
    width: int,
    strategy: str,
    order: str,
) -> None:
    options = DecodingOptions.parse(top_k=12, max_new_tokens=6, strategy=strategy, order=order, seed=4)

    def request(pick: tuple[int, int | None]) -> Request:
        prompt, agent = pick
        return Request(PROMPTS[prompt], options, None if agent is None else AGENTS[agent], frozenset([1]))

    together = run(policy, [request(pick) for pick in picks], batch_size=batch_size, width=width)
    for pick, decisions in zip(picks, together, strict=True):
        (alone,) = run(policy, [request(pick)], batch_size=1, width=12)
        assert plain_facts(decisions) == plain_facts(alone)


def test_rows_of_different_options_share_a_batch(policy: PolicyModel) -> None:
    options = [
        DecodingOptions(top_k=3, max_new_tokens=4),
        DecodingOptions(top_k=20, top_p=0.5, max_new_tokens=9),
        DecodingOptions(order="reversed", max_new_tokens=7, accept_threshold=0.9),
    ]
    requests = [Request(PROMPTS[i], options[i], AGENTS[i]) for i in range(3)]
    together = run(policy, requests, batch_size=3, width=4)
    for request, decisions in zip(requests, together, strict=True):
        (alone,) = run(policy, [request])
        assert plain_facts(decisions) == plain_facts(alone)


def generate_greedy(policy: PolicyModel, prompt: list[int], new_tokens: int, eos: list[int] | None = None) -> list[int]:
    ids = policy.model.generate(
        torch.tensor([prompt]), do_sample=False, max_new_tokens=new_tokens, eos_token_id=eos or [1]
    )
    result: list[int] = ids[0, len(prompt) :].tolist()
    return result


@pytest.mark.slow
@pytest.mark.parametrize("agent", [None, tiny_agent(bias=100.0)], ids=["no agent", "always accepts"])
@pytest.mark.parametrize("width", [1, 8])
def test_accepting_everything_is_plain_generate(policy: PolicyModel, agent: MaraAgent | None, width: int) -> None:
    for prompt in PROMPTS:
        request = Request(prompt, DecodingOptions(max_new_tokens=20), agent, frozenset([1]))
        (decisions,) = run(policy, [request], width=width)
        assert tokens(decisions) == generate_greedy(policy, prompt, 20)


@pytest.mark.parametrize(("fallback", "place"), [(0, 0), (2, 2), (-1, -1), (99, -1), (-99, 0)])
def test_never_accepting_emits_the_fallback(policy: PolicyModel, fallback: int, place: int) -> None:
    options = DecodingOptions(top_k=6, fallback=fallback, max_new_tokens=6)
    (decisions,) = run(policy, [Request([5, 6], options, tiny_agent(bias=-100.0))], width=2)
    assert len(decisions) == 6
    for decision in decisions:
        assert decision.token_id == decision.candidates[place]
        assert not decision.accepted
        assert len(decision.accept_probabilities) == len(decision.candidates)


def test_fallback_in_reversed_order_is_the_most_probable(policy: PolicyModel) -> None:
    options = DecodingOptions(top_k=6, order="reversed", max_new_tokens=20)
    (decisions,) = run(policy, [Request([5, 6], options, tiny_agent(bias=-100.0), frozenset([1]))])
    assert tokens(decisions) == generate_greedy(policy, [5, 6], 20)


@pytest.mark.slow
def test_sometimes_accepting_equals_the_cache_free_evaluation(policy: PolicyModel) -> None:
    for prompt, agent in zip(PROMPTS, AGENTS, strict=False):
        expected = cache_free(policy.model, agent, prompt, max_new_tokens=15)
        request = Request(prompt, DecodingOptions(max_new_tokens=15), agent, frozenset([1]))
        (decisions,) = run(policy, [request], width=3)
        assert tokens(decisions) == expected.token_ids
    assert {len(p) for p in expected.probabilities} != {1}, "the agent must reject something for this to test anything"


def test_threshold_moves_from_accepting_all_to_accepting_none(policy: PolicyModel) -> None:
    def share(threshold: float) -> float:
        options = DecodingOptions(accept_threshold=threshold, max_new_tokens=8)
        decided = [d for ds in run(policy, [Request(p, options, AGENTS[0]) for p in PROMPTS]) for d in ds]
        return sum(d.accepted for d in decided) / len(decided)

    assert share(0.0) == 1.0
    assert share(1.0) == 0.0
    assert 0 < share(0.999) < 1


def test_max_prob_emits_the_highest_accept_probability_above_the_threshold(policy: PolicyModel) -> None:
    options = DecodingOptions(top_k=8, strategy="max-prob", max_new_tokens=10)
    decisions = [d for ds in run(policy, [Request(p, options, AGENTS[0]) for p in PROMPTS], width=3) for d in ds]
    for decision in decisions:
        highest = max(decision.accept_probabilities)
        expected = decision.accept_probabilities.index(highest) if highest > 0.5 else 0
        assert decision.index == expected
        assert len(decision.accept_probabilities) == len(decision.candidates)
    first_accepted = [next((i for i, p in enumerate(d.accept_probabilities) if p > 0.5), 0) for d in decisions]
    assert [d.index for d in decisions] != first_accepted


def test_random_strategy_is_uniform_over_the_accepted(policy: PolicyModel) -> None:
    draws = 300
    requests = [
        Request(
            [5, 6, 7],
            DecodingOptions(top_k=4, top_p=1.0, strategy="random", seed=i, max_new_tokens=1),
            AGENTS[0],
        )
        for i in range(draws)
    ]
    results = [decisions[0] for decisions in run(policy, requests, batch_size=64, width=4)]
    accepted = [i for i, p in enumerate(results[0].accept_probabilities) if p > 0.5]
    assert len(accepted) >= 2
    counts = [sum(d.index == i for d in results) for i in accepted]
    assert sum(counts) == draws
    assert min(counts) > 0.6 * draws / len(accepted)


@pytest.mark.slow
def test_sampled_strategy_accepts_each_candidate_with_its_probability(policy: PolicyModel) -> None:
    draws = 4000
    options = [DecodingOptions(top_k=3, top_p=1.0, strategy="sampled", seed=i, max_new_tokens=1) for i in range(draws)]
    results = [
        decisions[0] for decisions in run(policy, [Request([5, 6, 7], o, AGENTS[1]) for o in options], batch_size=64)
    ]
    first, second, third = max((d.accept_probabilities for d in results), key=len)
    refused = (1 - first) * (1 - second) * (1 - third)
    shares = np.array([first, (1 - first) * second, (1 - first) * (1 - second) * third])
    counts = np.array([sum(d.index == i and d.accepted for d in results) for i in range(3)])
    fallbacks = sum(not d.accepted for d in results)
    assert all(d.index == 0 for d in results if not d.accepted)
    expected = draws * np.array([*shares, refused])
    assert expected.min() > 20
    assert (abs(np.array([*counts, fallbacks]) - expected) < 5 * np.sqrt(expected)).all()


@pytest.mark.parametrize("width", [1, 2, 5])
def test_kept_states_and_log_probabilities_are_the_model_s(policy: PolicyModel, width: int) -> None:
    options = DecodingOptions(top_k=6, top_p=0.999, strategy="sampled", temperature=0.7, max_new_tokens=8, seed=3)
    requests = [Request(prompt, options, AGENTS[0], keep_states=n != 1) for n, prompt in enumerate(PROMPTS[:3])]
    answers = run(policy, requests, width=width)
    whole = run(policy, requests, width=6)
    assert [[d.token_id for d in ds] for ds in answers] == [[d.token_id for d in ds] for ds in whole]
    assert all(d.candidate_states is None for d in answers[1])
    for request, decisions in zip(requests[::2], answers[::2], strict=True):
        ids = [*request.prompt_ids]
        for decision in decisions:
            assert decision.candidate_states is not None
            states, logs, at_hand = decision.candidate_states
            examined = len(decision.accept_probabilities)
            assert examined <= len(states) <= len(decision.candidates) == len(logs)
            assert len(states) < examined + width
            for token, state in zip(decision.candidates, states, strict=False):
                torch.testing.assert_close(state, state_of(policy, [*ids, token]), atol=1e-5, rtol=1e-4)
            with torch.inference_mode():
                full = (policy.logits(state_of(policy, ids)[None])[0].float()).log_softmax(-1)
            torch.testing.assert_close(logs, full[list(decision.candidates)], atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(at_hand.state, state_of(policy, ids), atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(at_hand.log_probabilities, logs, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(at_hand.entropy, -(full.exp() * full).sum(), atol=1e-5, rtol=1e-4)
            assert decision.token_id is not None
            ids.append(decision.token_id)


@torch.inference_mode()
def state_of(policy: PolicyModel, ids: list[int]) -> torch.Tensor:
    """The state behind a sequence, without cache."""
    state: torch.Tensor = policy.backbone(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0, -1]
    return state


def test_checks_the_whole_sequence_before_decoding_any(policy: PolicyModel) -> None:
    before = policy.passes
    with pytest.raises(PromptError, match="no tokens"):
        next(decode(policy, [Request([5]), Request([])]))
    with pytest.raises(PromptError, match="prompt has 128 tokens.*holds 128.*Shorten"):
        next(decode(policy, [Request([5]), Request([5] * 128)]))
    with pytest.raises(AgentMismatchError, match="size 16.*gives 32"):
        next(decode(policy, [Request([5]), Request([5], agent=tiny_agent(16))]))
    assert policy.passes == before


@pytest.mark.parametrize(("batch_size", "width"), [(0, 1), (1, 0)])
def test_refuses_empty_batches_and_passes(policy: PolicyModel, batch_size: int, width: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        next(decode(policy, [Request([5])], batch_size=batch_size, width=width))


def test_no_requests_yield_nothing(policy: PolicyModel) -> None:
    assert list(decode(policy, [])) == []
