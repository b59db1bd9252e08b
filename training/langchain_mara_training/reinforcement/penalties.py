"""How episodes are rewarded, and their penalty: the distance of accept/reject from the policy model."""

import math
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from langchain_mara.decoding.request import Decision

_TINY = 1e-8

Floats = NDArray[np.float64]


class EnvironmentOptions(BaseModel):
    """How episodes are played and rewarded; `reference()` gives the options of the paper's code."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    penalty: float = Field(default=0.1, ge=0)
    """Weight of the distance from the policy model."""
    distance: Literal["difference", "absolute", "squared", "full"] = "difference"
    """Distance between log-probability a of accept/reject and log-probability b of the policy model: a - b, |a - b|,
    (a - b)² / 2, or exp(a) (a - b)."""
    log_probability: Literal["policy", "log-softmax"] = "policy"
    """Log-probability a. `policy`: that accept/reject emits the token, and only the deciding step is penalized.
    `log-softmax`, as in the reference: the log-softmax of the accept probabilities of the whole candidate set, and
    every step is penalized."""
    conditional: bool = True
    """For `log-softmax`: whether each accept probability is multiplied by the probability of reaching the candidate,
    that is, of rejecting all before it."""
    fallback: Literal["decoding", "last"] = "decoding"
    """Token emitted where all candidates are rejected: the fallback of decoding, or the last candidate, which then
    counts as accepted."""
    post_back: Literal["all", "all-but-first", "none"] = "all"
    """Earlier steps that also get the final reward, discounted by the accepted steps in between."""
    temperature: float = Field(default=1.0, gt=0)
    """Divisor of the policy model's log-probabilities; they are not normalized again."""
    discount: float = Field(default=0.99, ge=0, le=1)
    """Discount factor for each accepted step in between."""
    baseline: float = 0.0
    """Number subtracted from the reward of an answer."""
    scale: float = 1.0
    """Factor of that difference."""

    @classmethod
    def reference(cls, **changes: Any) -> Self:
        """The options of the reference implementation, known defects included, for comparison.

        Args:
            **changes: Fields of this class that differ from the reference.
        """
        reference: dict[str, Any] = {"log_probability": "log-softmax", "fallback": "last", "post_back": "all-but-first"}
        return cls(**{**reference, "temperature": 0.8, **changes})


def distances(decision: Decision, accept: Floats, options: EnvironmentOptions) -> Floats:
    """Distance from the policy model of each step of a position, (steps,)."""
    logs = decision.candidate_states.log_probabilities.double().cpu().numpy() / options.temperature  # type: ignore[union-attr]
    count = len(decision.accept_probabilities)
    if options.log_probability == "log-softmax":
        reached = np.cumprod(np.concatenate([[1.0], 1 - accept[:-1]])) if options.conditional else 1.0
        scores = accept * reached
        log_softmax = scores - np.log(np.exp(scores).sum())
        return _distance(log_softmax, logs, options)[:count]
    distances = np.zeros(count)
    emitted = np.array([_log_emitted(accept, decision)])
    distances[-1:] = _distance(emitted, logs[decision.index : decision.index + 1], options)
    return distances


def _log_emitted(accept: Floats, decision: Decision) -> float:
    """Log-probability that accept/reject emits the token it did.

    If the token is also the fallback, the probability that all candidates are rejected is added where it is known,
    that is, where all were examined.
    """
    reached = np.concatenate([[1.0], np.cumprod(1 - accept)])
    probability = reached[decision.index] * accept[decision.index]
    count = len(decision.candidates)
    if len(accept) == count and decision.index == decision.request.options.fallback_index(count):
        probability += reached[-1]
    return math.log(max(float(probability), _TINY))


def _distance(decided: Floats, model: Floats, options: EnvironmentOptions) -> Floats:
    """Distance between log-probabilities of accept/reject and of the policy model, element by element."""
    difference = decided - model
    if options.distance == "absolute":
        return np.asarray(np.abs(difference))
    if options.distance == "squared":
        return np.asarray(difference**2 / 2)
    return np.asarray(np.exp(decided) * difference) if options.distance == "full" else difference
