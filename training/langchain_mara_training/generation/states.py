"""States of whole sequences, from one pass."""

from collections.abc import Sequence

import torch
from torch import Tensor

from langchain_mara.policy.model import PolicyModel


def batch_states(policy: PolicyModel, token_ids: Sequence[Sequence[int]]) -> Tensor:
    """States of every token of some sequences, from one pass.

    Sequences are padded on the right, where causal attention lets no token see the padding; so no mask is needed.

    Returns:
        (sequences, longest, d) in the model's dtype; what stands behind a sequence's end means nothing.
    """
    longest = max(map(len, token_ids))
    padded = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in token_ids]).to(policy.device)
    states: Tensor = policy.backbone(input_ids=padded, use_cache=False).last_hidden_state
    return states
