"""The rule for rows of logits: what the decode loop's own rule says of each row, whatever the others are."""

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from families import tiny_look_ahead
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from langchain_mara.agents.look_ahead import CandidatesAhead
from langchain_mara.decoding.candidates import CandidateSets, candidate_sets, order_candidates
from langchain_mara.decoding.judging.before import Outlook, _all_places, ask_before
from langchain_mara.decoding.judging.rows import ROW_STRATEGIES, RowOptions, align_rows, narrowed_scores
from langchain_mara.decoding.request import Request
from langchain_mara.decoding.sequence import SequenceState
from langchain_mara.options import DecodingOptions

CPU = torch.device("cpu")
VOCABULARY, SIZE = 50, 32
GREEDY = st.builds(
    DecodingOptions,
    top_k=st.integers(1, 12),
    top_p=st.sampled_from([0.3, 0.8, 0.95, 1.0]),
    accept_threshold=st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0]),
    strategy=st.sampled_from(ROW_STRATEGIES),
    strength=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    fallback=st.integers(-14, 14),
    gate=st.sampled_from([None, {"kind": "entropy", "threshold": 2.5}]),
)


class Heads(nn.Module):
    """An agent that says of each token what a table says, at every position."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = table

    def accept_probability(self, candidates: CandidatesAhead, accept_action: int = 1) -> Tensor:
        assert accept_action == 1
        return self.table[candidates.token_ids]


def rule_of_the_loop(options: DecodingOptions, sets: CandidateSets, row: int, accept: Tensor, entropy: float) -> int:
    """Token that the decode loop emits at one position."""
    count = int(sets.counts[row])
    tokens, scores = sets.token_ids[row].tolist(), sets.scores[row].tolist()
    request = Request([3], options, cast("Any", SimpleNamespace(judges="before")))
    sequence = SequenceState(request, 1, cast("Any", nn.Identity()))
    if options.gate is not None and entropy <= options.gate.threshold and count > 1:  # type: ignore[union-attr]
        return int(tokens[sequence.skip()])
    index = sequence.examine(accept[sets.token_ids[row, :count]].tolist(), count, scores)
    assert index is not None
    return int(tokens[index])


def drawn_rows(logits: Tensor, options: Sequence[DecodingOptions], agent: nn.Module, rows: Sequence[int]) -> Tensor:
    outlook = Outlook.of(torch.zeros(len(logits), SIZE), logits.clone())
    return align_rows(logits.clone(), torch.tensor(rows), outlook, agent, RowOptions.of(options, CPU))


@settings(max_examples=150)
@given(options=st.lists(GREEDY, min_size=1, max_size=6), seed=st.integers(0, 10_000))
def test_each_greedy_row_is_what_the_loop_emits(options: list[DecodingOptions], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(options) + 2, VOCABULARY, generator=generator) * 2
    table = torch.rand(VOCABULARY, generator=generator)
    rows = torch.randperm(len(logits), generator=generator)[: len(options)].tolist()
    aligned = drawn_rows(logits, options, Heads(table), rows)
    entropies = torch.distributions.Categorical(logits=logits).entropy().tolist()
    for row, chosen in zip(rows, options, strict=True):
        sets = candidate_sets(logits[[row]], chosen.top_k, chosen.top_p)
        expected = rule_of_the_loop(chosen, sets, 0, table, entropies[row])
        assert aligned[row].isfinite().nonzero().flatten().tolist() == [expected]
        assert aligned[row, expected] == logits[row, expected]
    plain = [row for row in range(len(logits)) if row not in rows]
    assert torch.equal(aligned[plain], logits[plain])


@pytest.mark.parametrize("strategy", ROW_STRATEGIES)
@pytest.mark.parametrize("temperature", [0.5, 1.5])
def test_a_draw_has_the_distribution_of_the_loop(strategy: Any, temperature: float) -> None:
    torch.manual_seed(1)
    logits, table = torch.randn(1, VOCABULARY) * 1.5, torch.rand(VOCABULARY)
    options = DecodingOptions(
        top_k=8, strategy=strategy, strength=0.6, order="sampled", temperature=temperature, accept_threshold=0.4
    )
    aligned = drawn_rows(logits, [options], Heads(table), [0])
    shares = (aligned / temperature).softmax(-1)[0]
    sets, draws = candidate_sets(logits, 8), 4000
    noise = -torch.empty(draws, 8).exponential_().log()
    many = CandidateSets(sets.token_ids.repeat(draws, 1), sets.scores.repeat(draws, 1), sets.counts.repeat(draws))
    many = order_candidates(many, "sampled", temperature, noise)
    emitted = torch.tensor([rule_of_the_loop(options, many, row, table, 9.0) for row in range(draws)])
    found = emitted.bincount(minlength=VOCABULARY) / draws
    assert found[shares == 0].sum() == 0
    assert (shares > 0).sum() > (1 if strategy != "max-prob" else 0)
    assert torch.allclose(found, shares, atol=4 * math.sqrt(0.25 / draws))


def test_drawn_rows_without_an_accepted_candidate_keep_the_whole_set() -> None:
    logits = torch.arange(float(VOCABULARY)).flip(0)[None] * 0.1
    options = DecodingOptions(top_k=5, top_p=1.0, order="sampled", accept_threshold=1.0)
    for strategy in ("first-accept", "max-prob"):
        rows = [options.model_copy(update={"strategy": strategy})]
        aligned = drawn_rows(logits, rows, Heads(torch.rand(VOCABULARY)), [0])
        assert aligned[0].isfinite().nonzero().flatten().tolist() == [0, 1, 2, 3, 4]


def test_a_strength_of_1_draws_what_the_agent_likes_best() -> None:
    torch.manual_seed(0)
    logits, table = torch.randn(1, VOCABULARY), torch.rand(VOCABULARY)
    options = DecodingOptions(top_k=9, order="sampled", strategy="guided", strength=1.0)
    shares = drawn_rows(logits, [options], Heads(table), [0]).softmax(-1)[0]
    sets = candidate_sets(logits, 9)
    best = sets.token_ids[0, table[sets.token_ids[0, : int(sets.counts)]].argmax()]
    assert shares[best] > 0.999


def test_nan_of_the_agent_counts_as_rejected_and_broken_rows_stay() -> None:
    logits = torch.zeros(2, VOCABULARY)
    logits[0, :3] = torch.tensor([3.0, 2.0, 1.0])
    logits[1] = -torch.inf
    table = torch.full((VOCABULARY,), torch.nan)
    table[1] = 0.8
    for strategy in ROW_STRATEGIES:
        options = [DecodingOptions(top_k=3, top_p=1.0, strategy=strategy)] * 2
        aligned = drawn_rows(logits, options, Heads(table), [0, 1])
        assert aligned[0].argmax() == 1
        assert torch.equal(aligned[1], logits[1])


def test_the_agent_reads_logits_before_masks() -> None:
    torch.manual_seed(0)
    agent = tiny_look_ahead(SIZE, seed=1).bind(torch.randn(VOCABULARY, SIZE))
    states, logits = torch.randn(3, SIZE), torch.randn(3, VOCABULARY)
    outlook = Outlook.of(states, logits)
    allowed = logits.clone()
    allowed[:, ::2] = -torch.inf  # a grammar
    aligned = align_rows(
        allowed.clone(), torch.tensor([0, 2]), outlook, agent, RowOptions.of([DecodingOptions()] * 2, CPU)
    )
    sets = candidate_sets(allowed.clone())
    rows = torch.arange(3)
    accept = ask_before(agent, 1, outlook, rows, sets.token_ids, sets.counts)
    logs = logits.log_softmax(-1)
    direct = CandidatesAhead(
        states,
        rows.repeat_interleave(40),
        sets.token_ids.flatten(),
        logs.gather(1, sets.token_ids).flatten(),
        -(logs.exp() * logs).sum(-1),
    )
    expected = agent.accept_probability(direct).view(3, 40)
    inside = torch.arange(40) < sets.counts[:, None]
    assert torch.allclose(accept[inside], expected[inside], atol=1e-6)
    assert (accept[~inside] == 0).all()
    for row in (0, 2):
        first = int((accept[row] > 0.5).int().argmax())
        assert aligned[row].argmax() == sets.token_ids[row, first]
        assert int(sets.token_ids[row, first]) % 2 == 1
    assert torch.equal(aligned[1], allowed[1])


def test_options_keep_the_types_that_they_are_compared_in() -> None:
    options = RowOptions.of([DecodingOptions(top_k=7, accept_threshold=0.1), DecodingOptions(strategy="guided")], CPU)
    assert options.most == 40
    assert options.top_k.tolist() == [[7], [40]]
    assert options.threshold.tolist() == [[0.1], [0.5]]
    assert options.strategy.tolist() == [[0], [2]]
    assert options.gate.tolist() == [[-math.inf], [-math.inf]]
    assert {column.dtype for column in options[:-1]} == {torch.long, torch.float32, torch.float64}
    scores = torch.tensor([[2.0, 1.0], [2.0, 1.0]])
    narrow = narrowed_scores(
        scores, torch.tensor([[0.2, 0.9]] * 2), torch.tensor([2, 1]), torch.ones(2, 1).bool(), options
    )
    assert narrow.tolist() == [[2.0, -math.inf], [2.0, -math.inf]]


def test_all_places_are_those_that_counting_finds() -> None:
    table = torch.ones(3, 4)
    rows, columns = _all_places(table)
    counted_rows, counted_columns = table.nonzero(as_tuple=True)
    assert torch.equal(rows, counted_rows)
    assert torch.equal(columns, counted_columns)
