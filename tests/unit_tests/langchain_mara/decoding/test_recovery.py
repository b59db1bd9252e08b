"""Out of memory: rows wait instead of failing, and what is decoded stays the same."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self

import pytest
import torch
from families import tiny_agent, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from langchain_mara.agents.agent import MaraAgent
from langchain_mara.decoding.batch import Batch
from langchain_mara.decoding.loop import decode
from langchain_mara.decoding.request import Decision, Request
from langchain_mara.options import DecodingOptions
from langchain_mara.policy.cache import RaggedCache
from langchain_mara.policy.model import PolicyModel
from langchain_mara.policy.prefix_cache import PrefixCache

pytestmark = pytest.mark.filterwarnings("ignore:Out of memory on cpu:RuntimeWarning")

AGENT = tiny_agent(seed=3)
UNLIMITED = 10**9
HALVED = "Out of memory on cpu with 8 sequences: continuing with 4 of width 4. A smaller batch_size avoids this"
PROMPTS = [[5, 6, 7 + n] * (1 + n % 3) for n in range(12)]


@pytest.fixture(scope="module")
def policy() -> PolicyModel:
    return PolicyModel(tiny_model("llama-3"))


class Memory:
    """Has the policy model run out of memory beyond so many rows, or tokens, of one pass; at most so many times."""

    def __init__(
        self, policy: PolicyModel, rows: int = UNLIMITED, tokens: int = UNLIMITED, times: int = UNLIMITED
    ) -> None:
        self.rows, self.tokens, self.times = rows, tokens, times
        self.tried: list[tuple[int, int]] = []
        self.refused: list[int] = []
        self._policy = policy

    def _before_pass(self, _module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        rows, tokens = kwargs["input_ids"].shape
        self.tried.append((rows, tokens))
        too_much = rows > self.rows or rows * tokens > self.tokens
        if too_much and len(self.refused) < self.times:
            self.refused.append(len(self.tried) - 1)
            raise torch.OutOfMemoryError("CUDA out of memory, so to speak")

    def __enter__(self) -> Self:
        self._hook = self._policy.backbone.register_forward_pre_hook(self._before_pass, with_kwargs=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()


def options(new: int = 6, **more: Any) -> DecodingOptions:
    return DecodingOptions.parse(top_k=8, max_new_tokens=new, **more)


def requests_of(count: int, **more: Any) -> list[Request]:
    return [Request(PROMPTS[n], options(4 + n % 5, seed=n, **more), AGENT) for n in range(count)]


def run(
    policy: PolicyModel,
    requests: list[Request],
    source: Iterable[Request | None] | None = None,
    after_each: Callable[[list[list[Decision]]], None] = lambda _decisions: None,
    **how: Any,
) -> tuple[list[list[Decision]], list[Request]]:
    """Decisions of each request, and the requests in the order in which they left."""
    decisions: dict[Request, list[Decision]] = {request: [] for request in requests}
    left: list[Request] = []
    how = {"width": 4, "on_leave": left.append, **how}
    for decision in decode(policy, requests if source is None else source, **how):
        assert decision.request not in left
        decisions[decision.request].append(decision)
        after_each(list(decisions.values()))
    assert set(left) == set(requests)
    assert len(left) == len(requests), "every request leaves exactly once"
    return list(decisions.values()), left


def facts(decisions: list[Decision]) -> list[tuple[Any, ...]]:
    return [(d.token_id, d.candidates, d.index, d.accepted, d.finish_reason) for d in decisions]


def assert_as_alone(policy: PolicyModel, requests: list[Request], got: list[list[Decision]]) -> None:
    for request, decisions in zip(requests, got, strict=True):
        alone = Request(request.prompt_ids, request.options, AGENT, logits_processor=request.logits_processor)
        ((expected,), _) = run(policy, [alone], batch_size=1)
        assert facts(decisions) == facts(expected)
        assert [len(d.accept_probabilities) for d in decisions] == [len(d.accept_probabilities) for d in expected]


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "order"), [("first-accept", "descending"), ("random", "sampled")])
@pytest.mark.parametrize(("rows", "refused"), [(7, [8]), (4, [8]), (3, [8, 4]), (1, [8, 4, 2])])
def test_rows_are_halved_until_a_pass_fits(
    policy: PolicyModel, rows: int, refused: list[int], strategy: str, order: str
) -> None:
    requests = requests_of(11, strategy=strategy, order=order)
    with Memory(policy, rows=rows) as memory, pytest.warns(RuntimeWarning, match=HALVED):
        got, _ = run(policy, requests, batch_size=8)
    assert_as_alone(policy, requests, got)
    assert [memory.tried[i][0] for i in memory.refused] == refused
    siblings = [count for count, _ in memory.tried[memory.refused[-1] + 1 :]]
    assert max(siblings) == refused[-1] // 2, "all the rows that fit run, and never more"


def test_without_memory_for_all_prompts_some_wait(policy: PolicyModel) -> None:
    requests = [Request([5, 6, 7, 8, 9, 10 + n], options(seed=n), AGENT) for n in range(8)]
    # Eight prompts have 48 tokens, four 24; four rows of width 4 have 16.
    with Memory(policy, tokens=30) as memory, pytest.warns(RuntimeWarning, match=HALVED):
        got, _ = run(policy, requests, batch_size=8)
    assert_as_alone(policy, requests, got)
    assert [memory.tried[i] for i in memory.refused] == [(1, 48)]
    assert max(rows for rows, _ in memory.tried) == 4


def test_prompts_that_join_running_rows_wait_where_memory_does_not_suffice(policy: PolicyModel) -> None:
    running, joining = requests_of(3), [Request([*range(5, 15), n], options(5), AGENT) for n in range(20, 24)]
    requests, source = [*running, *joining], iter([*running, None, *joining, None])
    with Memory(policy, tokens=30) as memory, pytest.warns(RuntimeWarning, match="with 7 sequences: continuing with 5"):
        got, _ = run(policy, requests, source)
    assert_as_alone(policy, requests, got)
    # The running rows went on, undisturbed, while four prompts of 11 tokens waited to come back two at a time.
    assert [memory.tried[i] for i in memory.refused] == [(1, 44)]
    assert max(rows for rows, _ in memory.tried) == 5


def test_rows_come_back_in_the_order_in_which_they_came(policy: PolicyModel) -> None:
    # Without an agent every pass decides for every row.
    requests = [Request(prompt, options(5)) for prompt in PROMPTS]
    with Memory(policy, rows=2), pytest.warns(RuntimeWarning, match=HALVED):
        begun = list(dict.fromkeys(d.request for d in decode(policy, requests, width=4)))
    assert begun == requests


def test_preempted_rows_come_before_those_that_have_not_begun(policy: PolicyModel) -> None:
    batch = Batch(policy, width=4)
    first, late = requests_of(4), requests_of(6)[4:]
    batch.admit(first)
    with Memory(policy, rows=2), pytest.warns(RuntimeWarning, match="with 4 sequences: continuing with 2"):
        batch.step()
    assert [row.request for row in batch.sequences] == first[:2]
    assert [row.request for row in batch.preempted] == first[2:]
    assert batch.room(batch_size=8) == 0
    first[0].cancel()
    batch.step()
    assert batch.room(batch_size=8) == 0
    batch.admit([])
    assert [row.request for row in batch.sequences] == [first[1], first[2]]
    first[1].cancel()
    first[2].cancel()
    batch.step()
    assert batch.room(batch_size=8) == 1
    batch.admit(late[:1])
    assert [row.request for row in batch.sequences] == [first[3], late[0]]


@pytest.mark.slow
@pytest.mark.parametrize("budget", [0, 2**26])
def test_preempted_rows_go_on_where_they_were(policy: PolicyModel, budget: int) -> None:
    requests = [
        Request([*range(2, 40), n], options(12, seed=n, strategy="random", order="sampled"), AGENT) for n in range(4)
    ]
    memory = Memory(policy)

    def shrink(decisions: list[list[Decision]]) -> None:
        memory.rows = 2 if min(map(len, decisions)) > 3 else UNLIMITED

    with memory, pytest.warns(RuntimeWarning, match="with 4 sequences: continuing with 2"):
        got, _ = run(policy, requests, after_each=shrink, width=3, prefix_cache=PrefixCache(budget))
    assert memory.refused
    assert_as_alone(policy, requests, got)


def test_half_of_the_width_waits_before_a_single_row_does(policy: PolicyModel) -> None:
    (request,) = requests_of(1, strategy="max-prob", top_p=1.0)
    with (
        Memory(policy, tokens=3) as memory,
        pytest.warns(RuntimeWarning, match="with 1 sequences: continuing with 1 of wid"),
    ):
        got, _ = run(policy, [request], width=8)
    assert_as_alone(policy, [request], got)
    assert [memory.tried[i] for i in memory.refused] == [(1, 8), (1, 4)]


SINGLE = (
    "Out of memory on cpu with a single sequence of 60 tokens. Shorten the prompt, lower max_new_tokens or top_k, "
    "or load the model in a smaller dtype"
)


@pytest.mark.parametrize("place", [0, 2, 4])
def test_a_row_that_does_not_fit_alone_fails_alone(policy: PolicyModel, place: int) -> None:
    requests = requests_of(4)
    requests.insert(place, Request([5] * 60, options(), AGENT))
    with Memory(policy, tokens=40), pytest.warns(RuntimeWarning):
        got, left = run(policy, requests, batch_size=3)
    assert isinstance(requests[place].error, torch.OutOfMemoryError)
    assert str(requests[place].error).startswith(SINGLE)
    assert [request for request in left if request.error] == [requests[place]]
    assert got.pop(place) == []
    requests.pop(place)
    assert_as_alone(policy, requests, got)


def test_a_row_that_grows_out_of_memory_fails_alone_and_keeps_what_it_has(policy: PolicyModel) -> None:
    requests = [Request(PROMPTS[0], options(20), AGENT), *requests_of(3)[1:]]

    def full_beyond_ten(_module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs["position_ids"].max() > 10:
            raise torch.OutOfMemoryError

    hook = policy.backbone.register_forward_pre_hook(full_beyond_ten, with_kwargs=True)
    with pytest.warns(RuntimeWarning):
        got, _ = run(policy, requests)
    hook.remove()
    # The other prompts hold six and nine tokens, so the third outgrows the memory as well.
    assert [type(request.error) for request in requests] == [torch.OutOfMemoryError, type(None), torch.OutOfMemoryError]
    ((whole,), _) = run(policy, [Request(PROMPTS[0], options(20), AGENT)])
    assert facts(got[0]) == facts(whole)[:8]
    assert len(got[1]) == requests[1].options.max_new_tokens


def test_without_on_leave_it_is_raised(policy: PolicyModel) -> None:
    with (
        Memory(policy, tokens=40),
        pytest.warns(RuntimeWarning),
        pytest.raises(torch.OutOfMemoryError, match=SINGLE),
    ):
        list(decode(policy, [Request([5] * 60, options(), AGENT)]))


def test_rows_behind_one_that_failed_have_all_the_memory_again(policy: PolicyModel) -> None:
    requests = [Request([5] * 60, options(), AGENT), *requests_of(8)]
    with Memory(policy, tokens=40) as memory, pytest.warns(RuntimeWarning):
        run(policy, requests, batch_size=4)
    assert max(memory.tried[memory.refused[-1] + 1 :]) == (4, 4)


@pytest.mark.slow
@pytest.mark.parametrize("most", [1, 3])
def test_logits_that_do_not_fit_are_taken_in_parts(
    policy: PolicyModel, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = requests_of(9, strategy="random", order="sampled")
    whole, sizes = policy.logits, []

    def limited(states: Tensor) -> Tensor:
        sizes.append(len(states))
        if len(states) > most:
            raise torch.OutOfMemoryError
        return whole(states)

    monkeypatch.setattr(policy, "logits", limited)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got, _ = run(policy, requests, batch_size=8)
    assert max(sizes) == 8
    monkeypatch.undo()
    assert_as_alone(policy, requests, got)


def failing_once(at: int, function: Any) -> Any:
    """The function, but for its call number `at`, which runs out of memory."""
    calls: Iterator[int] = iter(range(UNLIMITED))

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == at:
            raise torch.OutOfMemoryError
        return function(*args, **kwargs)

    return wrapped


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("at", [0, 1, 3])
def test_logits_that_do_not_even_fit_for_one_row_wait(
    policy: PolicyModel, count: int, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = requests_of(count, order="sampled")
    whole, fitted, failed = policy.logits, 0, []

    def limited(states: Tensor) -> Tensor:
        nonlocal fitted
        # From the given call on nothing fits, until a single row has been tried.
        if fitted >= at and 1 not in failed:
            failed.append(len(states))
            raise torch.OutOfMemoryError
        fitted += 1
        return whole(states)

    monkeypatch.setattr(policy, "logits", limited)
    with pytest.warns(RuntimeWarning, match=f"with {count} sequences: continuing with 1"):
        got, _ = run(policy, requests)
    assert 1 in failed
    assert [request.error for request in requests] == [None] * count
    monkeypatch.undo()
    assert_as_alone(policy, requests, got)


@pytest.mark.parametrize("at", range(6))
def test_prefixes_that_cannot_be_copied_are_forgotten(
    policy: PolicyModel, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [Request([*range(2, 40), n], options(4 + 4 * n, seed=n), AGENT) for n in range(4)]
    monkeypatch.setattr(RaggedCache, "read", failing_once(at, RaggedCache.read))
    store = PrefixCache(2**26)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got, _ = run(policy, requests, batch_size=3, prefix_cache=store)
    assert_as_alone(policy, requests, got)


def test_memory_for_prefixes_is_given_back_first(policy: PolicyModel) -> None:
    store = PrefixCache(2**26)
    run(policy, [Request([*range(2, 70)], options(), AGENT)], prefix_cache=store)
    assert store.size > 0
    batch = Batch(policy, width=4, prefix_cache=store)
    batch.admit(requests_of(4))
    with Memory(policy, rows=2), pytest.warns(RuntimeWarning):
        batch.step()
    assert store.size == 0
    assert batch.cache.positions.shape[0] == batch._states.shape[0] == 2


class HungryAgent(MaraAgent):
    """Needs memory for every state it sees at once."""

    most = 8

    def accept_probability(self, states: Tensor, accept_action: int = 1) -> Tensor:
        if states.shape[0] * states.shape[1] > self.most:
            raise torch.OutOfMemoryError
        return super().accept_probability(states, accept_action)


@pytest.mark.slow
def test_an_agent_without_memory_makes_rows_wait(policy: PolicyModel) -> None:
    hungry = HungryAgent(32, width=16).eval()
    hungry.load_state_dict(AGENT.state_dict())
    requests = [Request(PROMPTS[n], options(seed=n), hungry) for n in range(8)]
    with pytest.warns(RuntimeWarning, match=HALVED):
        got, _ = run(policy, requests)
    assert_as_alone(policy, requests, got)


def test_a_logits_processor_without_memory_is_asked_again(policy: PolicyModel) -> None:
    calls = 0

    def hungry(_ids: Tensor, scores: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise torch.OutOfMemoryError
        return -scores

    requests = requests_of(2)
    requests[1].logits_processor = hungry
    got, _ = run(policy, requests)
    assert [request.error for request in requests] == [None, None]
    assert calls > 3
    assert_as_alone(policy, requests, got)


@pytest.mark.parametrize("everything", [True, False], ids=["all", "preempted ones"])
def test_cancelled_preempted_rows_leave_without_another_pass(policy: PolicyModel, everything: bool) -> None:
    requests = requests_of(4)
    victims = requests if everything else requests[2:]
    with Memory(policy, rows=2) as memory, pytest.warns(RuntimeWarning):
        got, _ = run(policy, requests, after_each=lambda _: [request.cancel() for request in victims])
    assert got[2] == got[3] == []
    # One prefill, a pass of four that failed, and those of the two rows that stayed.
    assert [rows for rows, _ in memory.tried[:3]] == [1, 4, 2]
    assert (len(memory.tried) == 3) == everything
    assert not any(tokens > 4 for _, tokens in memory.tried[1:]), "nothing was prefilled again"
    if not everything:
        assert_as_alone(policy, requests[:2], got[:2])


def test_cancelled_preempted_rows_make_room(policy: PolicyModel) -> None:
    batch = Batch(policy, width=4, raise_errors=False)
    requests = requests_of(4)
    batch.admit(requests)
    with Memory(policy, rows=2), pytest.warns(RuntimeWarning):
        batch.step()
    requests[3].cancel()
    before = policy.passes
    batch.admit([])
    assert batch.finished == [requests[3]]
    assert [row.request for row in batch.preempted] == [requests[2]]
    requests[2].cancel()
    requests[0].cancel()
    batch.admit([])
    batch.step()
    assert batch.room(batch_size=8) == 1
    assert policy.passes - before == 1


@pytest.mark.slow
@settings(max_examples=10)
@given(
    st.lists(st.integers(0, 11), min_size=1, max_size=7),
    st.sampled_from(["first-accept", "max-prob", "random", "guided"]),
    st.sampled_from(["descending", "reversed", "sampled"]),
    st.integers(1, 6),
    st.integers(1, 9),
    st.lists(st.tuples(st.integers(1, 5), st.integers(55, 120)), min_size=1, max_size=6),
    st.sampled_from([0, 2**26]),
)
def test_however_memory_changes_everything_is_decoded_the_same(
    policy: PolicyModel,
    picks: list[int],
    strategy: str,
    order: str,
    batch_size: int,
    width: int,
    limits: list[tuple[int, int]],
    budget: int,
) -> None:
    def requests() -> list[Request]:
        return [
            Request([*range(2, 30 + n), n], options(3 + n, seed=n, strategy=strategy, order=order), AGENT)
            for n in picks
        ]

    how = {"batch_size": batch_size, "width": width}
    expected, _ = run(policy, requests(), **how)
    under_test = requests()
    memory = Memory(policy, *limits[0])

    def change(decisions: list[list[Decision]]) -> None:
        # A whole row always fits, but perhaps not beside another's prompt.
        memory.rows, memory.tokens = limits[sum(map(len, decisions)) // 5 % len(limits)]

    with memory:
        got, _ = run(policy, under_test, after_each=change, prefix_cache=PrefixCache(budget), **how)
    assert [request.error for request in under_test] == [None] * len(picks)
    for decisions, other in zip(got, expected, strict=True):
        assert facts(decisions) == facts(other)


@pytest.mark.slow
def test_what_was_reused_counts_no_more_than_the_prompt(policy: PolicyModel) -> None:
    requests = [Request([*range(2, 40)], options(40), AGENT) for _ in range(2)]
    memory = Memory(policy)

    def shrink(decisions: list[list[Decision]]) -> None:
        memory.rows = 1 if len(decisions[1]) > 30 else UNLIMITED

    with memory, pytest.warns(RuntimeWarning, match="with 2 sequences: continuing with 1"):
        got, _ = run(policy, requests, after_each=shrink, prefix_cache=PrefixCache(2**26))
    # The second row came back to 64 tokens kept by the first, its own answer among them.
    assert [request.reused_tokens for request in requests] == [0, 38]
    assert facts(got[0]) == facts(got[1])
    assert_as_alone(policy, requests[:1], got[:1])


def test_reuse_that_was_lost_does_not_count(policy: PolicyModel) -> None:
    store = PrefixCache(2**26)
    run(policy, [Request([*range(2, 70)], options(1), AGENT)], prefix_cache=store)
    request = Request([*range(2, 70), *range(30, 50)], options(), AGENT)
    warned = pytest.warns(RuntimeWarning, match="with 1 sequences: continuing with 1")
    with Memory(policy, tokens=19, times=1) as memory, warned:
        got, _ = run(policy, [request], prefix_cache=store)
    assert memory.tried[:2] == [(1, 24), (1, 88)]
    assert request.reused_tokens == 0
    assert_as_alone(policy, [request], got)
