"""Candidate sets: top-k, then the nucleus of the renormalized top-k, then an order of examination.

Pure tensor functions. The whole vocabulary is never sorted: `topk` first, the nucleus on what it
leaves (docs/algorithm.md, "Decoding one token"; the paper's section 3.2).
"""

import sys
from collections.abc import Sequence
from math import log
from typing import NamedTuple

import torch
from torch import Tensor

from langchain_mara.options import DEFAULTS, Order

# 4 MiB in float32: about what the caches of a processor hold, and enough to keep a GPU busy.
_LOGITS_AT_ONCE = 2**20
LEAST_PROBABILITY = sys.float_info.min
"""What an accept probability of 0 counts as where it is weighed."""


class CandidateSets(NamedTuple):
    """Ordered candidates of several positions. Entries at or beyond `counts` are meaningless.

    Attributes:
        token_ids: (rows, k) int64.
        scores: (rows, k) float32, the logits the candidates were chosen by; in the `sampled` order divided by the
            temperature, with Gumbel noise.
        counts: (rows,) int64, 0 where no logit was finite.
    """

    token_ids: Tensor
    scores: Tensor
    counts: Tensor


def candidate_sets(
    logits: Tensor,
    top_k: int = DEFAULTS.top_k,
    top_p: float | Tensor = DEFAULTS.top_p,
    sizes: Tensor | None = None,
) -> CandidateSets:
    """Cuts logits down to candidate sets, most probable first.

    A token stays while the renormalized top-k mass before it is below `top_p`; the first always
    stays. Non-finite logits are never candidates.

    Args:
        logits: (rows, vocabulary), any float dtype. NaN and infinity may be replaced by minus infinity in place.
        top_k: Upper limit of a set's size, at least 1.
        top_p: Nucleus mass in (0, 1], or (rows, 1) of each row.
        sizes: (rows, 1) upper limits of each row's set, of which `top_k` is the largest; by default all have `top_k`.

    Returns:
        Sets with k = min(top_k, vocabulary).
    """
    scores, token_ids = _largest(logits, min(top_k, logits.shape[-1]))
    scores = scores.float()
    if sizes is not None:
        scores = scores.masked_fill(torch.arange(scores.shape[-1], device=scores.device) >= sizes, -torch.inf)
    probabilities = scores.softmax(-1)
    mass_before = probabilities.cumsum(-1).sub_(probabilities)
    # No mass is before the first one. If that is not finite, all masses are NaN.
    keep = (mass_before < top_p).logical_and_(scores > -torch.inf)
    return CandidateSets(token_ids, scores, keep.sum(-1))


def _largest(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest finite logits of each row and their token ids; minus infinity fills up the rest."""
    # NaN and infinity come first among the largest, so the first entry of a row tells. Looking costs a synchronization
    # on CUDA, where replacing them without looking costs a few microseconds.
    if logits.device.type == "cpu":
        scores, token_ids = logits.topk(k, dim=-1)
        if all(score < torch.inf for score in scores[:, 0].tolist()):
            return scores, token_ids
    scores, token_ids = logits.nan_to_num_(-torch.inf, -torch.inf, -torch.inf).topk(k, dim=-1)
    return scores, token_ids


def log_probabilities(logits: Tensor, token_ids: Tensor) -> Tensor:
    """Log-probabilities of tokens over the whole vocabulary, computed for a few rows at a time.

    Args:
        logits: (rows, vocabulary), any float dtype.
        token_ids: (rows, k) int64.

    Returns:
        (rows, k) float32.
    """
    rows = max(1, _LOGITS_AT_ONCE // logits.shape[-1])
    chunks = zip(logits.split(rows), token_ids.split(rows), strict=True)
    return torch.cat([chunk.float().log_softmax(-1).gather(1, ids) for chunk, ids in chunks])


def order_candidates(
    sets: CandidateSets, order: Order, temperature: float = 1.0, noise: Tensor | None = None
) -> CandidateSets:
    """Puts descending candidate sets into the order in which the agent is asked.

    Args:
        sets: As `candidate_sets` returns them.
        order: `descending`; `reversed`; `top-1-last` (the most probable moved to the end);
            `sampled`: drawn without replacement at `temperature`, so that the first accepted
            candidate is a sample of the policy model's distribution over accepted candidates.
        temperature: Temperature of the `sampled` order; 0 leaves the sets descending.
        noise: (rows, k) standard Gumbel noise, required by the `sampled` order only.

    Returns:
        The same sets, reordered.
    """
    if order == "descending" or (order == "sampled" and temperature == 0):
        return sets
    scores = sets.scores
    index = torch.arange(scores.shape[-1], device=scores.device).expand_as(scores)
    count = sets.counts.clamp(min=1).unsqueeze(-1)
    if order == "reversed":
        index = (count - 1 - index) % count
    elif order == "top-1-last":
        index = (index + 1) % count
    else:
        if noise is None:
            raise ValueError("The order 'sampled' needs Gumbel noise of the shape of the scores.")
        # Gumbel-top-k: sorting perturbed log-probabilities draws without replacement.
        scores = (scores / temperature + noise).masked_fill(index >= count, -torch.inf)
        index = scores.argsort(dim=-1, descending=True)
    return CandidateSets(sets.token_ids.gather(-1, index), scores.gather(-1, index), sets.counts)


def best_weighed(scores: Sequence[float], accept_probabilities: Sequence[float], strength: float) -> int:
    """Index of the candidate with the largest p^(1-s) a^s; Gumbel noise in the scores makes it a draw.

    Args:
        scores: Scores of the candidates; see `CandidateSets`.
        accept_probabilities: What the agent says of each.
        strength: Weight s of the agent, in [0, 1].
    """
    weighed = [
        (1 - strength) * score + strength * log(max(probability, LEAST_PROBABILITY))
        for score, probability in zip(scores, accept_probabilities, strict=True)
    ]
    return max(range(len(weighed)), key=weighed.__getitem__)
