"""Checks the inputs of MaraClassifier, and splits rows into those to fit and those to hold out."""

import math
import warnings
from collections.abc import Sequence
from numbers import Integral
from typing import Any, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import log_loss
from sklearn.model_selection import GroupShuffleSplit
from sklearn.utils import assert_all_finite, check_consistent_length, column_or_1d
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import _check_sample_weight, validate_data
from torch import Tensor

from langchain_mara_training.fitting.fit_loop import split_callbacks
from langchain_mara_training.fitting.net import PRECISIONS
from langchain_mara_training.fitting.networks import check_kind
from langchain_mara_training.fitting.state_dataset import Rows, States, as_array_like, is_read_by_rows
from langchain_mara_training.fitting.temperature import check_scaling
from langchain_mara_training.storage.defaults import Schedule

_TWO = 2
_SMALLEST = {"width": 4, "max_epochs": 1, "batch_size": 1, "n_iter_no_change": 1}
_SCHEDULES = get_args(Schedule)
_SPLITS_TRIED = 8


def check_parameters(classifier: Any) -> None:
    """Checks that the parameters of a MaraClassifier are in range.

    Args:
        classifier: Classifier whose parameters are checked.

    Raises:
        ValueError: If one is not; the message names it and the values it can have.
    """
    check_kind(classifier.agent, classifier.rank)
    check_scaling(classifier.calibration)
    for name, smallest in _SMALLEST.items():
        value = getattr(classifier, name)
        if not isinstance(value, Integral) or value < smallest:
            raise ValueError(f"{name} must be a whole number of at least {smallest}, not {value!r}.")
    if not classifier.learning_rate > 0 or not classifier.weight_decay >= 0:
        raise ValueError("learning_rate must be above 0 and weight_decay at least 0.")
    if not 0 < classifier.validation_fraction < 1:
        raise ValueError(f"validation_fraction must be between 0 and 1, not {classifier.validation_fraction!r}.")
    if not 0 <= classifier.dropout < 1 or not 0 <= classifier.input_dropout < 1:
        raise ValueError("dropout and input_dropout must be at least 0 and below 1.")
    if classifier.early_stopping not in (True, False, "auto"):
        raise ValueError(f"early_stopping must be True, False or 'auto', not {classifier.early_stopping!r}.")
    if classifier.schedule not in _SCHEDULES:
        raise ValueError(f"schedule must be one of {_SCHEDULES}, not {classifier.schedule!r}.")
    if classifier.mixed_precision not in PRECISIONS:
        raise ValueError(f"mixed_precision must be one of {tuple(PRECISIONS)}, not {classifier.mixed_precision!r}.")
    split_callbacks(classifier.callbacks)


def check_states(estimator: Any, X: Any, y: Any = "no_validation", *, reset: bool) -> tuple[States, NDArray[Any]]:  # noqa: N803
    """Checks states and labels as scikit-learn does, but without reading all states.

    It does not check that the states are finite; `States` does that for each batch it reads. scikit-learn's check would
    copy memory maps of float16 and read all states an extra time.

    Args:
        estimator: Estimator whose number of features the states must have.
        X: (n, d) states.
        y: (n,) labels; left out when predicting.
        reset: Whether to set the estimator's number of features from X.

    Returns:
        The states, and the labels as a numpy array.

    Raises:
        ValueError: If scikit-learn's classifiers would not accept X or y.
    """
    X = as_array_like(X)  # noqa: N806
    y = y.detach().cpu().numpy() if isinstance(y, Tensor) else y
    has_labels = y is None or not isinstance(y, str)
    if is_read_by_rows(X):
        states = States(X)
        validate_data(estimator, X, y, reset=reset, skip_check_array=True)
        if has_labels:
            y = column_or_1d(y, warn=True)
            assert_all_finite(y, input_name="y")
            check_consistent_length(X, y)
        return states, y
    floats = [np.float32, np.float64, np.float16]
    checked = validate_data(estimator, X, y, reset=reset, dtype=floats, ensure_all_finite=False)
    X, y = checked if has_labels else (checked, y)  # noqa: N806
    return States(X), y


_ACCEPT_WORDS = {"accept", "accepted", "chosen", "good", "better", "safe", "positive", "pos", "yes", "true", "1", "up"}
_REJECT_WORDS = {"reject", "rejected", "bad", "worse", "unsafe", "negative", "neg", "no", "false", "0", "-1", "down"}


def encode_labels(y: NDArray[Any], classes: ArrayLike | None = None) -> tuple[NDArray[Any], Rows]:
    """The two classes, and the labels as 0 (reject) and 1 (accept).

    Args:
        y: (n,) labels.
        classes: (2,) all classes, for a y that may lack one.

    Returns:
        The classes, (2,): reject, accept; and the labels, (n,) int64.

    Raises:
        ValueError: If there are not exactly two classes, their names do not say which one is accept, or y holds a label
            that is not one of them.
    """
    check_classification_targets(y)
    both = np.unique(y if classes is None else np.asarray(classes))
    if len(both) > _TWO:
        kind = type_of_target(y if classes is None else both)
        raise ValueError(
            f"Only binary classification is supported. The type of the target is {kind}, with {len(both)} classes. "
            "Label rows accept or reject."
        )
    if len(both) < _TWO:
        raise ValueError(f"Fitting needs rows of two classes, accept and reject, but y holds one class: {both[0]!r}.")
    unknown = np.setdiff1d(y, both)
    if len(unknown):
        raise ValueError(f"y holds labels {unknown.tolist()}, which are not among the classes {both.tolist()}.")
    reject, accept = both if _accepts(both[1], both[0]) else both[::-1]
    return np.array([reject, accept], dtype=both.dtype), (np.asarray(y) == accept).astype(np.int64)


def _accepts(label: Any, other: Any) -> bool:
    """Whether a label means accept beside the other; of two numbers, the larger one does."""
    if not isinstance(label, str):
        return bool(label > other)
    words = [word.strip().casefold() for word in (label, str(other))]
    meanings = {(word in _ACCEPT_WORDS) - (word in _REJECT_WORDS) for word in words}
    if len(meanings) == 1:
        raise ValueError(
            f"Neither of the labels {other!r} and {label!r} says that it means accept. Label rows 0 and 1, False and "
            "True, or reject and accept."
        )
    return (words[0] in _ACCEPT_WORDS) or (words[1] in _REJECT_WORDS)


def row_weights(
    sample_weight: ArrayLike | None, class_weight: Any, classes: NDArray[Any], labels: Rows, *, whole: bool = True
) -> NDArray[np.float64]:
    """Weight of each row: its sample weight times the factor of its class.

    Args:
        sample_weight: (n,) weights; None means 1 for each row.
        class_weight: Factors as {class: factor}; `balanced` for factors that give both classes equal sums of weights;
            None for no factors.
        classes: (2,) both classes.
        labels: (n,) 0 or 1.
        whole: Whether these are all rows, so that both classes must have positive weight.

    Returns:
        (n,) float64.

    Raises:
        ValueError: If weights are negative or not finite, or of sizes that float32 cannot add; if a class has no
            weight, or `class_weight` is not valid.
    """
    weights: NDArray[np.float64] = _check_sample_weight(
        sample_weight, labels, dtype=np.float64, ensure_non_negative=True
    )
    sums = np.bincount(labels, weights, minlength=_TWO)
    if sums.sum() == 0 or (whole and not sums.all()):
        raise ValueError("The sample weights of all rows of a class are zero; fitting needs rows of both classes.")
    with np.errstate(all="ignore"):
        factors = sums.sum() / (_TWO * sums) if class_weight == "balanced" else _factors(class_weight, classes)
        # `fit` divides the weights by their mean; `partial_fit`, which never sees them all, takes them as they are.
        _check_sizes(weights * factors[labels], labels, sums, scaled=whole)
    return weights * factors[labels]


def held_out_share(classifier: Any, groups: ArrayLike | None) -> float:
    """Share of the groups that a fit holds out for early stopping; 0 if it does not stop early.

    Args:
        classifier: Classifier with its parameters.
        groups: Groups that the fit gets, if any.
    """
    early = classifier.early_stopping
    stops = groups is not None if early == "auto" else bool(early)
    share: float = classifier.validation_fraction if stops else 0.0
    return share


def _check_sizes(weights: NDArray[np.float64], labels: Rows, sums: NDArray[Any], *, scaled: bool) -> None:
    # Fitting computes in float32, where a class of too small a share would have no weight.
    shares = np.bincount(labels, (weights / weights.mean() if scaled else weights).astype(np.float32), minlength=_TWO)
    if not np.isfinite(shares).all() or ((shares == 0) & (sums > 0)).any():
        raise ValueError(
            f"Weights run from {weights.min():g} to {weights.max():g}, which float32 cannot add: a class would count "
            "for nothing. Give sample_weight and class_weight values of similar sizes."
        )


def split_by_group(
    labels: Rows, weights: NDArray[Any], groups: ArrayLike | None, share: float, seed: int
) -> tuple[Rows, Rows | None]:
    """Splits rows into those to fit and those to hold out. No group is in both; rows of weight zero are in neither.

    Args:
        labels: (n,) 0 or 1.
        weights: (n,) row weights.
        groups: (n,) group of each row; None makes each row a group.
        share: Share of the groups to hold out; 0 for none.
        seed: Seed of the split.

    Returns:
        Ascending numbers of the rows to fit, and of the rows to hold out. The latter is None if nothing is to be held
        out, or if no split has both classes on both sides.
    """
    rows = np.flatnonzero(weights)
    if groups is not None:
        check_consistent_length(labels, groups)
    names = rows if groups is None else np.asarray(groups)[rows]
    count = len(np.unique(names))
    if share == 0 or count - math.ceil(share * count) < 1:
        return rows, None
    splits = GroupShuffleSplit(_SPLITS_TRIED, test_size=share, random_state=seed).split(rows, groups=names)
    for fitted, held_out in splits:
        train, validation = rows[np.sort(fitted)], rows[np.sort(held_out)]
        if all(len(np.unique(labels[side])) == _TWO for side in (train, validation)):
            return train, validation
    return rows, None


def warn_if_useless(
    losses: Sequence[float], labels: Rows, weights: NDArray[Any], train: Rows, held_out: Rows | None
) -> None:
    """Warns if no epoch beat an agent that sees nothing and always gives the share of accept among the training rows.

    Args:
        losses: Loss on the held-out rows after each epoch.
        labels: (n,) 0 or 1.
        weights: (n,) row weights.
        train: Numbers of the rows that were fitted.
        held_out: Numbers of the rows that were held out, if any.
    """
    if held_out is None or not losses:
        return
    accepted = float(np.average(labels[train], weights=weights[train]))
    blind = log_loss(labels[held_out], np.full(len(held_out), accepted), sample_weight=weights[held_out], labels=[0, 1])
    if min(losses) >= blind:
        warnings.warn(
            f"On held-out groups the agent's loss, {min(losses):.3f}, never fell below {blind:.3f}, that of an agent "
            "that sees nothing: decoding with this agent is worse than decoding with none. Give more or other labels.",
            stacklevel=3,
        )


def _factors(class_weight: Any, classes: NDArray[Any]) -> NDArray[np.float64]:
    if class_weight is None:
        return np.ones(_TWO)
    if not isinstance(class_weight, dict):
        raise ValueError(f"class_weight must be a dict, 'balanced' or None, not {class_weight!r}.")  # noqa: TRY004
    names = classes.tolist()
    if unknown := set(class_weight) - set(names):
        raise ValueError(f"class_weight names {sorted(map(str, unknown))}, but the classes are {names}.")
    factors = np.array([class_weight.get(name, 1.0) for name in names], dtype=np.float64)
    if not (factors > 0).all() or not np.isfinite(factors).all():
        # Without one class, the agent would give the other one's answer to everything.
        raise ValueError(f"class_weight must hold factors above 0, not {class_weight!r}.")
    return factors
