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
    # In place, and no sums of (queries, keys): with a long prompt these are the largest things there are.
    visible = keys <= queries
    visible &= keys >= 0
    if window is not None:
        visible &= keys > queries - window
    return visible


def visible_in_pass(positions: Tensor, depths: Tensor | None, window: int | None) -> Tensor:
    """Which tokens of its own pass each token may see: itself, and a drafted one what it continues.

    Args:
        positions: (batch, tokens) int64, where the tokens stand.
        depths: (batch, tokens) int64: 0 for a sibling, n for the n-th drafted token behind the first sibling of its
            row; None where there are siblings only.
        window: Size of a sliding window, the token itself included; None for full attention.

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
    """Puts a (batch, queries, keys) bool mask into the form an attention implementation takes.

    Returns:
        (batch, 1, queries, keys): bool for `sdpa`, additive in `dtype` for `eager`.
    """
    mask = visible.unsqueeze(1)
    if implementation == "sdpa":
        return mask
    zero = torch.zeros((), dtype=dtype, device=mask.device)
    return torch.where(mask, zero, torch.finfo(dtype).min)
