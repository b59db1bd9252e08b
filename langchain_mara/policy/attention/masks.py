"""Attention masks over rows of different lengths. True, or 0 in the additive form, means: may attend."""

from typing import Any

import torch
from torch import Tensor

GROUPED = "mara_grouped_sdpa"
"""Name of `grouped_attention` in transformers' registry of attention implementations."""
PROMPT_BY_PROMPT = "mara_prompt_by_prompt_sdpa"
"""Name of `prompt_by_prompt` there."""


def attention_implementation(config: Any) -> str:
    """Name of the attention that a model's layers run, such as `sdpa` or `eager`.

    `grouped_attention` and `prompt_by_prompt` compute the same as `sdpa` and count as `sdpa`.

    Args:
        config: The configuration of the model's decoder.
    """
    # Transformers keeps the name in a private attribute only.
    name = str(config._attn_implementation)  # noqa: SLF001
    return "sdpa" if name in (GROUPED, PROMPT_BY_PROMPT) else name


def visible_keys(key_positions: Tensor, query_positions: Tensor, window: int | None) -> Tensor:
    """Which committed keys each query may see.

    Args:
        key_positions: (batch, keys) int64, -1 where a slot holds nothing committed.
        query_positions: (batch, queries) int64.
        window: Size of the sliding window, counting the query itself; None for full attention.

    Returns:
        (batch, queries, keys) bool, True where the key is visible.
    """
    keys, queries = key_positions.unsqueeze(1), query_positions.unsqueeze(2)
    # Compared in place and without sums: with a long prompt, (queries, keys) tensors are the largest of a pass.
    visible = keys <= queries
    visible &= keys >= 0
    if window is not None:
        visible &= keys > queries - window
    return visible


def visible_in_pass(positions: Tensor, depths: Tensor | None, window: int | None) -> Tensor:
    """Which tokens of the same pass each token may see: itself, and for a drafted token also those it continues.

    Args:
        positions: (batch, tokens) int64, position of each token.
        depths: (batch, tokens) int64, 0 for a sibling and n for the n-th drafted token after the first sibling of its
            row; None if all tokens are siblings.
        window: Size of the sliding window, counting the token itself; None for full attention.

    Returns:
        (batch, tokens, tokens) bool, True where the second token is visible to the first.
    """
    tokens = positions.shape[1]
    itself = torch.eye(tokens, dtype=torch.bool, device=positions.device).expand(len(positions), -1, -1)
    if depths is None:
        return itself
    first = torch.arange(tokens, device=depths.device) == 0
    continued = (first | (depths > 0)).unsqueeze(1) & (depths.unsqueeze(1) < depths.unsqueeze(2))
    if window is not None:
        continued &= positions.unsqueeze(2) - positions.unsqueeze(1) < window
    return itself | continued


def attention_mask(visible: Tensor, implementation: str, dtype: torch.dtype) -> Tensor:
    """Converts a (batch, queries, keys) bool mask to what an attention implementation takes.

    Returns:
        (batch, 1, queries, keys): bool for `sdpa`, additive in `dtype` for `eager`.
    """
    mask = visible.unsqueeze(1)
    if implementation == "sdpa":
        return mask
    zero = torch.zeros((), dtype=dtype, device=mask.device)
    return torch.where(mask, zero, torch.finfo(dtype).min)
