"""Temperature scaling: accept probabilities that mean what they say, without moving a decision at 0.5."""

from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit
from sklearn.metrics import brier_score_loss, log_loss

from langchain_mara_training.fitting.networks import FittedAgent, log_odds
from langchain_mara_training.fitting.state_dataset import LabeledStates

Scaling = Literal["temperature"]
"""How accept probabilities are calibrated."""
_BINS = 10
# An agent that knows nothing has the best temperature at infinity, one that is never wrong at zero.
_LARGEST_LOG = float(np.log(20))


class AgentCalibration(NamedTuple):
    """Temperature scaling of an agent on held-out rows, and what it did to its accept probabilities there.

    Attributes:
        rows: Number of held-out rows.
        temperature: What the log-odds were divided by, in [1/20, 20].
        error_before: Expected calibration error before, see `calibration_error`.
        error_after: The same afterwards.
        brier_before: Brier score before, the mean squared distance of accept probability and label (0 or 1).
        brier_after: The same afterwards.
    """

    rows: int
    temperature: float
    error_before: float
    error_after: float
    brier_before: float
    brier_after: float


def check_scaling(calibration: Any) -> None:
    """Refuses a way of calibration that there is not.

    Raises:
        ValueError: If it is neither `temperature` nor None.
    """
    if calibration == "isotonic":
        raise ValueError(
            "calibration='isotonic' is a step function: it cannot be folded into the agent's weights, and it gives "
            "different candidates the same accept probability. Use 'temperature', or None."
        )
    if calibration not in ("temperature", None):
        raise ValueError(f"calibration must be 'temperature' or None, not {calibration!r}.")


def calibrate_agent(agent: FittedAgent, held_out: LabeledStates, device: torch.device) -> AgentCalibration:
    """Divides an agent's logits by the temperature that fits held-out rows best, in place.

    The temperature goes into the last layer (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017). It
    changes no sign, so decisions at a threshold of 0.5 and the order of candidates stay. Rows count by their weights.

    Args:
        agent: Fitted agent.
        held_out: Rows that it was not fitted to.
        device: Device to compute on.

    Raises:
        DataError: If a state is not finite.
    """
    odds = log_odds(agent, held_out, device).numpy()
    labels, weights = held_out.labels[held_out.rows], held_out.weights[held_out.rows]
    temperature = fitted_temperature(odds, labels, weights)
    with torch.no_grad():
        agent.output_linear.weight.div_(temperature)
        agent.output_linear.bias.div_(temperature)
    before, after = (expit(values) for values in (odds, odds / temperature))
    errors = [calibration_error(each, labels, weights) for each in (before, after)]
    briers = [float(brier_score_loss(labels, each, sample_weight=weights)) for each in (before, after)]
    return AgentCalibration(len(odds), temperature, *errors, *briers)


def fitted_temperature(odds: NDArray[np.float64], labels: NDArray[Any], weights: NDArray[Any]) -> float:
    """The temperature with the lowest cross-entropy, in [1/20, 20].

    scikit-learn's own temperature scaling came with 1.8 and keeps its result private.

    Args:
        odds: (n,) log-odds of accept.
        labels: (n,) 0 or 1.
        weights: (n,) weights.
    """

    def loss(log_temperature: float) -> float:
        probability = expit(odds / np.exp(log_temperature))
        return float(log_loss(labels, probability, sample_weight=weights, labels=[0, 1]))

    found = minimize_scalar(loss, bounds=(-_LARGEST_LOG, _LARGEST_LOG), method="bounded")
    return float(np.exp(found.x)) if found.fun < loss(0.0) else 1.0


def calibration_error(
    probability: NDArray[np.float64], labels: NDArray[Any], weights: NDArray[Any] | None = None
) -> float:
    """Expected calibration error in ten bins of equal width: mean distance of accept probability and share of accept.

    Args:
        probability: (n,) accept probabilities.
        labels: (n,) 0 or 1.
        weights: (n,) weights; all equal by default.
    """
    weights = np.ones(len(labels)) if weights is None else weights
    bins = np.minimum((probability * _BINS).astype(int), _BINS - 1)
    distances = np.bincount(bins, weights * (probability - labels), minlength=_BINS)
    return float(np.abs(distances).sum() / weights.sum())
