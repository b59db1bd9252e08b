"""A Bradley-Terry head: a linear score whose differences are log-odds of preference, cross-validated and calibrated."""

import warnings
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_expit
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

Array = NDArray[np.float64]

# The best is near 1e-3 for hundreds of pairs and a thousand features.
_GRID = tuple(10.0**power for power in np.arange(-5, -0.9, 0.5))
_WITHOUT_FOLDS = 1e-3
_TEMPERATURES = (1e-2, 1e2)


class Head(NamedTuple):
    """A fitted head.

    Attributes:
        coefficients: (f,) weights of the features; differences of scores are log-odds.
        inverse_regularization: `C` of the logistic regression that was best on held-out conversations.
        temperature: What the regression's scores were divided by; NaN if nothing could be held out.
        accuracy: Share of held-out pairs in the right order; NaN if nothing could be held out.
    """

    coefficients: Array
    inverse_regularization: float
    temperature: float
    accuracy: float


def fit_head(differences: Array, weights: Array, groups: NDArray[np.int64], *, folds: int, seed: int) -> Head:
    """Fits a head on differences of features; regularization and temperature come from held-out groups.

    Args:
        differences: (pairs, f) features of the chosen answer minus those of the rejected one.
        weights: (pairs,) weight of each pair.
        groups: (pairs,) conversation of each pair. All pairs of one are held out together.
        folds: Most folds of the cross-validation.
        seed: Seed of the folds.
    """
    folds = min(folds, len(set(groups.tolist())))
    if folds < 2:  # noqa: PLR2004 - one fold holds nothing out
        warnings.warn(
            "All pairs belong to one conversation, so nothing can be held out: the reward is neither validated nor "
            "calibrated. Give pairs of several conversations.",
            stacklevel=4,
        )
        return Head(_coefficients(differences, weights, _WITHOUT_FOLDS), _WITHOUT_FOLDS, np.nan, np.nan)
    splits = list(GroupKFold(folds, shuffle=True, random_state=seed).split(differences, groups=groups))
    held_out = {strength: _held_out(differences, weights, splits, strength) for strength in _GRID}
    temperatures = {strength: _temperature(scores, weights) for strength, scores in held_out.items()}
    losses = {strength: _loss(held_out[strength] / temperatures[strength], weights) for strength in _GRID}
    best = min(losses, key=losses.__getitem__)
    return Head(
        _coefficients(differences, weights, best) / temperatures[best],
        best,
        temperatures[best],
        ordered_rightly(held_out[best], weights),
    )


def ordered_rightly(differences: Array, weights: Array | None = None) -> float:
    """Weighted share of pairs whose chosen answer has the higher score; a tie counts half.

    Args:
        differences: (pairs,) score of the chosen answer minus that of the rejected one.
        weights: (pairs,) weight of each pair; by default all the same.
    """
    return float(np.average((np.sign(differences) + 1) / 2, weights=weights))


def _coefficients(differences: Array, weights: Array, strength: float) -> Array:
    # The loss of a pair is that of its mirror image, and the solver needs both classes.
    signs = np.where(np.arange(len(differences)) % 2, -1.0, 1.0)
    if len(differences) == 1:
        differences, weights, signs = np.repeat(differences, 2, 0), np.repeat(weights / 2, 2), np.array([1.0, -1.0])
    model = LogisticRegression(C=strength, fit_intercept=False, max_iter=1000)
    coefficients: Array = model.fit(differences * signs[:, None], signs, sample_weight=weights).coef_[0]
    return coefficients


def _held_out(
    differences: Array, weights: Array, splits: list[tuple[NDArray[np.int64], NDArray[np.int64]]], strength: float
) -> Array:
    """(pairs,) differences of scores, each from a head that has not seen the pair's conversation."""
    scores = np.zeros(len(differences))
    for seen, unseen in splits:
        scores[unseen] = differences[unseen] @ _coefficients(differences[seen], weights[seen], strength)
    return scores


def _temperature(scores: Array, weights: Array) -> float:
    """The number by which scores must be divided to be log-odds."""
    # Platt's target: as if one more pair had gone the other way, so that a perfect order does not mean certainty.
    doubt = 1 / (len(scores) + 2)
    low, high = np.log(_TEMPERATURES)
    found = minimize_scalar(
        lambda log: _loss(scores / np.exp(log), weights, doubt), bounds=(low, high), method="bounded"
    )
    return float(np.exp(found.x))


def _loss(log_odds: Array, weights: Array, doubt: float = 0.0) -> float:
    """Mean log-loss, if the share `doubt` of each preference goes the other way."""
    losses = (1 - doubt) * log_expit(log_odds) + doubt * log_expit(-log_odds)
    return float(-np.average(losses, weights=weights))
