"""The rule for rows of logits that somebody else's loop draws from: all rows at once, each with options of its own.

Engines such as vLLM keep their own loop and give only logits and states. Here, what may not be emitted becomes minus
infinity. Where a row is greedy, the chosen candidate stands alone. Where it is drawn from, the accepted candidates keep
their logits: a draw among them has the distribution of the first accepted candidate of the `sampled` order, in which
candidates are drawn without replacement (docs/algorithm.md). Nothing waits for the device.
"""

from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from langchain_mara.decoding.candidates import LEAST_PROBABILITY, candidate_sets
from langchain_mara.decoding.judging.before import Outlook, ask_before
from langchain_mara.gates.kinds import EntropyGate
from langchain_mara.options import DecodingOptions, Strategy

ROW_STRATEGIES: tuple[Strategy, ...] = ("first-accept", "max-prob", "guided")
"""Strategies that rows know. The other ones draw, which is the engine's part."""
_FIRST, _BEST, _GUIDED = range(len(ROW_STRATEGIES))
_LEAST_WEIGHT = 1e-9  # of the model in drawn rows: enough for a draw between candidates that the agent finds equal
_ACCEPT = 1
_AS_SCORES = {"top_p": torch.float32, "gate": torch.float32}


class RowOptions(NamedTuple):
    """Options of rows, (rows, 1) each, on the device of the logits.

    Attributes:
        top_k: int64 upper limits of the candidate sets.
        top_p: float32 nucleus masses.
        threshold: float64 accept thresholds.
        strategy: int64 places in `ROW_STRATEGIES`.
        strength: float64 strengths of `guided`.
        fallback: int64 indices of the candidates to emit if all are rejected.
        temperature: float64 temperatures that the engine draws with; 0 where it takes the largest logit.
        gate: float32 entropies above which the agent is asked; minus infinity where it always is.
        most: The largest `top_k`, on the host.
    """

    top_k: Tensor
    top_p: Tensor
    threshold: Tensor
    strategy: Tensor
    strength: Tensor
    fallback: Tensor
    temperature: Tensor
    gate: Tensor
    most: int

    @classmethod
    def of(cls, options: Sequence[DecodingOptions], device: torch.device) -> Self:
        """Options of rows as tensors.

        Args:
            options: Those of each row. The order is `sampled` where the temperature is above 0, or else `descending`.
            device: Device of the logits.
        """
        table = [
            (
                row.top_k,
                row.top_p,
                row.accept_threshold,
                ROW_STRATEGIES.index(row.strategy),
                row.strength,
                row.fallback,
                row.temperature if row.order == "sampled" else 0.0,
                row.gate.threshold if isinstance(row.gate, EntropyGate) else -torch.inf,
            )
            for row in options
        ]
        # One copy to the device. Whole numbers of this size are exact. Each column gets the type it is compared in.
        columns = torch.tensor(table, dtype=torch.float64).to(device).unsqueeze(-1).unbind(1)
        types = {"top_k": torch.long, "strategy": torch.long, "fallback": torch.long, **_AS_SCORES}
        typed = [column.to(types.get(name, torch.float64)) for name, column in zip(cls._fields, columns, strict=False)]
        return cls._make([*typed, max(row.top_k for row in options)])


def align_rows(logits: Tensor, rows: Tensor, outlook: Outlook, agent: nn.Module, options: RowOptions) -> Tensor:
    """Takes from some rows of logits what the agent does not let pass.

    Rows without any finite logit stay as they are. NaN of the agent counts as rejected.

    Args:
        logits: (all rows, vocabulary) float32 that the engine draws from, after masks and processors; changed in place.
        rows: (rows,) int64 rows to align.
        outlook: What is known of all rows, before masks and processors.
        agent: A look-ahead agent that is bound to the policy model's output embeddings.
        options: Options of the rows to align.

    Returns:
        The logits.
    """
    own = logits[rows]
    most = min(options.most, logits.shape[-1])
    sets = candidate_sets(own, most, options.top_p, options.top_k)
    accept = ask_before(agent, _ACCEPT, outlook, rows, sets.token_ids, sets.counts)
    asks = outlook.entropies[rows, None] > options.gate
    scores = narrowed_scores(sets.scores, accept, sets.counts, asks, options)
    aligned = torch.full_like(own, -torch.inf).scatter_(1, sets.token_ids, scores.to(own))
    logits[rows] = torch.where(sets.counts[:, None] > 0, aligned, own)
    return logits


def narrowed_scores(scores: Tensor, accept: Tensor, counts: Tensor, asks: Tensor, options: RowOptions) -> Tensor:
    """Scores of what may be emitted of candidate sets, most probable first; all others get minus infinity.

    Args:
        scores: (rows, k) float32 logits of the candidates.
        accept: (rows, k) float32 accept probabilities.
        counts: (rows,) int64 sizes of the candidate sets.
        asks: (rows, 1) bool, whether the agent is heard.
        options: Options of the rows.

    Returns:
        (rows, k) float32. In drawn rows of the `guided` strategy they are weighed, and ready for the temperature.
    """
    count = counts[:, None]
    columns = torch.arange(scores.shape[-1], device=scores.device)
    inside = columns < count
    accept = accept.nan_to_num(0)
    accepted = inside & (accept > options.threshold)
    asks, some = asks & (count > 1), accepted.any(-1, keepdim=True)
    guided, drawn = options.strategy == _GUIDED, options.temperature > 0
    certainty = accept.double().clamp(min=LEAST_PROBABILITY).log()
    alone = columns == torch.where(asks, _chosen(scores, accept, certainty, accepted, options, count), 0)
    several = torch.where(options.strategy == _BEST, alone, accepted)
    several = torch.where(asks & some & ~guided, several, inside)
    # The largest of (1 - s)(score / T + Gumbel noise) + s log a is a draw at temperature T of these scores.
    weight = options.temperature * options.strength / (1 - options.strength).clamp(min=_LEAST_WEIGHT)
    weighed = torch.where(asks & guided & drawn, scores + weight * certainty, scores).to(scores)
    return weighed.masked_fill(~(torch.where(drawn, several, alone) & inside), -torch.inf)


def _chosen(
    scores: Tensor, accept: Tensor, certainty: Tensor, accepted: Tensor, options: RowOptions, count: Tensor
) -> Tensor:
    """(rows, 1) index of the candidate that greedy decoding emits; see `SequenceState.examine`."""
    outside = torch.arange(scores.shape[-1], device=scores.device) >= count
    first = accepted.int().argmax(-1, keepdim=True)
    best = accept.masked_fill(~accepted, -1).argmax(-1, keepdim=True)
    from_end = (options.fallback + count).clamp(min=0)
    fallback = torch.where(options.fallback < 0, from_end, options.fallback.minimum(count - 1))
    weighed = (1 - options.strength) * scores + options.strength * certainty
    guided = weighed.masked_fill(outside, -torch.inf).argmax(-1, keepdim=True)
    index = torch.where(options.strategy == _BEST, best, first)
    index = torch.where(accepted.any(-1, keepdim=True), index, fallback)
    return torch.where(options.strategy == _GUIDED, guided, index)
