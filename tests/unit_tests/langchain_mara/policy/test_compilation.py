"""Compiled passes change nothing but speed, and few shapes of them exist."""

import shutil
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from families import repeating_model, tiny_agent, tiny_model
from functorch.compile import make_boxed_func
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from langchain_mara import MaraLLM
from langchain_mara.decoding.loop import decode
from langchain_mara.decoding.request import Request
from langchain_mara.options import DecodingOptions
from langchain_mara.policy import cache
from langchain_mara.policy import model as policy_room
from langchain_mara.policy.compilation import SiblingTokens, padded, run_compiled
from langchain_mara.policy.model import PolicyModel
from langchain_mara.policy.packed_linear import is_packed
from langchain_mara.policy.prefix_cache import PrefixCache

PROMPTS = [[44, 3, 44, 3, 44], [5, 6, 7], list(range(2, 30)), [9] * 12, [3]]
AGENTS = [tiny_agent(bias=2.0), tiny_agent(bias=0.0), None, tiny_agent(seed=2, bias=-1.0), None]


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What decides a graph, of every compiled pass."""
    seen: list[Any] = []

    def watched(backbone: Any, inputs: Any, slots: Tensor, window: Any, backend: Any) -> Tensor | None:
        seen.append((slots.shape, window[0][0].shape, window[0][0].stride()))
        states = run_compiled(backbone, inputs, slots, window, backend)
        assert states is not None
        assert states.isfinite().all()  # of padding, too
        return states

    monkeypatch.setattr(policy_room, "run_compiled", watched)
    return seen


def answers(policy: PolicyModel, new_tokens: int = 5, batch_size: int = 3, **how: Any) -> list[list[Any]]:
    """Decisions of prompts of unequal length that enter and leave a batch."""
    requests = [
        Request(prompt, DecodingOptions.parse(top_k=12, max_new_tokens=new_tokens + i), agent)
        for i, (prompt, agent) in enumerate(zip(PROMPTS, AGENTS, strict=True))
    ]
    facts: dict[Request, list[Any]] = {request: [] for request in requests}
    for step in decode(policy, requests, batch_size=batch_size, **{"width": 3, **how}):
        facts[step.request].append((step.token_id, step.candidates, step.index, step.accepted, step.finish_reason))
    return list(facts.values())


def compiled(model: Any, backend: Any = None) -> tuple[PolicyModel, CompileCounterWithBackend]:
    counter = CompileCounterWithBackend("eager")
    return PolicyModel(model, compile=True, _backend=backend or counter), counter


@pytest.mark.slow
@pytest.mark.parametrize("family", ["mistral-v0.1", "gemma-2", "gpt-2"])
def test_decisions_are_those_of_eager_passes(family: str, shapes: list[Any]) -> None:
    model = repeating_model(family)
    policy, counter = compiled(model)
    got, expected = (answers(way, draft=3, prefix_cache=PrefixCache(2**20)) for way in (policy, PolicyModel(model)))
    assert got == expected
    assert counter.frame_count == len(set(shapes)) < len(shapes)


@pytest.mark.slow
def test_nothing_is_compiled_twice(shapes: list[Any]) -> None:
    policy, counter = compiled(tiny_model("llama-3"))
    answers(policy)
    graphs, passes = counter.frame_count, len(shapes)
    assert graphs == len(set(shapes))
    answers(PolicyModel(policy.model, compile=True, _backend=counter), batch_size=4)
    assert len(shapes) > passes
    assert counter.frame_count == len(set(shapes))
    assert counter.frame_count <= graphs + 1


@pytest.mark.slow
def test_the_cache_outgrows_its_bucket(shapes: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "SMALLEST_BUCKET", 8)
    model = tiny_model("llama-3")
    policy, counter = compiled(model)
    how = {"new_tokens": 16, "batch_size": 1, "width": 2}
    assert answers(policy, **how) == answers(PolicyModel(model), **how)
    assert {shape[1] for _, shape, _ in shapes} >= {16, 32, 64}
    assert counter.frame_count == len(set(shapes)) <= 12


def test_what_padding_rows_hold_is_never_seen() -> None:
    model = tiny_model("llama-3")
    expected, got = (states_of(policy) for policy in (PolicyModel(model), compiled(model)[0]))
    torch.testing.assert_close(got, expected)
    assert got.shape == (3, 3, 32)


@torch.inference_mode()
def states_of(policy: PolicyModel) -> Tensor:
    rows = policy.new_cache()
    policy.prefill(rows, 0, [[1, 2, 3], [4, 5, 6, 7, 8], [9], [10, 11]])
    rows.clear_row(3)
    for layer in rows.layers:
        layer.keys[3] = layer.values[3] = 1e30
    rows.reserve(3, 8)
    return policy.siblings(rows, torch.arange(9).view(3, 3), [[5, 6, 7]] * 3, [3, 5, 1], span=8)


@given(st.integers(1, 9), st.integers(1, 20), st.integers(0, 300), st.booleans())
def test_padding_writes_where_nothing_is(rows: int, width: int, used: int, drafting: bool) -> None:
    shape = (rows, width)
    slots = used + torch.arange(width).expand(shape)
    depths = torch.ones(shape, dtype=torch.long) if drafting else None
    tokens = SiblingTokens(torch.full(shape, 7), slots, torch.full((rows,), 3), used + width, depths)
    got = padded(tokens)
    more_rows, more = got.slots.shape
    assert rows <= more_rows < 2 * rows
    assert width <= more < 2 * width
    assert more_rows & (more_rows - 1) == more & (more - 1) == 0
    assert got.token_ids.shape == got.slots.shape
    assert got.positions.shape == (more_rows,)
    assert (got.token_ids[:rows, :width] == 7).all()
    assert (got.slots[:rows, :width] == slots).all()
    assert (got.slots[:rows, width:] >= tokens.span).all()
    assert all(len(set(line)) == more and max(line) < got.span for line in got.slots.tolist())
    assert (got.depths is None) is not drafting
    if got.depths is not None:
        assert got.depths.sum() == rows * width


@pytest.mark.slow
def test_only_what_is_new_in_a_pass_is_copied_into_a_recorded_graph() -> None:
    copied: list[Any] = []

    def watched(graph: Any, inputs: Any) -> Any:
        context = torch._guards.TracingContext.get().fw_metadata
        assert set(context.mutated_inp_runtime_indices) <= set(context.static_input_indices)
        copied.append([tuple(tensor.shape) for i, tensor in enumerate(inputs) if i not in context.static_input_indices])
        return make_boxed_func(graph.forward)

    policy, _ = compiled(tiny_model("gemma-2"), aot_autograd(fw_compiler=watched, inference_compiler=watched))
    answers(policy, batch_size=1, width=1, new_tokens=1)
    tokens, masks = (1, 1), (1, 1, 1, 128)
    assert sorted(copied[0]) == sorted([tokens, tokens, tokens, masks, masks])


def test_there_are_few_buckets() -> None:
    sizes = {cache.slot_bucket(slots) for slots in range(1, 32769)}
    assert sizes == {128, 256, 512, 1024, 2048, *range(4096, 32769, 4096)}


def test_a_window_moves_only_with_the_stores() -> None:
    policy, _ = compiled(tiny_model("llama-3"))
    rows = policy.new_cache()
    policy.prefill(rows, 0, [[1, 2, 3]])
    (keys, _), *_ = map(tuple, rows.window(1, 128))
    assert keys.data_ptr() == rows.layers[0].keys.data_ptr()
    rows.reserve(1, 100)
    assert rows.window(1, 128)[0][0] is keys
    rows.reserve(2, 129)
    grown = rows.window(1, 128)[0][0]
    assert grown is not keys
    assert torch.equal(grown[0, :3], keys[0, :3])
    outgrown = weakref.ref(keys)
    del keys
    assert outgrown() is None


def test_a_model_that_cannot_be_compiled_runs_as_it_is() -> None:
    def broken(*_: Any) -> Any:
        raise ValueError("no working compiler")

    model = tiny_model("llama-3")
    policy, _ = compiled(model, broken)
    with pytest.warns(RuntimeWarning, match=r"cannot be compiled \(.*no working compiler.*Set compile=False"):
        got = answers(policy)
    assert got == answers(PolicyModel(model))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answers(policy)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_through_the_front_door_by_inductor() -> None:
    counters.clear()
    how: dict[str, Any] = {"agent": None, "max_new_tokens": 3, "device": "cpu"}
    expected = MaraLLM.demo(**how).invoke("How do I boil an egg?")
    assert counters["stats"]["unique_graphs"] == 0
    assert MaraLLM.demo(**how, compile=True).invoke("How do I boil an egg?") == expected
    assert counters["stats"]["unique_graphs"] == 1


def test_packed_layers_are_not_compiled_and_a_warning_says_so() -> None:
    llm = MaraLLM.demo(device="cpu", max_new_tokens=3)
    if not is_packed(llm.model):
        pytest.skip("This build of PyTorch, or this processor, cannot pack weights.")
    counters.clear()
    with pytest.warns(RuntimeWarning, match=r"Packed linear layers cannot be compiled.*packed=False"):
        answer = llm.invoke("How do I boil an egg?", compile=True)
    assert answer == llm.invoke("How do I boil an egg?")
    assert counters["stats"]["unique_graphs"] == 0
