"""Grouped-query attention without copies: the same numbers as transformers', and a trace of it nowhere."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from families import CONFIGS, tiny_model
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from langchain_mara.attention import _folded, _grouped, grouped_attention, reading_in_place
from langchain_mara.families import attention_implementation
from langchain_mara.policy import PolicyModel


def tensors(queries: int, keys: int, groups: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Query, key, value and mask of two rows with two key heads; the keys lie as in the cache."""
    generator = torch.Generator().manual_seed(queries + keys)
    query = torch.randn(2, 2 * groups, queries, 8, generator=generator, dtype=torch.float64)
    key, value = torch.randn(2, 2, keys, 2, 8, generator=generator, dtype=torch.float64).transpose(2, 3)
    mask = torch.rand(2, 1, queries, keys, generator=generator) > 0.5
    mask[..., 0] = True
    return query, key, value, mask


@pytest.mark.parametrize("attend", [_grouped, _folded])
@pytest.mark.parametrize(("queries", "keys"), [(1, 7), (4, 33), (40, 50)])
@pytest.mark.parametrize("groups", [1, 3])
@torch.inference_mode()
def test_equals_attention_over_repeated_keys(
    attend: Callable[..., Tensor], queries: int, keys: int, groups: int
) -> None:
    query, key, value, mask = tensors(queries, keys, groups)
    layer = SimpleNamespace(num_key_value_groups=groups)
    expected, _ = sdpa_attention_forward(layer, query, key, value, mask, scaling=0.3)  # type: ignore[arg-type]
    assert torch.allclose(attend(query, key, value, mask, 0.3).transpose(1, 2), expected, atol=1e-12)
    got, weights = grouped_attention(layer, query, key, value, mask, scaling=0.3)  # type: ignore[arg-type]
    assert torch.allclose(got, expected, atol=1e-12)
    assert weights is None


def test_causal_attention_is_left_to_transformers_and_gradients_flow() -> None:
    query, key, value, mask = tensors(5, 5, 3)
    layer = SimpleNamespace(num_key_value_groups=3)
    causal = torch.ones(5, 5, dtype=torch.bool).tril().expand(2, 1, 5, 5)
    expected, _ = grouped_attention(layer, query, key, value, causal)  # type: ignore[arg-type]
    got, _ = grouped_attention(layer, query, key, value, None)  # type: ignore[arg-type]
    assert torch.allclose(got, expected, atol=1e-12)
    key.requires_grad_()
    grouped_attention(layer, query, key, value, mask)[0].sum().backward()  # type: ignore[arg-type]
    assert key.grad is not None


@pytest.mark.parametrize("family", ["llama-3", "mistral-v0.1", "qwen-3", "granite"])
def test_no_pass_repeats_keys(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = PolicyModel(tiny_model(family))
    monkeypatch.setattr("transformers.integrations.sdpa_attention.repeat_kv", pytest.fail)
    with torch.inference_mode():
        policy.prefill(policy.new_cache(), 0, [[1, 2, 3], [4, 5]])
    assert attention_implementation(policy.config) == policy.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("family", CONFIGS)
def test_the_configuration_says_the_same_afterwards_and_to_who_asks_meanwhile(family: str) -> None:
    model = tiny_model(family)
    before = model.config._attn_implementation
    with reading_in_place(model, model.config):
        assert attention_implementation(model.config) == before
    assert model.config._attn_implementation == before


def test_a_pass_that_fails_leaves_the_configuration_as_it_was() -> None:
    model = tiny_model("llama-3")
    with pytest.raises(KeyError), reading_in_place(model, model.config):
        raise KeyError
    assert model.config._attn_implementation == "sdpa"
