"""Grouped-query attention that reads keys and values where they lie.

Heads of a group share their keys and values. Under a mask transformers repeats these for every head, in every layer
and pass: with a long cache that takes more time and memory than the attention itself.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from langchain_mara.families import GROUPED, attention_implementation

_NAME = f"sdpa{GROUPED}"


def grouped_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Does what transformers' `sdpa` does, without copies of keys and values where there is a way.

    Args:
        module: The attention layer.
        query: (batch, heads, queries, dimension).
        key: (batch, key heads, keys, dimension).
        value: As the keys.
        attention_mask: (batch, 1, queries, keys), bool.
        kwargs: What the layer tells of scaling, dropout and so on.

    Returns:
        (batch, queries, heads, dimension), and no attention weights.
    """
    groups = query.shape[1] // key.shape[1]
    on_cpu = query.device.type == "cpu"
    # Kernels for CUDA take no mask with groups; a mask for every head of a group must not be larger than the copies.
    foldable = query.shape[2] <= key.shape[1] * key.shape[3]
    if attention_mask is None or groups == 1 or not (on_cpu or foldable):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    attend = _grouped if on_cpu else _folded
    return attend(query, key, value, attention_mask, kwargs.get("scaling")).transpose(1, 2).contiguous(), None


def _grouped(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float | None) -> Tensor:
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=True)


def _folded(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float | None) -> Tensor:
    """The heads of a group as further queries of the head whose keys they share."""
    batch, heads, queries, dimension = query.shape
    groups = heads // key.shape[1]
    folded = query.reshape(batch, key.shape[1], groups * queries, dimension)
    mask = mask.repeat(1, 1, groups, 1)
    output = scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scale)
    return output.reshape(batch, heads, queries, value.shape[3])


@contextmanager
def reading_in_place(model: PreTrainedModel, config: Any) -> Iterator[None]:
    """Lets a model's attention layers run `grouped_attention` where they run `sdpa` and its heads form groups.

    Args:
        model: The model.
        config: Of its decoder.
    """
    grouped = getattr(config, "num_key_value_heads", None) not in (None, config.num_attention_heads)
    # Transformers has no public way to tell whether layers look the implementation up, nor to choose it for a moment.
    if not grouped or attention_implementation(config) != "sdpa" or not model._can_set_attn_implementation():  # noqa: SLF001
        yield
        return
    config._attn_implementation = _NAME  # noqa: SLF001
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"  # noqa: SLF001


# Whoever runs the model from another thread meanwhile gets the same masks as ever.
AttentionInterface.register(_NAME, grouped_attention)
AttentionMaskInterface.register(_NAME, sdpa_mask)
