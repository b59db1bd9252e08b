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
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
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
    groups, tokens = query.shape[1] // key.shape[1], query.shape[2]
    mask, scaling = attention_mask, kwargs.get("scaling")
    biased = kwargs.get("position_bias") is not None
    # A mask of many tokens, once for every head of a group, would be larger than the keys.
    few = tokens <= query.shape[-1]
    able = few or query.device.type == "cpu"
    if groups == 1 or mask is None or mask.shape[1] != 1 or biased or not able:
        result: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, mask, **kwargs)
        return result
    output = _folded(query, key, value, mask, scaling) if few else _shared(query, key, value, mask, scaling)
    return output.transpose(1, 2).contiguous(), None


def _folded(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None) -> Tensor:
    """The heads of a group as further queries of the head whose keys they share."""
    batch, heads, tokens, dimension = query.shape
    groups = heads // key.shape[1]
    folded = query.reshape(batch, key.shape[1], groups * tokens, dimension)
    output = functional.scaled_dot_product_attention(
        folded, key, value, attn_mask=mask.repeat(1, 1, groups, 1), scale=scaling
    )
    return output.reshape(batch, heads, tokens, value.shape[-1])


def _shared(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None) -> Tensor:
    """PyTorch's own way, which only the CPU's kernel has together with a mask."""
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling, enable_gqa=True)


AttentionInterface.register(GROUPED, grouped_attention)
AttentionMaskInterface.register(GROUPED, sdpa_mask)


@contextmanager
def grouped(model: PreTrainedModel, config: Any) -> Iterator[None]:
    """Has a model of `sdpa` attention run `grouped_attention` instead; others are left alone.

    Another thread that runs the model meanwhile may meet either of the two, which compute the same.

    Args:
        model: The model.
        config: Of its decoder.
    """
    # Transformers has no public way to tell whether layers look the implementation up, nor to choose it for a moment.
    if attention_implementation(config) != "sdpa" or not model._can_set_attn_implementation():  # noqa: SLF001
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
