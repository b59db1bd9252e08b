"""Drafted tokens save passes and change nothing: neither tokens nor candidates nor accept probabilities."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from families import CONFIGS, cache_free, repeating_model, tiny_agent
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from langchain_mara.agents.agent import MaraAgent
from langchain_mara.decoding import ngram as drafts
from langchain_mara.decoding.loop import decode
from langchain_mara.decoding.ngram import NgramProposer
from langchain_mara.decoding.request import Decision, Request
from langchain_mara.options import DecodingOptions
from langchain_mara.policy.model import PolicyModel
from langchain_mara.policy.prefix_cache import PrefixCache
from langchain_mara.tracing.statistics import DecisionStatistics

PROMPTS = [[44, 3, 44, 3, 44], [5, 6, 7], list(range(2, 30)), [9] * 12, [3]]
AGENTS = [tiny_agent(bias=2.0), tiny_agent(bias=0.0), tiny_agent(bias=100.0), tiny_agent(seed=2, bias=-1.0), None]


@pytest.fixture(scope="module")
def policy() -> PolicyModel:
    return PolicyModel(repeating_model())


def options(new_tokens: int = 30, **more: Any) -> DecodingOptions:
    return DecodingOptions.parse(top_k=12, max_new_tokens=new_tokens, **more)


def run(policy: PolicyModel, requests: list[Request], draft: int = 6, **how: Any) -> list[list[Decision]]:
    """The decisions of new requests like these."""
    fresh = [
        Request(r.prompt_ids, r.options, r.agent, r.eos_token_ids, r.logits_processor, r.keep_states) for r in requests
    ]
    decisions: dict[Request, list[Decision]] = {request: [] for request in fresh}
    for decision in decode(policy, fresh, draft=draft, **{"width": 3, **how}):
        decisions[decision.request].append(decision)
    return list(decisions.values())


def drafted(answers: list[list[Decision]]) -> int:
    return sum(DecisionStatistics.of(decisions).drafted for decisions in answers)


def assert_same(got: list[list[Decision]], expected: list[list[Decision]]) -> None:
    for some, others in zip(got, expected, strict=True):
        assert facts(some) == facts(others)
        for decision, other in zip(some, others, strict=True):
            assert decision.accept_probabilities == pytest.approx(other.accept_probabilities, abs=1e-4, nan_ok=True)


def facts(decisions: list[Decision]) -> list[tuple[Any, ...]]:
    return [(d.token_id, d.candidates, d.index, d.accepted, d.finish_reason) for d in decisions]


def requests_of(agents: list[MaraAgent | None] = AGENTS, **more: Any) -> list[Request]:
    return [Request(prompt, options(**more), agent) for prompt, agent in zip(PROMPTS, agents, strict=True)]


def test_drafts_what_followed_the_last_occurrence() -> None:
    drafter = NgramProposer([1, 2, 3, 4, 5, 1, 2, 3, 6, 7, 8, 1, 2])
    assert drafter.draft(first=3, most=2) == [6, 7]
    assert drafter.draft(first=4, most=2) == []
    assert drafter.draft(first=3, most=1) == [6]
    drafter.extend([9])
    assert drafter.draft(first=3, most=2) == []


def test_a_draft_that_reaches_into_itself_repeats() -> None:
    drafter = NgramProposer([1, 2, 1, 2])
    drafter.record_draft(4, 4)
    assert drafter.draft(first=1, most=6) == [2, 1, 2, 1, 2, 1]


def test_a_short_row_has_no_draft() -> None:
    assert NgramProposer([5]).draft(first=6, most=4) == []


def test_drafts_grow_while_they_are_right_and_shrink_to_what_was() -> None:
    drafter = NgramProposer(list(range(20)) * 2)
    lengths = []
    for right in (2, 4, 8, 3, 3, 0, 1):
        found = drafter.draft(first=0, most=16)
        lengths.append(len(found))
        drafter.record_draft(len(found), right)
    assert lengths == [2, 4, 8, 16, 3, 6, 1]


@pytest.mark.slow
@settings(max_examples=12)
@given(
    st.lists(st.tuples(st.sampled_from(PROMPTS), st.sampled_from(AGENTS)), min_size=1, max_size=5),
    st.sampled_from(["first-accept", "first-accept", "max-prob", "random", "sampled", "guided"]),
    st.sampled_from(["descending", "descending", "reversed", "top-1-last", "sampled"]),
    st.sampled_from([0.0, 0.7]),
    st.integers(1, 5),
    st.integers(1, 14),
    st.integers(1, 9),
    st.integers(1, 3),
)
def test_results_never_depend_on_drafts(
    policy: PolicyModel,
    picks: list[tuple[list[int], MaraAgent | None]],
    strategy: str,
    order: str,
    temperature: float,
    batch_size: int,
    width: int,
    draft: int,
    lookup: int,
) -> None:
    more = {"strategy": strategy, "order": order, "temperature": temperature, "seed": 4, "min_new_tokens": 9}
    requests = [Request(prompt, options(18, **more), agent, frozenset([1, 44])) for prompt, agent in picks]
    expected = run(policy, requests, draft=0, width=12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drafts, "LOOKUP_TOKENS", lookup)
        got = run(policy, requests, draft=draft, batch_size=batch_size, width=width)
    assert_same(got, expected)


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "order"), [("first-accept", "descending"), ("sampled", "descending")])
def test_some_drafts_are_right_some_are_wrong_and_passes_are_saved(
    policy: PolicyModel, strategy: str, order: str
) -> None:
    requests = requests_of(strategy=strategy, order=order)
    start = policy.passes
    expected = run(policy, requests, draft=0, batch_size=1)
    without = policy.passes - start
    got = run(policy, requests, batch_size=1)
    assert_same(got, expected)
    saved = without - (policy.passes - start - without)
    right = drafted(got)
    assert drafted(expected) == 0
    assert 0 < saved <= right
    assert right < sum(map(len, got))


def test_repeating_for_ever_takes_a_pass_for_many_tokens(policy: PolicyModel) -> None:
    start = policy.passes
    (decisions,) = run(policy, [Request(PROMPTS[0], options(80), AGENTS[0])], draft=7)
    assert len(decisions) == 80
    assert policy.passes - start < 30


@pytest.mark.slow
def test_wrong_drafts_change_nothing(policy: PolicyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafts.NgramProposer, "draft", lambda _self, first, most: [(first + 1) % 97] * most)
    got = run(policy, requests_of())
    assert_same(got, run(policy, requests_of(), draft=0))
    assert drafted(got) < 5


@pytest.mark.slow
def test_an_end_inside_a_draft_ends_the_row(policy: PolicyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def request(end: int, minimum: int = 0) -> Request:
        return Request(PROMPTS[1], options(30, min_new_tokens=minimum), AGENTS[2], frozenset([end]))

    (whole,) = run(policy, [request(96)], draft=0)
    answer = [d.token_id for d in whole if d.token_id is not None]
    monkeypatch.setattr(drafts.NgramProposer, "draft", right_drafts([PROMPTS[1] + answer]))
    requests = [request(end, minimum) for end in sorted(set(answer)) for minimum in (0, 3, 20)]
    got = run(policy, requests, batch_size=32)
    assert_same(got, run(policy, requests, draft=0, batch_size=32))
    assert sum(last.drafted and last.finish_reason == "stop" for *_, last in got) > 5


def test_the_limit_of_tokens_inside_a_draft_ends_the_row(policy: PolicyModel) -> None:
    (whole,) = run(policy, [Request(PROMPTS[0], options(40), AGENTS[0])], draft=0)
    limits = range(1, 40, 3)
    got = run(policy, [Request(PROMPTS[0], options(new_tokens), AGENTS[0]) for new_tokens in limits])
    for new_tokens, decisions in zip(limits, got, strict=True):
        assert [d.token_id for d in decisions] == [d.token_id for d in whole[:new_tokens]]
        assert [d.finish_reason for d in decisions] == [None] * (new_tokens - 1) + ["length"]


def test_the_end_of_the_context_inside_a_draft_ends_the_row(policy: PolicyModel) -> None:
    requests = [Request([44, 3] * half, options(50), AGENTS[0]) for half in (50, 55, 60)]
    got = run(policy, requests, draft=9)
    assert_same(got, run(policy, requests, draft=0))
    assert drafted(got)
    assert [len(decisions) for decisions in got] == [28, 18, 8]


def test_no_draft_reaches_beyond_the_context_s_embeddings(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = PolicyModel(repeating_model("gpt-2"))  # an index error beyond its 128 positions
    monkeypatch.setattr(drafts.NgramProposer, "draft", lambda _self, first, most: [first] * most)
    for length in (120, 126, 127):
        request = Request([5] * length, options(50), AGENTS[2])
        assert_same(run(policy, [request]), run(policy, [request], draft=0))


@pytest.mark.slow
def test_a_row_cancelled_inside_a_draft_says_no_more(policy: PolicyModel) -> None:
    (whole,) = run(policy, [Request(PROMPTS[0], options(30), AGENTS[0])])
    other_whole = run(policy, [Request(PROMPTS[1], options(30), AGENTS[1])], draft=0)
    for place in [i for i, d in enumerate(whole) if d.drafted][:8]:
        victim, other = Request(PROMPTS[0], options(30), AGENTS[0]), Request(PROMPTS[1], options(30), AGENTS[1])
        emitted: dict[Request, list[Decision]] = {victim: [], other: []}
        for decision in decode(policy, [victim, other], draft=6, width=3):
            emitted[decision.request].append(decision)
            if len(emitted[victim]) == place:
                victim.cancel()
        assert len(emitted[victim]) == place
        assert_same([emitted[other]], other_whole)


def test_prefixes_hold_what_drafts_brought(policy: PolicyModel) -> None:
    store = PrefixCache(budget=2**24)
    request = Request(PROMPTS[0], options(60), AGENTS[0])
    (first,) = run(policy, [request], prefix_cache=store)
    assert drafted([first])
    longer = Request([*PROMPTS[0], *(d.token_id for d in first), 7], options(20), AGENTS[0])  # type: ignore[list-item]
    expected = run(policy, [longer], draft=0)
    before = policy.prefilled
    assert_same(run(policy, [longer], prefix_cache=store), expected)
    assert policy.prefilled - before < 32


def test_kept_states_come_without_drafts(policy: PolicyModel) -> None:
    request = Request(PROMPTS[0], options(30), AGENTS[0], keep_states=True)
    got, expected = run(policy, [request]), run(policy, [request], draft=0)
    assert_same(got, expected)
    assert drafted(got) == 0
    for item, other in zip(got[0], expected[0], strict=True):
        assert item.candidate_states is not None
        assert other.candidate_states is not None
        torch.testing.assert_close(item.candidate_states.states, other.candidate_states.states)


def test_logits_processors_see_every_answer_grow_token_by_token(policy: PolicyModel) -> None:
    seen: list[int] = []

    def watching(ids: Tensor, scores: Tensor) -> Tensor:
        seen.append(ids.shape[1])
        return scores

    run(policy, [Request(PROMPTS[0], options(10), AGENTS[0], logits_processor=watching)])
    assert seen == list(range(5, 15))


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["default", "eager"])
@pytest.mark.parametrize("family", CONFIGS)
def test_every_family_drafts_like_a_cache_free_evaluation(family: str, attention: str) -> None:
    model = repeating_model(family)
    if attention == "eager":
        model.set_attn_implementation("eager")
    agents = [tiny_agent(bias=100.0), tiny_agent(bias=1.0)]
    prompts = [[44, 3, 17, 8] * 4, [50, 3, 7]]
    requests = [Request(p, options(14), a, frozenset([1])) for p, a in zip(prompts, agents, strict=True)]
    texts = [cache_free(model, a, p, top_k=12, max_new_tokens=14) for p, a in zip(prompts, agents, strict=True)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            drafts.NgramProposer,
            "draft",
            right_drafts([[*p, *t.token_ids] for p, t in zip(prompts, texts, strict=True)]),
        )
        got = run(PolicyModel(model), requests, draft=8, width=2)
    assert drafted(got) > 5
    for expected, decisions in zip(texts, got, strict=True):
        assert [d.token_id for d in decisions] == expected.token_ids
        assert [list(d.candidates) for d in decisions] == expected.candidates
        for decision, probabilities in zip(decisions, expected.probabilities, strict=True):
            assert list(decision.accept_probabilities) == pytest.approx(probabilities, abs=1e-4)


def right_drafts(texts: list[list[int]]) -> Callable[..., list[int]]:
    """Drafts what is known to come, so that drafts are as long as the agent lets them be."""

    def draft(self: NgramProposer, first: int, most: int) -> list[int]:
        text = next((text for text in texts if text[: len(self)] == self._tokens), [first])
        if len(text) <= len(self):
            return []
        return text[len(self) + 1 :][:most] if text[len(self)] == first else []

    return draft


def test_rows_that_draft_wait_for_memory_like_others(policy: PolicyModel) -> None:
    requests = [Request([44, 3, 44, 3, 44 - n], options(20), AGENTS[n % 3]) for n in range(6)]
    expected = run(policy, requests, draft=0)
    refused = 0

    def limit(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        nonlocal refused
        rows, tokens = kwargs["input_ids"].shape
        if rows * tokens > 13:
            refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory, so to speak")

    hook = policy.backbone.register_forward_pre_hook(limit, with_kwargs=True)
    with hook, pytest.warns(RuntimeWarning, match="continuing with"):
        got = run(policy, requests, draft=9)
    assert refused
    assert_same(got, expected)
    assert drafted(got)


def test_a_draft_that_does_not_fit_alone_is_given_up(policy: PolicyModel) -> None:
    def limit(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        prefill = kwargs["position_ids"][0, 0] == 0
        if kwargs["input_ids"].shape[1] > 5 and not prefill:
            raise torch.OutOfMemoryError("CUDA out of memory, so to speak")

    request = Request(PROMPTS[0], options(20), AGENTS[0])
    hook = policy.backbone.register_forward_pre_hook(limit, with_kwargs=True)
    with hook, pytest.warns(RuntimeWarning, match="continuing with 1 of width 1"):
        got = run(policy, [request], draft=9)
    assert_same(got, run(policy, [request], draft=0))
    assert drafted(got)


def test_refuses_a_negative_draft(policy: PolicyModel) -> None:
    with pytest.raises(ValueError, match="draft at least 0, not 8, 3 and -1"):
        next(decode(policy, [Request([5])], width=3, draft=-1))
