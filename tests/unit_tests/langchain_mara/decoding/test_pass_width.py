"""PassWidthTuner: costs between measured points, what is learnt of agents, and the best rate of decisions."""

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from langchain_mara.agents.agent import MaraAgent
from langchain_mara.decoding import pass_width
from langchain_mara.decoding.loop import decode
from langchain_mara.decoding.pass_width import MOST_WIDTH, AcceptanceCounts, PassCosts, PassWidthTuner, measure_costs
from langchain_mara.decoding.request import Decision, Request
from langchain_mara.decoding.sequence import SequenceState
from langchain_mara.options import DecodingOptions
from langchain_mara.policy.model import PolicyModel

FLAT = PassCosts([1, 64], [1.0, 1.0])
STEEP = PassCosts([1, 64], [1.0, 64.0])


class CoinAgent(MaraAgent):
    """Accepts a share of states by a hash of each."""

    share = 0.5

    def accept_probability(self, states: Tensor, accept_action: int = 1) -> Tensor:
        return ((states.float().sum(-1) * 1e3).remainder(1.0) < self.share).float()


@pytest.fixture
def policy() -> PolicyModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128,
    )  # fmt: skip
    return PolicyModel(LlamaForCausalLM(config))


def rows_of(agent: MaraAgent | None, number: int, examined: int = 0, **options: Any) -> list[SequenceState]:
    rows = [SequenceState(Request([1, 2], DecodingOptions(**options), agent), 2) for _ in range(number)]
    for row in rows:
        row.probabilities = [0.0] * examined
    return rows


def decision(agent: MaraAgent | None, examined: int) -> Decision:
    return Decision(Request([1], agent=agent), 5, (5, 6, 7), (0.1,) * examined, 0, accepted=True)


@pytest.mark.parametrize(("tokens", "seconds"), [(1, 1.0), (2, 2.0), (3, 2.5), (4, 3.0), (6, 3.0), (8, 3.0), (16, 3.0)])
def test_costs_between_and_beyond(tokens: int, seconds: float) -> None:
    # The dip at eight tokens is noise: more tokens never cost less.
    assert PassCosts([1, 2, 4, 8], [1.0, 2.0, 3.0, 2.0]).of(tokens) == pytest.approx(seconds)


def test_costs_go_on_in_a_straight_line_and_from_one_point_stay() -> None:
    assert PassCosts([1, 4], [1.0, 2.5]).of(10) == pytest.approx(5.5)
    assert PassCosts([1], [2.0]).of(40) == 2.0


def test_decisions_are_learnt_and_later_ones_count_more() -> None:
    known = AcceptanceCounts()
    assert known.decided(0, 1) == pytest.approx(0.6)
    for _ in range(400):
        known.add(3)
    assert known.decided(0, 2) < 0.02
    assert known.decided(0, 3) > 0.99
    assert known.decided(2, 1) > 0.99
    for _ in range(2000):
        known.add(1)
    assert known.decided(0, 1) > 0.9
    known.add(10 * MOST_WIDTH)
    assert 0 < known.decided(MOST_WIDTH, 5) <= 1


@pytest.mark.parametrize(("costs", "width"), [(FLAT, 40), (STEEP, 1), (PassCosts([1, 8, 16], [1.0, 1.0, 4.0]), 8)])
def test_width_follows_the_costs(policy: PolicyModel, costs: PassCosts, width: int) -> None:
    widths = PassWidthTuner()
    widths.costs = costs
    assert widths.choose(policy, rows_of(CoinAgent(32), 1), [40], 40) == width


def test_width_follows_what_an_agent_needs(policy: PolicyModel) -> None:
    widths, eager, picky = PassWidthTuner(), CoinAgent(32), CoinAgent(32)
    widths.costs = PassCosts([1, 64], [1.0, 4.0])
    widths.learn([decision(eager, 1)] * 300 + [decision(picky, 12)] * 300 + [decision(None, 0)])
    assert widths.choose(policy, rows_of(eager, 1), [40], 40) == 1
    assert widths.choose(policy, rows_of(picky, 1), [40], 40) == 12
    # The first six candidates are known to be rejected: as many again will do.
    assert widths.choose(policy, rows_of(picky, 1, examined=6), [40], 40) == 6


def test_a_wide_batch_is_cut_narrower(policy: PolicyModel) -> None:
    widths, agent = PassWidthTuner(), CoinAgent(32)
    widths.costs = PassCosts([1, 16, 64], [1.0, 1.0, 4.0])
    chosen = [widths.choose(policy, rows_of(agent, number), [40] * number, 40) for number in (1, 4, 16, 64)]
    assert chosen == sorted(chosen, reverse=True)
    assert chosen[0] >= 8
    assert chosen[-1] <= 2


def test_the_last_of_a_set_decide_for_sure(policy: PolicyModel) -> None:
    widths = PassWidthTuner()
    widths.costs = PassCosts([1, 2, 3], [1.0, 1.1, 1.2])
    assert widths.choose(policy, rows_of(CoinAgent(32), 2, examined=1), [3, 3], 2) == 2
    assert widths.choose(policy, rows_of(None, 3), [40] * 3, 1) == 1


class Clock:
    """Time that passes only in passes: each takes as many milliseconds as it has tokens, plus what is added."""

    def __init__(self, added: Callable[[int], float] = lambda _tokens: 0.0) -> None:
        self.now, self.added = 0.0, added

    def perf_counter(self) -> float:
        return self.now

    def take_time(self, _module: Any, _args: Any, inputs: dict[str, Any]) -> None:
        tokens = inputs["input_ids"].numel()
        self.now += tokens / 1000 + self.added(tokens)


@pytest.fixture
def measure(policy: PolicyModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Clock], PassCosts]]:
    """Measures costs by another clock than the machine's."""
    hooks = []

    def by(clock: Clock) -> PassCosts:
        monkeypatch.setattr(pass_width, "time", clock)
        hooks.append(policy.backbone.register_forward_pre_hook(clock.take_time, with_kwargs=True))
        return measure_costs(policy)

    yield by
    for hook in hooks:
        hook.remove()


def test_measuring_leaves_no_trace_and_costs_grow(policy: PolicyModel, measure: Callable[[Clock], PassCosts]) -> None:
    passes, prefilled = policy.passes, policy.prefilled
    costs = measure(Clock())
    assert (policy.passes, policy.prefilled) == (passes, prefilled)
    assert costs.tokens == [1, 2, 4, 8, 16, 32, 64]
    assert costs.seconds == pytest.approx([tokens / 1000 for tokens in costs.tokens])


def test_slow_passes_show_in_the_costs(measure: Callable[[Clock], PassCosts]) -> None:
    costs = measure(Clock(lambda tokens: 0.5 if tokens > 16 else 0.0))
    assert costs.of(16) == pytest.approx(0.016)
    assert costs.of(32) == pytest.approx(0.532)


def test_one_pass_that_is_slow_by_chance_does_not_count(measure: Callable[[Clock], PassCosts]) -> None:
    eights = iter([0.1, 0.0, 0.0])
    costs = measure(Clock(lambda tokens: next(eights) if tokens == 8 else 0.0))
    assert costs.of(8) == pytest.approx(0.008)


def test_memory_that_ends_while_measuring_is_no_failure(policy: PolicyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    siblings = PolicyModel.siblings

    def narrow(self: PolicyModel, cache: Any, token_ids: Tensor, *args: Any) -> Tensor:
        if token_ids.shape[1] > 4:
            raise torch.OutOfMemoryError
        return siblings(self, cache, token_ids, *args)

    monkeypatch.setattr(PolicyModel, "siblings", narrow)
    assert measure_costs(policy).tokens == [1, 2, 4]


def test_a_model_is_measured_once_and_only_where_there_is_a_choice(policy: PolicyModel) -> None:
    def answer(agent: MaraAgent | None, width: int | None) -> list[int | None]:
        request = Request([3, 4, 5], DecodingOptions(max_new_tokens=6), agent)
        return [decision.token_id for decision in decode(policy, [request], width=width)]

    agent = CoinAgent(32)
    plain = answer(None, None)
    assert len(plain) == 6
    assert PassWidthTuner.of(policy).costs is None
    assert answer(agent, None) == answer(agent, 4)
    costs = PassWidthTuner.of(policy).costs
    assert costs is not None
    answer(agent, None)
    assert PassWidthTuner.of(PolicyModel(policy.model)).costs is costs


def test_what_is_known_of_a_model_goes_with_it() -> None:
    policy = PolicyModel(LlamaForCausalLM(LlamaConfig(vocab_size=32, hidden_size=8, intermediate_size=8,
                                                      num_hidden_layers=1, num_attention_heads=2)))  # fmt: skip
    list(decode(policy, [Request([3], DecodingOptions(max_new_tokens=2), CoinAgent(8))], width=None))
    gone = weakref.ref(policy.model)
    del policy
    gc.collect()
    assert gone() is None


@pytest.mark.slow
@pytest.mark.parametrize("costs", [FLAT, STEEP, PassCosts([1, 8, 16], [1.0, 1.0, 4.0])])
@pytest.mark.parametrize("strategy", ["first-accept", "max-prob", "random", "sampled", "guided"])
@pytest.mark.parametrize("draft", [0, 4])
def test_results_do_not_depend_on_chosen_widths(
    policy: PolicyModel, costs: PassCosts, strategy: Any, draft: int
) -> None:
    model = policy.model.double()
    policy = PolicyModel(model)
    PassWidthTuner.of(policy).costs = costs
    agent = CoinAgent(32)
    agent.share = 0.3

    def answers(width: int | None) -> list[tuple[Any, ...]]:
        options = DecodingOptions(top_k=12, max_new_tokens=10, strategy=strategy)
        requests = [Request(list(range(1, 3 + 2 * i)), options, agent) for i in range(4)]
        decisions = decode(policy, requests, batch_size=3, width=width, draft=draft)
        found = [(requests.index(d.request), d.token_id, d.index, d.candidates, d.accepted) for d in decisions]
        return sorted(found, key=lambda one: one[0])

    assert answers(None) == answers(1)


@pytest.mark.parametrize("examined", [0, 1, MOST_WIDTH - 1, MOST_WIDTH, 812, 813, 5000, 10**6])
@pytest.mark.parametrize("seen", [0, 3, 2000])
def test_any_number_of_rejected_candidates_leaves_a_probability(examined: int, seen: int) -> None:
    counts = AcceptanceCounts()
    for _ in range(seen):
        counts.add(10**6)
    chances = [counts.decided(examined, further) for further in (1, 8, 64, 10**6)]
    assert all(0 <= chance <= 1 for chance in chances)
    assert chances == sorted(chances)
