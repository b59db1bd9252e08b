"""How well a fitted agent orders preference pairs: by whole answers, at the first difference, and token by token."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import log_loss, roc_auc_score

from langchain_mara.exceptions import DataError
from langchain_mara_training.fitting.temperature import calibration_error
from langchain_mara_training.labeling.token_labels import NO_PAIR, TokenLabels

_TWO = 2


class PairScores(NamedTuple):
    """How an agent judges the labeled tokens of preference pairs.

    Attributes:
        pairs: Number of pairs with labeled tokens of both answers.
        pair_accuracy: Share of them whose chosen answer has the higher mean log-odds of accept; equal means count half.
        first_differences: Number of pairs whose answers' first differing tokens both are labeled.
        first_difference_accuracy: Share of these whose chosen token has the higher log-odds of accept. Both tokens
            follow the same prefix, so this is what decoding asks the agent. NaN if there are none.
        auc_within_pairs: Mean over pairs of the probability that a random token of the chosen answer has higher
            log-odds than one of the rejected answer.
        loss: Mean cross-entropy of all labels; ln 2 = 0.693 is that of an agent that knows nothing.
        calibration_error: Expected calibration error of the accept probabilities, in ten bins of equal width
            (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017).
    """

    pairs: int
    pair_accuracy: float
    first_differences: int
    first_difference_accuracy: float
    auc_within_pairs: float
    loss: float
    calibration_error: float


def score_pairs(log_odds: NDArray[np.float64], labels: TokenLabels) -> PairScores:
    """Scores the log-odds that an agent gives to labeled tokens.

    Args:
        log_odds: (n,) log-odds of accept.
        labels: n labeled tokens of preference pairs.

    Raises:
        DataError: If no pair has labeled tokens of both answers, as with labels of rollouts.
    """
    probability = 1 / (1 + np.exp(-log_odds))
    by_pair = _rows_by_pair(labels)
    if not by_pair:
        raise DataError("No pair has labeled tokens of both answers. score_pairs needs labels of PreferenceLabeler.")
    margins = [
        log_odds[rows][labels.y[rows] == 1].mean() - log_odds[rows][labels.y[rows] == 0].mean() for rows in by_pair
    ]
    first = [margin for rows in by_pair if (margin := _first_margin(log_odds, labels, rows)) is not None]
    return PairScores(
        len(margins),
        _won(margins),
        len(first),
        _won(first),
        float(np.mean([roc_auc_score(labels.y[rows], log_odds[rows]) for rows in by_pair])),
        float(log_loss(labels.y, probability, labels=[0, 1])),
        calibration_error(probability, labels.y),
    )


def _rows_by_pair(labels: TokenLabels) -> list[NDArray[np.int64]]:
    """Rows of each pair that has labeled tokens of both answers."""
    order = np.argsort(labels.pairs, kind="stable")
    starts = np.flatnonzero(np.diff(labels.pairs[order], prepend=NO_PAIR - 1))
    groups = np.split(order, starts[1:])
    return [rows for rows in groups if labels.pairs[rows[0]] != NO_PAIR and len(np.unique(labels.y[rows])) == _TWO]


def _first_margin(log_odds: NDArray[np.float64], labels: TokenLabels, rows: NDArray[np.int64]) -> float | None:
    """Log-odds of the chosen answer's first token less the rejected one's, if both stand behind the same prefix."""
    firsts = [min(rows[labels.y[rows] == label], key=lambda row: labels.positions[row]) for label in (1, 0)]
    if labels.offsets[firsts].any():
        return None
    return float(log_odds[firsts[0]] - log_odds[firsts[1]])


def _won(margins: list[float]) -> float:
    return float(np.mean([(np.sign(margin) + 1) / 2 for margin in margins])) if margins else float("nan")
