"""States of whole sequences, computed in one pass, and what look-ahead agents read of them."""

from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor

from langchain_mara.agents.base import Judges
from langchain_mara.agents.look_ahead import NUMBERS, look_ahead_features
from langchain_mara.decoding.judging.before import Outlook
from langchain_mara.decoding.request import Decision
from langchain_mara.exceptions import OptionsError
from langchain_mara.policy.architectures import output_embeddings
from langchain_mara.policy.contract import Policy

_LOGITS_AT_ONCE = 1024


def check_judges(judges: str) -> None:
    """Refuses what is not one of `Judges`.

    Raises:
        OptionsError: If it is not.
    """
    if judges not in get_args(Judges):
        raise OptionsError(f"judges must be one of {get_args(Judges)}, not {judges!r}.")


def batch_states(policy: Policy, token_ids: Sequence[Sequence[int]]) -> Tensor:
    """States of every token of several sequences.

    Args:
        policy: Policy model.
        token_ids: Token ids of each sequence.

    Returns:
        (sequences, longest, d) states in the model's dtype; those past the end of a sequence are meaningless.
    """
    return policy.states(token_ids)


def columns_of(judges: Judges, hidden_size: int) -> int:
    """Number of columns that an agent reads which judges candidates before or after they go through the model."""
    return hidden_size if judges == "after" else 2 * hidden_size + NUMBERS


def features_before(policy: Policy, states: Tensor, token_ids: Tensor) -> Tensor:
    """What a look-ahead agent reads of candidates.

    Args:
        policy: Policy model.
        states: (n, d) states at hand.
        token_ids: (n, k) int64 candidates of each.

    Returns:
        (n, k, 2 d + 2) `look_ahead_features` in the states' dtype, on their device.
    """
    embeddings = output_embeddings(policy.model)
    parts = []
    for chunk, ids in zip(states.split(_LOGITS_AT_ONCE), token_ids.split(_LOGITS_AT_ONCE), strict=True):
        rows = torch.arange(len(chunk), device=chunk.device).repeat_interleave(ids.shape[1])
        tokens, outlook = ids.to(chunk.device).flatten(), Outlook.of(chunk, policy.logits(chunk).to(chunk.device))
        logs, rows_read = outlook.log_probabilities(rows, tokens), embeddings[tokens.to(embeddings.device)]
        features = look_ahead_features(chunk[rows], rows_read.to(chunk.device), logs, outlook.entropies[rows])
        parts.append(features.view(*ids.shape, -1))
    return torch.cat(parts)


def candidate_features(decision: Decision, count: int, embeddings: Tensor) -> Tensor:
    """What a look-ahead agent reads of the first candidates of a position.

    Args:
        decision: Decision with its states, see `Request.keep_states`.
        count: Number k of candidates.
        embeddings: (vocabulary, d) output embeddings of the policy model.

    Returns:
        (k, 2 d + 2) `look_ahead_features` in the states' dtype, on their device.
    """
    at_hand = decision.candidate_states.at_hand  # type: ignore[union-attr]
    tokens = torch.tensor(decision.candidates[:count], device=embeddings.device)
    return look_ahead_features(
        at_hand.state.expand(count, -1),
        embeddings[tokens].to(at_hand.state.device),
        at_hand.log_probabilities[:count],
        at_hand.entropy.expand(count),
    )
