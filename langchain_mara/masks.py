"""Attention masks over ragged rows. True, or 0 in the additive form, means: may attend."""

import torch
from torch import Tensor


def visible_keys(key_positions: Tensor, query_positions: Tensor, window: int | None) -> Tensor:
    """Which committed keys each query may see.

    Args:
        key_positions: (batch, keys) int64, -1 where a slot holds nothing committed.
        query_positions: (batch, queries) int64.
        window: Size of a sliding window, the query itself included; None for full attention.

    Returns:
        (batch, queries, keys) bool, True where the key is visible.
    """
    keys, queries = key_positions.unsqueeze(1), query_positions.unsqueeze(2)
    visible = (keys >= 0) & (keys <= queries)
    return visible if window is None else visible & (queries - keys < window)


def attention_mask(visible: Tensor, implementation: str, dtype: torch.dtype) -> Tensor:
    """Puts a (batch, queries, keys) bool mask into the form an attention implementation takes.

    Returns:
        (batch, 1, queries, keys): bool for `sdpa`, additive in `dtype` for `eager`.
    """
    mask = visible.unsqueeze(1)
    if implementation == "sdpa":
        return mask
    zero = torch.zeros((), dtype=dtype, device=mask.device)
    return torch.where(mask, zero, torch.finfo(dtype).min)
