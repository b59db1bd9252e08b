"""Prefix reuse: the store alone against a model of it, and decoding with and without it."""

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from families import CONFIGS, tiny_agent
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM

from langchain_mara.agents.agent import MaraAgent
from langchain_mara.decoding.loop import decode
from langchain_mara.decoding.request import Decision, Request
from langchain_mara.options import DecodingOptions
from langchain_mara.policy.model import PolicyModel
from langchain_mara.policy.prefix_cache import BLOCK_TOKENS, Block, BlockKey, KeysValues, PrefixCache

BLOCK_BYTES = 2 * BLOCK_TOKENS * 8
LETTERS, DEPTH = 2, 3
Path = tuple[int, ...]
PATHS = [path for depth in range(1, DEPTH + 1) for path in product(range(LETTERS), repeat=depth)]


def tokens_of(path: Path, tail: int = 0) -> list[int]:
    """A prompt of whole blocks, one per letter, and a tail that fills none."""
    return [token for letter in path for token in range(letter, letter + BLOCK_TOKENS)] + [99] * tail


def reader(token_ids: list[int]) -> Callable[[int, int], KeysValues]:
    """Stands for the cache: a token's key is the token, its value the sum of all tokens up to it."""
    keys = torch.tensor(token_ids, dtype=torch.float64).reshape(-1, 1, 1)
    return lambda start, stop: [(keys[start:stop].clone(), keys.cumsum(0)[start:stop].clone())]


def assert_holds(blocks: list[Block], token_ids: list[int]) -> None:
    """The blocks are the keys and values of the beginning of these tokens."""
    for i, block in enumerate(blocks):
        ((keys, values),) = reader(token_ids)(i * BLOCK_TOKENS, (i + 1) * BLOCK_TOKENS)
        assert torch.equal(block.layers[0][0], keys)
        assert torch.equal(block.layers[0][1], values)


class Model:
    """What a store should hold: for every kept path when it was used last; in one use, ends before beginnings."""

    def __init__(self, budget: int) -> None:
        self.used: dict[Path, tuple[int, int]] = {}
        self.budget = budget
        self.clock = 0

    def known(self, path: Path) -> int:
        return next((n for n in range(len(path)) if path[: n + 1] not in self.used), len(path))

    def use(self, path: Path) -> None:
        self.clock += 1
        for depth in range(1, len(path) + 1):
            self.used[path[:depth]] = (self.clock, -depth)
        self.shrink()

    def shrink(self) -> None:
        while len(self.used) * BLOCK_BYTES > self.budget:
            del self.used[min(self.used, key=self.used.__getitem__)]


def kept(store: PrefixCache) -> set[Path]:
    """Paths the store can find, asked without using them."""
    blocks_of = {path: store._find(tokens_of(path)) for path in PATHS}
    return {path for path, blocks in blocks_of.items() if len(blocks) == len(path)}


budgets = st.builds(
    lambda blocks, rest: blocks * BLOCK_BYTES + rest, st.sampled_from(range(9)), st.sampled_from([0, 99])
)
prompts_of_blocks = st.tuples(st.sampled_from([(), *PATHS]), st.sampled_from([0, 1, BLOCK_TOKENS - 1]))
operations = st.one_of(
    *(st.tuples(st.just(what), prompts_of_blocks) for what in ("add", "match") * 4),
    st.tuples(st.just("budget"), budgets),
    st.tuples(st.just("clear"), st.none()),
)


def apply(store: PrefixCache, model: Model, what: str, argument: Any) -> None:
    """One operation on both; what the store returns is compared."""
    if what == "budget":
        store.budget = model.budget = argument
        model.shrink()
        return
    if what == "clear":
        store.clear()
        model.used.clear()
        return
    path, tail = argument
    token_ids = tokens_of(path, tail)
    if what == "add":
        store.add(token_ids, reader(token_ids))
        model.use(path[: max(model.known(path), model.budget // BLOCK_BYTES)])
    else:
        usable = path if tail else path[:-1]
        blocks = store.match(token_ids)
        assert len(blocks) == model.known(usable)
        assert_holds(blocks, token_ids)
        model.use(usable[: len(blocks)])


@settings(max_examples=150)
@given(budgets, st.lists(operations, min_size=10, max_size=25))
def test_keeps_the_most_recently_used_blocks_and_gives_true_prefixes(budget: int, steps: list[Any]) -> None:
    store, model = PrefixCache(budget), Model(budget)
    for step in steps:
        apply(store, model, *step)
        assert kept(store) == set(model.used)
        assert len(store._blocks) == len(model.used), "a block that cannot be found outlived the one before it"
        assert store.size == len(model.used) * BLOCK_BYTES <= store.budget
        for path in PATHS:
            following = store.next_key(tokens_of(path, tail=1))
            place = model.known(path)
            assert (following is None) == (place == len(path))
            if following is not None:
                assert following.token_ids == tuple(tokens_of(path[place : place + 1]))


def test_a_match_never_includes_the_last_token() -> None:
    store = PrefixCache(budget=2**20)
    token_ids = tokens_of((0, 1))
    store.add(token_ids, reader(token_ids))
    assert [len(store.match(token_ids[:n])) for n in (1, 32, 33, 63, 64)] == [0, 0, 1, 1, 1]
    assert len(store.match([*token_ids, 5])) == 2


def test_next_key_is_shared_by_those_who_can_share_a_block() -> None:
    store = PrefixCache(budget=2**20)
    first = tokens_of((0,))
    assert store.next_key(first) is None
    assert store.next_key([*first, 1]) == store.next_key([*first, 2]) == BlockKey(0, tuple(first))
    store.add(first, reader(first))
    identity = store.match([*first, 1])[0].identity
    assert identity != 0
    assert store.next_key([*first, 1]) is None
    second = tokens_of((0, 1), tail=3)
    assert store.next_key(second) == BlockKey(identity, tuple(second[32:64]))
    # The same tokens after another beginning are another block.
    other = tokens_of((1, 1), tail=3)
    assert store.next_key(other) == BlockKey(0, tuple(other[:32]))
    store.add(other, reader(other))
    assert len(store.match(second)) == 1


def test_a_block_that_was_forgotten_and_made_again_is_another() -> None:
    store = PrefixCache(budget=2**20)
    prompt = tokens_of((0, 1), tail=1)
    store.add(prompt, reader(prompt))
    before = [block.identity for block in store.match(prompt)]
    store.clear()
    assert (store.size, store.match(prompt)) == (0, [])
    store.add(prompt, reader(prompt))
    assert not set(before) & {block.identity for block in store.match(prompt)}


def test_what_is_kept_is_not_read_again() -> None:
    store = PrefixCache(budget=2**20)
    prompt, longer = tokens_of((0, 1), tail=9), tokens_of((0, 1, 0), tail=9)
    read: list[tuple[int, int]] = []

    def noting(token_ids: list[int]) -> Callable[[int, int], KeysValues]:
        return lambda start, stop: read.append((start, stop)) or reader(token_ids)(start, stop)  # type: ignore[func-returns-value]

    for token_ids in (prompt, prompt, longer, prompt):
        store.add(token_ids, noting(token_ids))
    assert read == [(0, 32), (32, 64), (64, 96)]


def test_without_a_budget_nothing_is_read() -> None:
    store = PrefixCache(budget=0)
    store.add(tokens_of((0, 1)), lambda *_: pytest.fail("read"))
    assert store.size == 0


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_read_that_fails_leaves_a_sound_store(failing: int) -> None:
    store = PrefixCache(budget=4 * BLOCK_BYTES)
    old, prompt = tokens_of((1, 1, 1)), tokens_of((0, 1, 0))

    def read(start: int, stop: int) -> KeysValues:
        if start == failing * BLOCK_TOKENS:
            raise torch.OutOfMemoryError("while copying")
        return reader(prompt)(start, stop)

    store.add(old, reader(old))
    with pytest.raises(torch.OutOfMemoryError):
        store.add(prompt, read)
    assert store.size == len(store._blocks) * BLOCK_BYTES <= store.budget
    store.budget = 3 * BLOCK_BYTES
    assert len(kept(store)) == len(store._blocks)
    assert len(store.match([*prompt, 5])) == failing


# ---------------------------------------------------------------- with the engine


def long_policy(family: str, context: int = 256) -> PolicyModel:
    """A tiny policy model in float64 with a longer context than the others'."""
    config = CONFIGS[family]()
    config.max_position_embeddings = context
    torch.manual_seed(0)
    return PolicyModel(AutoModelForCausalLM.from_config(config).double().eval())


class ExactAgent(MaraAgent):
    """An agent in float64, so that what it says depends on the states alone and not on rounding."""

    def forward(self, states: Tensor) -> Tensor:
        logits: Tensor = self.output_linear(self.linear2(self.linear1(self.ln(states)).relu()).relu())
        return logits


def exact_agent() -> ExactAgent:
    agent = ExactAgent(32, width=16).double()
    agent.load_state_dict(tiny_agent(seed=3).state_dict())
    return agent.eval()


FAMILIES = ["llama-3", "gpt-2", "mistral-v0.1", "gemma-2"]
POLICIES: dict[str, PolicyModel] = {}
AGENT = exact_agent()
TEXT = [(7 * i * i + 3 * i + 11) % 95 + 2 for i in range(400)]
ROOM = 2**26


@pytest.fixture(params=FAMILIES)
def policy(request: pytest.FixtureRequest) -> PolicyModel:
    return policy_of(request.param)


@pytest.fixture
def llama() -> PolicyModel:
    return policy_of("llama-3")


def policy_of(family: str) -> PolicyModel:
    if family not in POLICIES:
        POLICIES[family] = long_policy(family)
    return POLICIES[family]


def a_request(prompt: list[int], new: int = 5, seed: int = 0, **more: Any) -> Request:
    return Request(prompt, DecodingOptions.parse(top_k=8, max_new_tokens=new, seed=seed, **more), AGENT)


def answers(policy: PolicyModel, requests: list[Request], **how: Any) -> list[list[Decision]]:
    decisions: dict[Request, list[Decision]] = {request: [] for request in requests}
    for decision in decode(policy, requests, **{"width": 4, **how}):
        decisions[decision.request].append(decision)
    return list(decisions.values())


def again(request: Request) -> Request:
    return Request(request.prompt_ids, request.options, request.agent, request.eos_token_ids)


def token_ids(decisions: list[Decision]) -> list[int]:
    return [decision.token_id for decision in decisions if decision.token_id is not None]


def assert_same(got: list[Decision], expected: list[Decision]) -> None:
    facts = [[(d.token_id, d.candidates, d.index, d.accepted, d.finish_reason) for d in ds] for ds in (got, expected)]
    assert facts[0] == facts[1]
    for decision, same in zip(got, expected, strict=True):
        # The families' norms compute in float32, also in a float64 model, and so differ in the last bits.
        assert decision.accept_probabilities == pytest.approx(same.accept_probabilities, abs=1e-6)


def assert_same_as_alone(policy: PolicyModel, requests: list[Request], got: list[list[Decision]]) -> None:
    """With and without a store decisions are the same; all requests and one at a time."""
    for request, decisions in zip(requests, got, strict=True):
        (alone,) = answers(policy, [again(request)], batch_size=1)
        assert_same(decisions, alone)


def prefilled(policy: PolicyModel, requests: list[Request], **how: Any) -> tuple[list[list[Decision]], int]:
    before = policy.prefilled
    got = answers(policy, requests, **how)
    return got, policy.prefilled - before


def reusable(shared: int, length: int) -> int:
    return min(shared, length - 1) // BLOCK_TOKENS * BLOCK_TOKENS


@pytest.mark.parametrize("shared", [0, 33, *(pytest.param(n, marks=pytest.mark.slow) for n in (31, 32, 64, 100))])
@pytest.mark.parametrize("together", [True, False], ids=["together", "one after another"])
def test_a_common_beginning_is_computed_once(policy: PolicyModel, shared: int, together: bool) -> None:
    requests = [a_request([*TEXT[:shared], 20 + n, *TEXT[200 : 203 + 7 * n]]) for n in range(3)]
    lengths = [len(request.prompt_ids) for request in requests]
    store = PrefixCache(ROOM)
    if together:
        got, computed = prefilled(policy, requests, prefix_cache=store)
    else:
        runs = [prefilled(policy, [request], prefix_cache=store) for request in requests]
        got, computed = [decisions for ((decisions,), _) in runs], sum(count for _, count in runs)
    assert_same_as_alone(policy, requests, got)
    reused = [0, *(reusable(shared, length) for length in lengths[1:])]
    assert computed == sum(lengths) - sum(reused)
    assert [request.reused_tokens for request in requests] == reused


@pytest.mark.parametrize("length", [33, 64, *(pytest.param(n, marks=pytest.mark.slow) for n in (31, 32, 65, 97))])
@pytest.mark.parametrize("together", [True, False], ids=["together", "one after another"])
def test_a_prompt_repeated_computes_its_end_only(policy: PolicyModel, length: int, together: bool) -> None:
    requests = [a_request(TEXT[:length], seed=n, order="sampled", top_p=1.0, temperature=9.0) for n in range(3)]
    store = PrefixCache(ROOM)
    before = policy.prefilled
    batches = [requests] if together else [[request] for request in requests]
    got = [decisions for batch in batches for decisions in answers(policy, batch, prefix_cache=store)]
    assert policy.prefilled - before == 3 * length - 2 * reusable(length, length)
    assert_same_as_alone(policy, requests, got)
    assert len({decisions[0].candidates for decisions in got}) == 3, "different seeds must ask in different orders"


def test_rows_wait_for_the_block_that_one_of_them_computes(llama: PolicyModel) -> None:
    base = TEXT[:64]
    prompts = [
        [*base, 1, 2],  # first wave: computes the base
        TEXT[100:150],  # first wave: shares nothing
        [*base, 3],  # second wave: reuses the base
        [*base, *TEXT[300:332], 4],  # second wave: reuses the base, computes one more block
        [*base, *TEXT[300:332], 5],  # third wave: reuses that block too
        [*base, *TEXT[300:310]],  # second wave
    ]
    requests = [a_request(prompt, new=1) for prompt in prompts]
    for request in requests:
        request.agent = None
    before = llama.passes
    got, computed = prefilled(llama, requests, prefix_cache=PrefixCache(ROOM))
    assert llama.passes - before == 3 + 1, "a pass per wave, and one for the only token"
    assert_same_as_alone(llama, requests, got)
    assert [request.reused_tokens for request in requests] == [0, 0, 64, 64, 96, 64]
    assert computed == 66 + 50 + 1 + 33 + 1 + 10


def test_a_chat_goes_on_from_its_own_answers(policy: PolicyModel) -> None:
    store = PrefixCache(ROOM)
    history: list[int] = []
    places: list[int] = []
    for turn, (says, new) in enumerate([(TEXT[:20], 44), (TEXT[50:61], 40), (TEXT[90:99], 3)]):
        history += says
        request = a_request(list(history), new=new)
        (got,), computed = prefilled(policy, [request], prefix_cache=store)
        assert_same_as_alone(policy, [request], [got])
        # The last token of an answer is never computed: nothing follows it.
        held = max(0, len(history) - len(says) - 1) // BLOCK_TOKENS * BLOCK_TOKENS
        assert (request.reused_tokens, computed) == (held, len(history) - held)
        assert held == [0, 32, 96][turn]
        places += [decision.index for decision in got]
        history += token_ids(got)
    assert max(places) > 0, "rejected siblings must stand between the answer's tokens"


def test_reuse_up_to_the_very_end_of_learned_positions() -> None:
    policy = long_policy("gpt-2", context=128)
    store = PrefixCache(ROOM)
    # Suffixes of 31 and 95 tokens side by side: the padding of the shorter one would stand beyond position 127.
    first = [a_request(TEXT[:97]), a_request([*TEXT[:32], *TEXT[200:205]])]
    second = [a_request(TEXT[:127]), a_request([*TEXT[:32], *TEXT[200:294]], new=9), a_request(TEXT[:120], new=20)]
    for requests in (first, second):
        got = answers(policy, requests, prefix_cache=store)
        assert_same_as_alone(policy, requests, got)
    assert [request.reused_tokens for request in second] == [96, 32, 96]
    assert [len(decisions) for decisions in got] == [1, 2, 8]


def test_long_suffixes_go_in_chunks(policy: PolicyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    store = PrefixCache(ROOM)
    answers(policy, [a_request(TEXT[:70])], prefix_cache=store)
    requests = [
        a_request([*TEXT[: 32 * blocks], *TEXT[200 : 200 + more]]) for blocks, more in [(2, 50), (1, 3), (2, 7)]
    ]
    expected = answers(policy, [again(request) for request in requests])
    monkeypatch.setattr("langchain_mara.policy.model.PREFILL_TOKENS", 9)
    got, computed = prefilled(policy, requests, prefix_cache=store)
    for decisions, other in zip(got, expected, strict=True):
        assert_same(decisions, other)
    assert computed == 50 + 3 + 7


@pytest.mark.parametrize("blocks", [0, 1, 2, 3])
def test_a_small_budget_costs_reuse_and_nothing_else(llama: PolicyModel, blocks: int) -> None:
    size = probe_block_bytes(llama)
    store = PrefixCache(budget=blocks * size + size // 2)
    requests = [a_request([*TEXT[:100], n]) for n in range(2, 5)]
    got, computed = prefilled(llama, requests, prefix_cache=store)
    assert_same_as_alone(llama, requests, got)
    assert store.size == blocks * size
    assert computed == 3 * 101 - 2 * blocks * BLOCK_TOKENS


def probe_block_bytes(policy: PolicyModel) -> int:
    store = PrefixCache(ROOM)
    answers(policy, [a_request(TEXT[:33], new=1)], prefix_cache=store)
    return store.size


def test_reuse_counts_no_more_than_the_prompt(llama: PolicyModel) -> None:
    store = PrefixCache(ROOM)
    request = a_request(TEXT[:40], new=60)
    answers(llama, [request], prefix_cache=store)
    other = again(request)
    got = answers(llama, [other], prefix_cache=store)
    assert_same_as_alone(llama, [other], got)
    assert other.reused_tokens == 32


def test_an_answer_that_was_cut_short_is_kept_as_far_as_it_went(llama: PolicyModel) -> None:
    store = PrefixCache(ROOM)
    request = a_request(TEXT[:40], new=60)
    emitted: list[int] = []
    for decision in decode(llama, [request], width=4, prefix_cache=store):
        emitted += token_ids([decision])
        if len(emitted) == 30:
            request.cancel()
    following = a_request([*TEXT[:40], *emitted, 5])
    got = answers(llama, [following], prefix_cache=store)
    assert_same_as_alone(llama, [following], got)
    assert following.reused_tokens == 64


pieces = st.lists(st.integers(0, 2), min_size=1, max_size=5).map(tuple)
prompts = st.builds(
    lambda path, tail: [token for i in path for token in TEXT[40 * i : 40 * i + 21]] + TEXT[300 : 300 + tail],
    pieces,
    st.integers(0, 40),
)


@settings(max_examples=10)
@given(
    st.sampled_from(FAMILIES),
    st.lists(st.lists(prompts, min_size=1, max_size=6), min_size=1, max_size=3),
    st.integers(1, 5),
    st.integers(1, 9),
    st.sampled_from(["descending", "sampled"]),
    st.sampled_from(["first-accept", "random"]),
    st.sampled_from([1, 40_000, 100_000, ROOM]),
)
def test_results_never_depend_on_what_is_kept(
    family: str,
    calls: list[list[list[int]]],
    batch_size: int,
    width: int,
    order: str,
    strategy: str,
    budget: int,
) -> None:
    policy, store = policy_of(family), PrefixCache(budget)
    how = {"batch_size": batch_size, "width": width}
    for prompts in calls:
        requests = [
            a_request(prompt, new=3 + n, seed=n, order=order, strategy=strategy) for n, prompt in enumerate(prompts)
        ]
        expected = answers(policy, [again(request) for request in requests], **how)
        for got, other in zip(answers(policy, requests, prefix_cache=store, **how), expected, strict=True):
            assert_same(got, other)
        assert store.size <= budget
        assert all(request.reused_tokens < len(request.prompt_ids) for request in requests)
