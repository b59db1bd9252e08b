"""Attention of several prompts that stand in one row without padding, one prompt after the other.

A mask that keeps the prompts apart would do, but on a CPU every product it hides is computed: for 1,024 tokens of 16
prompts 16 times as many as are needed.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from langchain_mara.policy.attention.grouped_attention import grouped_attention, use_grouped_attention
from langchain_mara.policy.attention.masks import GROUPED, PROMPT_BY_PROMPT

_lengths: ContextVar[Sequence[int]] = ContextVar("lengths of the prompts of a pass", default=())


@contextmanager
def keep_prompts_apart(model: PreTrainedModel, config: Any, lengths: Sequence[int]) -> Iterator[None]:
    """Makes a model with `sdpa` attention run `prompt_by_prompt` inside the context; other models are left alone.

    Args:
        model: The model to run.
        config: The configuration of its decoder.
        lengths: Number of tokens of each prompt in the row. Without any, it runs `grouped_attention`.
    """
    token = _lengths.set(lengths)
    try:
        with use_grouped_attention(model, config, PROMPT_BY_PROMPT if lengths else GROUPED):
            yield
    finally:
        _lengths.reset(token)


def prompt_by_prompt(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Computes what `grouped_attention` computes with a mask that hides all prompts from each other.

    Args:
        module: The attention layer.
        query: (1, heads, tokens, dimension), the tokens of all prompts one after the other.
        key: (1, key heads, tokens, dimension).
        value: (1, key heads, tokens, dimension).
        attention_mask: (1, 1, tokens, tokens) bool, True where a token may attend.
        **kwargs: As `grouped_attention` takes them.

    Returns:
        Attended values (1, tokens, heads, dimension), and None instead of attention weights.
    """
    lengths, biased = list(_lengths.get()), kwargs.get("position_bias") is not None
    # On an accelerator one masked product is faster than several small ones.
    if not lengths or attention_mask is None or biased or query.device.type != "cpu":
        return grouped_attention(module, query, key, value, attention_mask, **kwargs)
    queries, keys, values, rows = (tensor.split(lengths, dim=2) for tensor in (query, key, value, attention_mask))
    starts = accumulate(lengths[:-1], initial=0)
    blocks = [row.narrow(3, start, length) for row, start, length in zip(rows, starts, lengths, strict=True)]
    attended = [
        grouped_attention(module, *parts, **kwargs)[0] for parts in zip(queries, keys, values, blocks, strict=True)
    ]
    return torch.cat(attended, dim=1), None


AttentionInterface.register(PROMPT_BY_PROMPT, prompt_by_prompt)
AttentionMaskInterface.register(PROMPT_BY_PROMPT, sdpa_mask)
