"""States of whole sequences, computed in one pass."""

from collections.abc import Sequence

import torch
from torch import Tensor

from langchain_mara.policy.model import PolicyModel


def batch_states(policy: PolicyModel, token_ids: Sequence[Sequence[int]]) -> Tensor:
    """States of every token of several sequences, computed in one pass.

    Sequences are padded on the right. Causal attention keeps every token from seeing the padding, so no mask is needed.

    Args:
        policy: Policy model.
        token_ids: Token ids of each sequence.

    Returns:
        (sequences, longest, d) states in the model's dtype; those past the end of a sequence are meaningless.
    """
    longest = max(map(len, token_ids))
    padded = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in token_ids]).to(policy.device)
    with policy.loaded.evaluation_mode():
        states: Tensor = policy.backbone(input_ids=padded, use_cache=False).last_hidden_state
    return states
