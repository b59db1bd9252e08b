"""Candidate sets against the definition of docs/algorithm.md, section 2, written out token by token."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from langchain_mara.decoding.candidates import CandidateSets, candidate_sets, log_probabilities, order_candidates

NAN, INF = float("nan"), float("inf")


def by_the_letter(logits: list[float], top_k: int, top_p: float) -> list[int]:
    """Walks from the most probable: a token stays while the renormalised mass before it is < p."""
    ranked = sorted(range(len(logits)), key=lambda token: -logits[token])[:top_k]
    shares = torch.tensor([logits[token] for token in ranked]).softmax(-1).tolist()
    kept: list[int] = []
    mass = 0.0
    for token, share in zip(ranked, shares, strict=True):
        if kept and mass >= top_p:
            break
        kept.append(token)
        mass += share
    return kept


def as_lists(sets: CandidateSets) -> list[list[int]]:
    return [ids[:n] for ids, n in zip(sets.token_ids.tolist(), sets.counts.tolist(), strict=True)]


@pytest.mark.slow
@settings(max_examples=150)
@given(
    st.lists(st.integers(-80, 80), min_size=2, max_size=30, unique=True),
    st.integers(1, 40),
    st.floats(0.01, 0.999),
)
def test_equals_the_definition(values: list[int], top_k: int, top_p: float) -> None:
    logits = [value / 10 for value in values]
    sets = candidate_sets(torch.tensor([logits]), top_k, top_p)
    assert as_lists(sets) == [by_the_letter(logits, top_k, top_p)]


def test_rows_are_independent() -> None:
    logits = torch.randn(5, 50, generator=torch.Generator().manual_seed(0))
    together = as_lists(candidate_sets(logits, 7, 0.8))
    alone = [as_lists(candidate_sets(row[None], 7, 0.8))[0] for row in logits]
    assert together == alone


def test_top_p_one_keeps_all_of_top_k() -> None:
    assert candidate_sets(torch.zeros(1, 9), 4, 1.0).counts.tolist() == [4]


def test_one_dominant_token_stands_alone() -> None:
    assert as_lists(candidate_sets(torch.tensor([[0.0, 50.0, 1.0]]), 40, 0.95)) == [[1]]


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_nonfinite_logits_are_never_candidates(bad: float) -> None:
    sets = candidate_sets(torch.tensor([[1.0, bad, 0.9], [bad, bad, bad]]), 3, 1.0)
    assert as_lists(sets) == [[0, 2], []]


def straightforward(logits: Tensor, top_k: int, top_p: float) -> CandidateSets:
    """The cut written with copies: what is not finite is put aside before anything else."""
    scores, token_ids = torch.where(logits.isfinite(), logits, -torch.inf).topk(min(top_k, logits.shape[-1]))
    shares = scores.float().softmax(-1)
    keep = (shares.cumsum(-1) - shares < top_p) & scores.isfinite()
    keep[:, 0] = scores[:, 0].isfinite()
    return CandidateSets(token_ids, scores.float(), keep.sum(-1))


@pytest.mark.slow
@settings(max_examples=150)
@given(
    st.lists(st.lists(st.sampled_from([NAN, INF, -INF, -3.0, 0.0, 0.5, 1.0]), min_size=50, max_size=50), max_size=4),
    st.integers(1, 60),
    st.sampled_from([0.3, 0.95, 1.0]),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
def test_nonfinite_logits_and_ties_come_out_as_with_copies(
    rows: list[list[float]], top_k: int, top_p: float, dtype: torch.dtype
) -> None:
    logits = torch.tensor([*rows, [0.5] * 50], dtype=dtype)
    expected, got = straightforward(logits, top_k, top_p), candidate_sets(logits.clone(), top_k, top_p)
    assert as_lists(got) == as_lists(expected)
    for mine, reference, count in zip(got.scores, expected.scores, expected.counts.tolist(), strict=True):
        assert torch.equal(mine[:count], reference[:count])


def test_finite_logits_are_left_as_they_are() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    logits[0, 3] = -INF
    before = logits.clone()
    candidate_sets(logits)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("at_once", [1, 150, 10**6])
def test_log_probabilities_are_those_over_the_whole_vocabulary(
    at_once: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("langchain_mara.decoding.candidates._LOGITS_AT_ONCE", at_once)
    logits = torch.randn(7, 50, generator=torch.Generator().manual_seed(2)).to(dtype)
    token_ids = logits.topk(5).indices
    expected = logits.float().log_softmax(-1).gather(1, token_ids)
    assert torch.equal(log_probabilities(logits, token_ids), expected)


def ordered(order: str, count: int, width: int = 6) -> list[int]:
    sets = CandidateSets(torch.arange(width)[None], torch.arange(width, 0, -1.0)[None], torch.tensor([count]))
    return order_candidates(sets, order).token_ids[0, :count].tolist()  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [1, 2, 4, 6])
def test_orders_permute_the_set_and_nothing_else(count: int) -> None:
    descending = list(range(count))
    assert ordered("descending", count) == descending
    assert ordered("reversed", count) == descending[::-1]
    assert ordered("top-1-last", count) == [*descending[1:], 0]


def test_sampled_order_needs_noise() -> None:
    with pytest.raises(ValueError, match="Gumbel noise"):
        ordered("sampled", 3)


def gumbel(rows: int, columns: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return -torch.empty(rows, columns).exponential_(generator=generator).log()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_first_of_the_sampled_order_follows_the_policy(temperature: float) -> None:
    logits = torch.tensor([2.0, 1.0, 0.5, -1.0])
    draws = 20_000
    sets = candidate_sets(logits.expand(draws, -1), 4, 0.9)
    first = order_candidates(sets, "sampled", temperature, gumbel(draws, 4)).token_ids[:, 0]
    kept = sets.counts[0].item()
    expected = (logits[:kept] / temperature).softmax(-1)
    shares = torch.bincount(first, minlength=4)[:kept] / draws
    assert torch.allclose(shares, expected, atol=0.015)
    assert first.max() < kept
