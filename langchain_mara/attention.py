"""Attention of a few tokens per row over keys that several query heads share, without copying the keys.

With grouped queries, transformers' `sdpa` repeats keys and values for every query head as soon as a mask comes with
more than one token per row, and siblings always bring one: the whole cache is copied, several times over, in every
layer of every pass. The query heads of a group can as well be further queries of one head.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

GROUPED = "mara_grouped_sdpa"
"""Name in transformers' registry of attention implementations; it does what `sdpa` does wherever it need not differ."""


def grouped_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """As transformers' `sdpa_attention_forward`.

    Args:
        module: The attention layer.
        query: (batch, heads, tokens, dimension).
        key: (batch, key heads, keys, dimension).
        value: (batch, key heads, keys, dimension).
        attention_mask: (batch, 1, tokens, keys) bool, True where a token may attend.
        **kwargs: As `sdpa_attention_forward` takes them.

    Returns:
        (batch, tokens, heads, dimension), and None in place of the weights.
    """
    heads, key_heads, tokens = query.shape[1], key.shape[1], query.shape[2]
    mask = attention_mask
    # A mask of many tokens, once for every head of a group, would be larger than the keys.
    many = tokens > query.shape[-1]
    biased = kwargs.get("position_bias") is not None
    if heads == key_heads or tokens == 1 or many or biased or mask is None or mask.shape[1] != 1:
        result: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, mask, **kwargs)
        return result
    groups = heads // key_heads
    output = functional.scaled_dot_product_attention(
        query.reshape(len(query), key_heads, groups * tokens, -1),
        key,
        value,
        attn_mask=mask.repeat(1, 1, groups, 1),
        dropout_p=kwargs.get("dropout", 0.0),
        scale=kwargs.get("scaling"),
    )
    return output.reshape(len(output), heads, tokens, -1).transpose(1, 2).contiguous(), None


AttentionInterface.register(GROUPED, grouped_attention)
AttentionMaskInterface.register(GROUPED, sdpa_mask)


@contextmanager
def grouped(config: Any) -> Iterator[None]:
    """Has a model of `sdpa` attention run `grouped_attention` instead; others are left alone.

    Another thread that runs the model meanwhile may meet either of the two, which compute the same.

    Args:
        config: The model's configuration.
    """
    if attention_implementation(config) != "sdpa":
        yield
        return
    config._attn_implementation = GROUPED  # noqa: SLF001
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"  # noqa: SLF001


def attention_implementation(config: Any) -> str:
    """`sdpa`, `eager`, …: what the layers run; transformers keeps it under a private name."""
    name = str(config._attn_implementation)  # noqa: SLF001
    return "sdpa" if name == GROUPED else name
