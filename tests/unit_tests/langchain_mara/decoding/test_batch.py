"""How the running batch ends rows, admits others, and what a pass costs."""

import gc
import weakref
from collections.abc import Iterator

import pytest
import torch
from families import tiny_agent, tiny_model
from torch import Tensor

from langchain_mara.decoding.batch import Batch
from langchain_mara.decoding.loop import decode
from langchain_mara.decoding.request import Decision, Request
from langchain_mara.exceptions import NonFiniteError
from langchain_mara.options import DecodingOptions
from langchain_mara.policy.cache import GROWTH_SLOTS
from langchain_mara.policy.model import PolicyModel

AGENT = tiny_agent(bias=0.0)


@pytest.fixture(scope="module")
def policy() -> PolicyModel:
    return PolicyModel(tiny_model("llama-3"))


def options(new_tokens: int = 12, **more: object) -> DecodingOptions:
    return DecodingOptions.parse(top_k=12, max_new_tokens=new_tokens, **more)


def run(policy: PolicyModel, request: Request, **how: int) -> list[Decision]:
    return list(decode(policy, [request], **how))


def greedy(policy: PolicyModel, prompt: list[int], **how: object) -> list[int]:
    output = policy.model.generate(torch.tensor([prompt]), do_sample=False, **how)
    ids: list[int] = output[0, len(prompt) :].tolist()
    return ids


def test_any_of_several_eos_ids_ends_the_row_and_is_emitted(policy: PolicyModel) -> None:
    without = [d.token_id for d in run(policy, Request([5, 6], options(12)))]
    for place in (2, 7):
        ends = frozenset([without[place], 96])
        decisions = run(policy, Request([5, 6], options(12), eos_token_ids=ends))  # type: ignore[arg-type]
        first = without.index(without[place])
        assert [d.token_id for d in decisions] == without[: first + 1]
        assert [d.finish_reason for d in decisions] == [None] * first + ["stop"]


def test_min_new_tokens_equals_generate(policy: PolicyModel) -> None:
    first = greedy(policy, [5, 6], max_new_tokens=1, eos_token_id=96)[0]
    for minimum in (0, 1, 4):
        request = Request([5, 6], options(8, min_new_tokens=minimum), eos_token_ids=frozenset([first]))
        expected = greedy(policy, [5, 6], max_new_tokens=8, min_new_tokens=minimum, eos_token_id=first)
        assert [d.token_id for d in run(policy, request)] == expected


def test_length_ends_the_row(policy: PolicyModel) -> None:
    decisions = run(policy, Request([5], options(3), AGENT))
    assert [d.finish_reason for d in decisions] == [None, None, "length"]


def test_the_end_of_the_context_ends_the_row(policy: PolicyModel) -> None:
    decisions = run(policy, Request([5] * 120, options(50), AGENT))
    assert len(decisions) == 8
    assert decisions[-1].finish_reason == "length"


def test_logits_processor_acts_before_the_candidate_set_is_cut(policy: PolicyModel) -> None:
    seen: list[list[int]] = []

    def even_only(ids: Tensor, scores: Tensor) -> Tensor:
        seen.append(ids[0].tolist())
        assert scores.dtype == torch.float32
        return scores.masked_fill(torch.arange(97) % 2 == 1, -torch.inf)

    decisions = run(policy, Request([5, 6], options(5), AGENT, logits_processor=even_only))
    assert all(token % 2 == 0 for d in decisions for token in d.candidates)
    emitted = [d.token_id for d in decisions]
    assert seen == [[5, 6, *emitted[:n]] for n in range(5)]


def test_finished_rows_make_room_for_waiting_prompts(policy: PolicyModel) -> None:
    requests = [Request([5 + i], options(1 + 3 * (i % 3)), AGENT) for i in range(9)]
    alive: list[set[Request]] = []
    running: set[Request] = set()
    for decision in decode(policy, requests, batch_size=3):
        running.add(decision.request)
        alive.append(set(running))
        if decision.finish_reason:
            running.discard(decision.request)
    assert max(map(len, alive)) == 3
    assert {request for group in alive for request in group} == set(requests)


def test_requests_are_taken_only_as_rows_become_free(policy: PolicyModel) -> None:
    taken = 0

    def source() -> Iterator[Request]:
        nonlocal taken
        for _ in range(5):
            taken += 1
            yield Request([5], options(3))

    stream = decode(policy, source(), batch_size=2)
    next(stream)
    assert taken == 2
    assert len(list(stream)) == 14


def test_a_cancelled_row_says_no_more_and_disturbs_nobody(policy: PolicyModel) -> None:
    victim, other, late = (Request([n], options(10), AGENT) for n in (5, 6, 7))
    alone = [d.token_id for d in run(policy, Request([6], options(10), AGENT))]
    emitted: dict[Request, list[int | None]] = {victim: [], other: [], late: []}
    for decision in decode(policy, [victim, other, late], batch_size=2):
        emitted[decision.request].append(decision.token_id)
        if len(emitted[victim]) == 3:
            victim.cancel()
    assert len(emitted[victim]) == 3
    assert emitted[other] == alone
    assert len(emitted[late]) == 10


def test_a_request_cancelled_while_waiting_costs_nothing(policy: PolicyModel) -> None:
    request = Request([5], options(3))
    request.cancel()
    before = policy.passes
    assert run(policy, request) == []
    assert policy.passes == before


def test_a_row_cancelled_before_its_first_pass_makes_way(policy: PolicyModel) -> None:
    batch = Batch(policy, width=4)
    requests = [Request([5 + n, 6], options(5), AGENT) for n in range(3)]
    batch.admit(requests)
    requests[0].cancel()
    emitted: dict[Request, list[int | None]] = {requests[1]: [], requests[2]: []}
    while batch.sequences:
        for decision in batch.step():
            emitted[decision.request].append(decision.token_id)
    for request, ids in emitted.items():
        assert ids == [d.token_id for d in run(policy, Request(request.prompt_ids, options(5), AGENT))]


def test_the_cache_goes_with_the_batch(policy: PolicyModel) -> None:
    gc.disable()  # a cycle would keep keys and values, or sequences of llama.cpp, until the collector comes
    try:
        batch = Batch(policy, width=4)
        batch.admit([Request([5, 6], options(2), AGENT)])
        while batch.sequences:
            batch.step()
        cache = weakref.ref(batch.cache)
        del batch
        assert cache() is None
    finally:
        gc.enable()


def test_a_failed_pass_gives_its_rows_back_though_its_error_is_kept(
    policy: PolicyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object, **__: object) -> Tensor:
        raise RuntimeError("the device is gone")

    request = Request([5, 6], options(2), AGENT)
    batch = Batch(policy, width=4, raise_errors=False)
    batch.admit([request])
    rows = batch.cache
    assert len(rows.positions) > 0
    monkeypatch.setattr(policy, "siblings", failing)
    batch.step()
    assert "the device is gone" in str(request.error)
    assert len(rows.positions) == 0


def test_a_huge_top_k_costs_states_of_examined_candidates_only(policy: PolicyModel) -> None:
    batch = Batch(policy, width=4)
    batch.admit([Request([5], DecodingOptions(top_k=10_000, top_p=1.0), tiny_agent(bias=100.0))])
    batch.step()
    assert batch.candidate_table.lines.token_ids.shape == (1, 97)
    assert batch._states.shape[1] == 4


def test_nonfinite_states_count_as_rejected_and_spoil_no_other_row() -> None:
    model = tiny_model("llama-3")
    policy = PolicyModel(model)
    healthy = Request([5, 6], options(8), AGENT)
    expected = [d.token_id for d in run(policy, healthy)]
    poisoned_token = run(policy, Request([9, 8], options(1), AGENT))[0].candidates[1]
    with torch.no_grad():
        model.get_input_embeddings().weight[poisoned_token] = torch.nan
    if poisoned_token in {*expected, 5, 6}:
        pytest.fail("choose another poisoned token: the healthy row meets it")
    sick = Request([9, 8], options(8), tiny_agent(bias=-100.0))
    again = Request([5, 6], options(8), AGENT)
    results: dict[Request, list[Decision]] = {sick: [], again: []}
    for decision in decode(policy, [sick, again], width=12):
        results[decision.request].append(decision)
    first = results[sick][0]
    place = first.candidates.index(poisoned_token)
    assert first.accept_probabilities[place] != first.accept_probabilities[place]
    finite = [p for i, p in enumerate(first.accept_probabilities) if i != place]
    assert all(0 <= p <= 1 for p in finite)
    assert len(results[sick]) == 8
    assert [d.token_id for d in results[again]] == expected


def test_a_prompt_with_only_nonfinite_logits_fails_alone() -> None:
    model = tiny_model("llama-3")
    policy = PolicyModel(model)
    with torch.no_grad():
        model.get_input_embeddings().weight[50] = torch.nan
    healthy = Request([5, 6], options(4), AGENT)
    sick = Request([5, 50], options(4), AGENT)
    decisions = list(decode(policy, [sick, healthy], on_leave=lambda _: None))
    assert [d.request is healthy for d in decisions] == [True] * 4
    assert isinstance(sick.error, NonFiniteError)
    assert str(sick.error).startswith(
        "No token can follow 2 tokens: the state that LlamaForCausalLM gives is not finite"
    )


def test_memory_grows_with_need_not_with_the_context(policy: PolicyModel) -> None:
    batch = Batch(policy, width=4)
    batch.admit([Request([5] * 10, options(20), AGENT)])
    while batch.sequences:
        capacity = batch.cache.positions.shape[1]
        assert capacity <= 10 + GROWTH_SLOTS
        batch.step()
    assert batch.cache.positions.numel() == 0


def test_rows_left_without_requests_free_the_cache(policy: PolicyModel) -> None:
    batch = Batch(policy, width=4)
    requests = [Request([5] * 10, options(20), AGENT) for _ in range(3)]
    batch.admit(requests)
    batch.step()
    for request in requests:
        request.cancel()
    assert batch.step() == []
    assert batch.cache.positions.numel() == 0


def test_one_pass_per_token_where_the_first_chunk_decides(policy: PolicyModel) -> None:
    before = policy.passes
    rows, new_tokens = 4, 7
    requests = [Request([5, 6, n], options(new_tokens), tiny_agent(bias=100.0)) for n in range(10, 10 + rows)]
    assert len(list(decode(policy, requests, width=3))) == rows * new_tokens
    assert policy.passes - before == 1 + new_tokens  # one prefill for all four, then one pass per position


@pytest.mark.parametrize("width", [1, 3, 12])
def test_rejecting_all_takes_a_pass_per_chunk_and_none_for_the_fallback(policy: PolicyModel, width: int) -> None:
    before = policy.passes
    decisions = run(policy, Request([5, 6], options(5), tiny_agent(bias=-100.0)), width=width)
    chunks = sum(-(-len(d.candidates) // width) for d in decisions)
    assert policy.passes - before == 1 + chunks


def test_the_head_sees_decided_rows_only(policy: PolicyModel) -> None:
    heads: list[int] = []
    hook = policy.head.register_forward_hook(lambda _module, args, _output: heads.append(args[0].shape[0]))
    requests = [
        Request([5], options(4), tiny_agent(bias=100.0)),
        Request([6], options(4), tiny_agent(bias=-100.0)),
    ]
    decisions = list(decode(policy, requests, width=2))
    hook.remove()
    # Prompts once, then every decided row that goes on; the last decision of a row needs no logits.
    assert sum(heads) == 2 + len(decisions) - 2
    assert len(heads) > 4


def test_long_prompts_are_prefilled_in_chunks_with_the_same_result(
    policy: PolicyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [list(range(2, 40)), [7] * 5, list(range(40, 90)), [8] * 4]
    whole = [[d.token_id for d in run(policy, Request(p, options(5), AGENT))] for p in prompts]
    monkeypatch.setattr("langchain_mara.policy.model.PREFILL_TOKENS", 9)
    emitted: dict[Request, list[int | None]] = {Request(p, options(5), AGENT): [] for p in prompts}
    for decision in decode(policy, list(emitted)):
        emitted[decision.request].append(decision.token_id)
    assert list(emitted.values()) == whole
