"""Prompts that share a pass are attended to one by one, as a mask between them would have it."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import CONFIGS, tiny_model
from torch import Tensor

from langchain_mara.policy.attention.grouped_attention import grouped_attention
from langchain_mara.policy.attention.prompt_by_prompt import keep_prompts_apart, prompt_by_prompt
from langchain_mara.policy.model import PolicyModel

LENGTHS = [3, 1, 30, 7]


def packed(heads: int, key_heads: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(heads)
    tokens = sum(LENGTHS)
    query, key, value = (torch.randn(1, size, tokens, 8, dtype=torch.float64) for size in (heads, key_heads, key_heads))
    prompt = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    mask = (prompt[:, None] == prompt) & torch.ones(tokens, tokens).tril().bool()
    return query, key, value, mask[None, None]


@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (4, 2)])
def test_it_equals_attention_with_a_mask_between_prompts(heads: int, key_heads: int) -> None:
    module: Any = SimpleNamespace(num_key_value_groups=heads // key_heads, is_causal=True)
    query, key, value, mask = packed(heads, key_heads)
    expected, _ = grouped_attention(module, query, key, value, mask, scaling=0.3)
    with keep_prompts_apart(tiny_model("llama-3"), tiny_model("llama-3").config, LENGTHS):
        got, weights = prompt_by_prompt(module, query, key, value, mask, scaling=0.3)
    assert weights is None
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_without_lengths_a_mask_decides() -> None:
    module: Any = SimpleNamespace(num_key_value_groups=2, is_causal=True)
    query, key, value, mask = packed(4, 2)
    expected, _ = grouped_attention(module, query, key, value, mask)
    assert torch.equal(prompt_by_prompt(module, query, key, value, mask)[0], expected)


@pytest.mark.parametrize("family", CONFIGS)
def test_prompts_together_have_the_states_of_prompts_alone(family: str) -> None:
    policy = PolicyModel(tiny_model(family))
    prompts = [[5, 6, 7], [8], [9, 3] * 9, [4, 4, 4, 4]]
    with torch.inference_mode():
        together = policy.prefill(policy.new_cache(), 0, prompts)
        alone = torch.cat([policy.prefill(policy.new_cache(), 0, [prompt]) for prompt in prompts])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_no_prompt_is_multiplied_with_another_on_a_cpu(key_shapes: list[torch.Size]) -> None:
    policy = PolicyModel(tiny_model("llama-3"))
    with torch.inference_mode():
        policy.prefill(policy.new_cache(), 0, [[5] * length for length in LENGTHS])
    assert [keys for _, _, keys, _ in key_shapes] == LENGTHS * policy.config.num_hidden_layers
