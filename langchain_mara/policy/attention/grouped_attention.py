"""Grouped-query attention of a few tokens per row, without copying the keys for every query head.

Given a mask and more than one token per row, transformers' `sdpa` repeats keys and values for every query head. Passes
over siblings always have such a mask, so every layer of every pass would copy the whole cache several times over.
Instead, this module treats the query heads of a group as more queries of one head.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from langchain_mara.policy.attention.masks import GROUPED, attention_implementation


def grouped_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Computes what transformers' `sdpa_attention_forward` computes, and calls it where nothing is gained.

    Args:
        module: The attention layer.
        query: (batch, heads, tokens, dimension).
        key: (batch, key heads, keys, dimension).
        value: (batch, key heads, keys, dimension).
        attention_mask: (batch, 1, tokens, keys) bool, True where a token may attend.
        **kwargs: As `sdpa_attention_forward` takes them.

    Returns:
        Attended values (batch, tokens, heads, dimension), and None instead of attention weights.
    """
    groups, tokens = query.shape[1] // key.shape[1], query.shape[2]
    mask, scaling = attention_mask, kwargs.get("scaling")
    biased = kwargs.get("position_bias") is not None
    # `_folded` repeats the mask for every head of a group; with many tokens that would be larger than the keys.
    few_tokens = tokens <= query.shape[-1]
    supported = few_tokens or query.device.type == "cpu"
    if groups == 1 or mask is None or mask.shape[1] != 1 or biased or not supported:
        result: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, mask, **kwargs)
        return result
    output = _folded(query, key, value, mask, scaling) if few_tokens else _shared(query, key, value, mask, scaling)
    return output.transpose(1, 2).contiguous(), None


def _folded(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None) -> Tensor:
    """Treats the heads of a group as more queries of the head whose keys they share."""
    batch, heads, tokens, dimension = query.shape
    groups = heads // key.shape[1]
    folded = query.reshape(batch, key.shape[1], groups * tokens, dimension)
    rows = mask if tokens == 1 else torch.cat((mask,) * groups, dim=2)  # one row holds for all queries as it is
    output = functional.scaled_dot_product_attention(folded, key, value, attn_mask=rows, scale=scaling)
    return output.reshape(batch, heads, tokens, value.shape[-1])


def _shared(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None) -> Tensor:
    """Uses PyTorch's own grouped attention, which takes a mask on the CPU only."""
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling, enable_gqa=True)


AttentionInterface.register(GROUPED, grouped_attention)
AttentionMaskInterface.register(GROUPED, sdpa_mask)


@contextmanager
def use_grouped_attention(model: PreTrainedModel, config: Any, name: str = GROUPED) -> Iterator[None]:
    """Makes a model with `sdpa` attention run `grouped_attention` inside the context; other models are left alone.

    Another thread that runs the model at the same time may use either of the two. They compute the same.

    Args:
        model: The model to run.
        config: The configuration of its decoder.
        name: Registered name of what runs instead, if not `grouped_attention` itself.
    """
    # Transformers has no public way to ask whether layers look up the implementation, or to switch it temporarily.
    if attention_implementation(config) != "sdpa" or not model._can_set_attn_implementation():  # noqa: SLF001
        yield
        return
    config._attn_implementation = name  # noqa: SLF001
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"  # noqa: SLF001
