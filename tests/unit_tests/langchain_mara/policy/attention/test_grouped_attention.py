"""Grouped attention computes what transformers' sdpa does, and copies no keys."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import CONFIGS, tiny_model
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from langchain_mara.policy.attention.grouped_attention import (
    GROUPED,
    attention_implementation,
    grouped_attention,
    use_grouped_attention,
)
from langchain_mara.policy.model import PolicyModel


def tensors(heads: int, key_heads: int, tokens: int, keys: int = 11) -> tuple[Tensor, ...]:
    torch.manual_seed(heads + tokens)
    query = torch.randn(2, tokens, heads, 8, dtype=torch.float64).transpose(1, 2)
    key, value = (torch.randn(2, keys, key_heads, 8, dtype=torch.float64).transpose(1, 2) for _ in range(2))
    mask = torch.rand(2, 1, tokens, keys) < 0.6
    mask[..., 0] = True
    return query, key, value, mask


@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("tokens", [1, 2, 5, 8, 9, 30])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_it_equals_sdpa(heads: int, key_heads: int, tokens: int, scaling: float | None) -> None:
    module: Any = SimpleNamespace(num_key_value_groups=heads // key_heads, is_causal=True)
    query, key, value, mask = tensors(heads, key_heads, tokens)
    expected, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=scaling)
    got, weights = grouped_attention(module, query, key, value, mask, scaling=scaling)
    assert weights is None
    assert got.shape == (2, tokens, heads, 8)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_without_a_mask_it_is_causal_as_sdpa_is() -> None:
    module: Any = SimpleNamespace(num_key_value_groups=2, is_causal=True)
    query, key, value, _ = tensors(4, 2, 5, keys=5)
    expected, _ = sdpa_attention_forward(module, query, key, value, None)
    assert torch.equal(grouped_attention(module, query, key, value, None)[0], expected)


def gqa_model(**changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, **changes,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def test_passes_over_siblings_copy_no_keys(key_shapes: list[torch.Size]) -> None:
    policy = PolicyModel(gqa_model())
    with torch.inference_mode():
        cache = policy.new_cache()
        policy.prefill(cache, 0, [[1, 2, 3]])
        cache.reserve(1, 8)
        key_shapes.clear()
        policy.siblings(cache, torch.tensor([[4, 5, 6]]), [[3, 4, 5]], [3], 6)
    assert [heads for _, heads, _, _ in key_shapes] == [2, 2]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_the_model_is_left_as_it_was(implementation: str) -> None:
    model = gqa_model(attn_implementation=implementation)
    with use_grouped_attention(model, model.config):
        assert model.config._attn_implementation == (GROUPED if implementation == "sdpa" else "eager")
        assert attention_implementation(model.config) == implementation
        # Another thread begins its pass now, and ends it after this one.
        other = use_grouped_attention(model, model.config)
        other.__enter__()
    other.__exit__(None, None, None)
    assert model.config._attn_implementation == implementation


def test_a_model_that_runs_it_by_itself_answers_alike() -> None:
    # What another thread meets that generates while a pass runs.
    model, ids = gqa_model(), torch.tensor([[0, 0, 5, 6, 7], [1, 2, 3, 4, 5]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    expected = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=6, pad_token_id=0)  # type: ignore[operator]
    with use_grouped_attention(model, model.config):
        got = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=6, pad_token_id=0)  # type: ignore[operator]
    assert torch.equal(got, expected)


@pytest.mark.parametrize("family", ["llama-3", "mistral-v0.1", "qwen-3", "granite"])
def test_no_pass_repeats_keys(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = PolicyModel(tiny_model(family))
    monkeypatch.setattr("transformers.integrations.sdpa_attention.repeat_kv", pytest.fail)
    with torch.inference_mode():
        policy.prefill(policy.new_cache(), 0, [[1, 2, 3], [4, 5]])
        policy.prefill(policy.new_cache(), 0, [[1, 2, 3] * 20])


@pytest.mark.parametrize("family", CONFIGS)
def test_the_configuration_says_the_same_afterwards_and_to_who_asks_meanwhile(family: str) -> None:
    model = tiny_model(family)
    before = model.config._attn_implementation
    with use_grouped_attention(model, model.config):
        assert attention_implementation(model.config) == before
    assert model.config._attn_implementation == before
