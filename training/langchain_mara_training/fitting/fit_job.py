"""A fitting job: its settings, and what identifies it, parameters and all data, so that only the same one resumes."""

import hashlib
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from langchain_mara.agents.base import Agent
from langchain_mara.exceptions import AgentMismatchError
from langchain_mara_training.fitting.net import FittingOptions, fitting_device
from langchain_mara_training.fitting.state_dataset import States
from langchain_mara_training.storage.job_checkpoint import JobCheckpoint

if TYPE_CHECKING:
    from langchain_mara_training.fitting.classifier import MaraClassifier

# A job may resume with another display, on another device, in another folder. Calibration comes when it has ended.
_NOT_OF_A_JOB = {"calibration", "callbacks", "checkpoint_dir", "device", "policy_model", "verbose"}
_CHUNK_BYTES = 2**24


def open_checkpoint(
    classifier: "MaraClassifier", states: States, warm: Agent | None, **data: Any
) -> JobCheckpoint | None:
    """The checkpoint of a classifier's job, or None if it has no folder.

    Args:
        classifier: Classifier with its parameters.
        states: (n, d) states. All of them are read once.
        warm: Agent that the job starts from, if any.
        **data: Arrays of n rows, by name, such as labels; None is left out.

    Raises:
        DataError: If a state is not finite.
    """
    if classifier.checkpoint_dir is None:
        return None
    parameters = {name: value for name, value in classifier.get_params(deep=False).items() if name not in _NOT_OF_A_JOB}
    if classifier.agent == "state":
        # A checkpoint of an earlier version says nothing of kinds, and resumes.
        parameters = {name: value for name, value in parameters.items() if name not in ("agent", "rank")}
    parameters["random_state"] = classifier.random_state if isinstance(classifier.random_state, Integral) else "drawn"
    parameters["warm_start"] = "" if warm is None else warm.fingerprint
    data["groups"] = data["groups"] if classifier.early_stopping else None  # `auto` stops early if there are groups
    job = {name: repr(value) for name, value in parameters.items()}
    job["states"] = f"{states.shape} {states.dtype} {_digest_of_states(states)}"
    job |= {name: _digest(np.asarray(values)) for name, values in data.items() if values is not None}
    return JobCheckpoint(classifier.checkpoint_dir, job)


def check_continuation(classifier: "MaraClassifier", agent: Agent | None, classes: NDArray[Any]) -> None:
    """Checks that a fit can continue from an agent.

    Args:
        classifier: Classifier that continues.
        agent: Agent that it continues from, if any.
        classes: (2,) both labels of the new data.

    Raises:
        AgentMismatchError: If the agent has another width.
        ValueError: If the classes differ from those of the earlier fit.
    """
    if agent is None:
        return
    if agent.kind != classifier.agent:
        raise AgentMismatchError(
            f"Fitting continues from an agent of kind {agent.kind}, not {classifier.agent}. Start over with a clone."
        )
    if agent.width != classifier.width:
        raise AgentMismatchError(
            f"Fitting continues from an agent of width {agent.width}, not {classifier.width}. Start over with a clone."
        )
    if not np.array_equal(np.sort(classes), classifier.classes_):
        raise ValueError(
            f"Fitting continues with the classes {classifier.classes_.tolist()}, not {classes.tolist()}. "
            "Start over with a clone."
        )


def fitting_options(classifier: "MaraClassifier", seed: int) -> FittingOptions:
    """The settings of a classifier's job.

    Args:
        classifier: Classifier with its parameters.
        seed: Seed of batch order and initial weights.

    Raises:
        LoadingError: If the device cannot be used.
    """
    device = fitting_device(classifier.device, classifier.mixed_precision)
    names = (
        "max_epochs",
        "batch_size",
        "learning_rate",
        "weight_decay",
        "schedule",
        "dropout",
        "input_dropout",
        "n_iter_no_change",
    )
    parameters = {name: getattr(classifier, name) for name in names}
    return FittingOptions(**parameters, precision=classifier.mixed_precision, device=device, seed=seed)


def _digest_of_states(states: States) -> str:
    """A digest of all states, in any container of one dtype."""
    hasher = hashlib.sha256()
    for chunk in states.chunks(max(1, _CHUNK_BYTES // (4 * states.shape[1]))):
        hasher.update(np.ascontiguousarray(chunk.float().cpu().numpy()).data)
    return hasher.hexdigest()[:16]


def _digest(values: NDArray[Any]) -> str:
    content = str(values.tolist()).encode() if values.dtype == object else np.ascontiguousarray(values).tobytes()
    return f"{values.shape} {values.dtype} {hashlib.sha256(content).hexdigest()[:16]}"
