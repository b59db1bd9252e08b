"""What a fitted agent says of rows, as scikit-learn's classifiers say it, and how right it is on held-out labels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import brier_score_loss
from sklearn.utils.validation import check_is_fitted

from langchain_mara_training.fitting.net import fitting_device
from langchain_mara_training.fitting.networks import log_odds
from langchain_mara_training.fitting.pair_scores import PairScores, score_pairs
from langchain_mara_training.fitting.temperature import AgentCalibration, calibration_error
from langchain_mara_training.fitting.validation import check_states
from langchain_mara_training.labeling.token_labels import TokenLabels

_ROWS_AT_ONCE = 16384


class AgentPredictions(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """The predictions of `MaraClassifier`.

    Attributes:
        agent_: The fitted agent.
        classes_: (2,) labels in sorted order.
        accept_class_: The label that means accept.
        temperature_: What the log-odds were divided by.
        calibration_: What that did on held-out groups.
    """

    agent_: Any
    classes_: NDArray[Any]
    accept_class_: Any
    temperature_: float
    calibration_: AgentCalibration | None
    device: Any

    def predict(self, X: Any) -> NDArray[Any]:  # noqa: N803
        """Labels, (n,): the second class where its probability is above 0.5; that of accept, as decoding's default."""
        accepted = (self.predict_proba(X)[:, 1] > 0.5).astype(int)  # noqa: PLR2004
        return self.classes_[accepted]  # type: ignore[no-any-return]

    def predict_proba(self, X: Any) -> NDArray[np.float64]:  # noqa: N803
        """Probabilities of both classes, (n, 2) float64, in the order of `classes_`."""
        scores = torch.from_numpy(self.decision_function(X))
        probabilities: NDArray[np.float64] = torch.stack([(-scores).sigmoid(), scores.sigmoid()], dim=1).numpy()
        return probabilities

    def decision_function(self, X: Any) -> NDArray[np.float64]:  # noqa: N803
        """Log-odds of the second class, (n,) float64."""
        check_is_fitted(self, "agent_")
        states, _ = check_states(self, X, reset=False)
        scores: NDArray[np.float64] = log_odds(self.agent_, states, fitting_device(self.device)).numpy()
        return scores if self.accept_class_ == self.classes_[1] else -scores

    def score_pairs(self, labels: TokenLabels) -> PairScores:
        """How well the agent orders preference pairs, which says more about decoding than the loss of single tokens.

        Args:
            labels: Labels of `PreferenceLabeler`, best of pairs that the agent was not fitted to.

        Raises:
            DataError: If no pair has labeled tokens of both answers.
        """
        log_odds = self.decision_function(labels.X)
        return score_pairs(log_odds if self.accept_class_ == self.classes_[1] else -log_odds, labels)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        # scikit-learn's toy data have two features, and LayerNorm keeps only which of the two is larger.
        tags.classifier_tags.poor_score = True
        return tags


def held_out_measures(classifier: AgentPredictions, labels: TokenLabels, rows: Sequence[int]) -> dict[str, Any]:
    """Accuracy and calibration of an agent on labels that it was not fitted to.

    Args:
        classifier: Fitted classifier.
        labels: All labels; they may be larger than memory.
        rows: (n,) numbers of the held-out labels.

    Returns:
        `validation labels`, their number; `validation accuracy`; `majority share`, the accuracy of always giving the
        more frequent label; `calibration error` and `Brier score`, each also `before` temperature scaling. None of
        these but the number is known if there are no rows.
    """
    names = ("validation accuracy", "majority share", *_MEASURES, *(f"{name} before" for name in _MEASURES))
    if not len(rows):
        return {"validation labels": 0, **dict.fromkeys(names)}
    chunks = [rows[start : start + _ROWS_AT_ONCE] for start in range(0, len(rows), _ROWS_AT_ONCE)]
    odds = np.concatenate([classifier.decision_function(labels.X[chunk]) for chunk in chunks])
    given = labels.y[rows]
    accepted = float(given.mean())
    shares = [float(np.mean((odds > 0) == given)), max(accepted, 1 - accepted)]
    measured = [
        float(measure(given, expit(values)))
        for values in (odds, odds * classifier.temperature_)
        for measure in _MEASURES.values()
    ]
    return {"validation labels": len(rows), **dict(zip(names, [*shares, *measured], strict=True))}


_MEASURES = {
    "calibration error": lambda labels, probability: calibration_error(probability, labels),
    "Brier score": brier_score_loss,
}
