"""MaraClassifier: fits an agent's network to labelled states, as a scikit-learn classifier."""

import os
from dataclasses import replace
from numbers import Integral
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from langchain_mara.agents.agent import MaraAgent
from langchain_mara.exceptions import AgentMismatchError
from langchain_mara_training.fitting.fit_loop import FittingRecord, fit_agent, fit_pass
from langchain_mara_training.fitting.net import (
    FittingOptions,
    fitting_device,
    initialise,
    make_agent,
    rows_at_once,
)
from langchain_mara_training.fitting.state_dataset import LabeledStates, States, describe_job
from langchain_mara_training.fitting.validation import (
    check_parameters,
    check_states,
    encode_labels,
    row_weights,
    split_by_group,
)
from langchain_mara_training.storage.defaults import FITTING_DEFAULTS, Precision, Schedule
from langchain_mara_training.storage.job_checkpoint import JobCheckpoint

# A job may go on with another bar, on another device, in another folder.
_NOT_OF_A_JOB = {"checkpoint_dir", "device", "policy_model", "verbose"}


class MaraClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Fits a `MaraAgent` to states labelled accept or reject.

    States may be a numpy array or a memory map, a torch tensor, or sharded states on disk; float16 to float64. They are
    converted batch by batch, so that data larger than memory can be fitted: of a memory map or of shards, one part
    after the other is read, in random order, and the rows of each part in random order.

    With labels 0 and 1, 1 means accept, the agent's action 1; of other labels, the second in sorted order does. Rows of
    weight zero take no part. Weights are scaled to a mean of one in `fit`, and taken as they are in `partial_fit`.

    Two fits with the same int `random_state`, resumed or not, are equal to the bit on the CPU with the same number of
    threads. PyTorch's and numpy's global generators are left alone; only `random_state=None` takes a seed from numpy's.

    Args:
        width: Units of the agent's first hidden layer, at least 4.
        max_epochs: Passes over the rows.
        batch_size: Rows per training step.
        learning_rate: Of AdamW, at the first step.
        weight_decay: Of AdamW, on the matrices.
        schedule: How the learning rate goes to zero over `fit`: `linear`, `cosine`, or `constant`.
        class_weight: Factors on the weights, as {label: factor}; `balanced` for equal sums; None for 1.
        early_stopping: Whether to hold out some groups, stop when their loss no longer falls, and keep the best epoch's
            weights. Nothing is held out where no split leaves both classes on both sides, as with a single group or
            a handful of rows; `validation_curve_` is None then.
        validation_fraction: Share of the groups to hold out.
        n_iter_no_change: Epochs without a better validation loss before fitting stops.
        mixed_precision: `bf16`, or on CUDA `fp16` with scaled gradients; None computes in float32.
        device: Where to compute, such as `cuda:1`; by default CUDA where there is one.
        warm_start: Whether `fit` goes on from the weights of the last one, with a fresh optimiser.
        checkpoint_dir: Folder of this one job's state, written after every epoch. The same call of `fit` after a crash
            goes on at the next epoch and ends with the same weights; after the end it returns at once.
        random_state: Seed of initial weights, batch order and held-out groups.
        policy_model: Name of the model the states come from, noted in the agent.
        verbose: Whether to show progress on standard error.

    Attributes:
        agent_: The fitted `MaraAgent` in eval mode, on the CPU unless `device` is given; later fits leave it alone.
        classes_: (2,) labels: reject, accept.
        n_features_in_: Size d of the states.
        loss_curve_: Weighted mean training loss of each epoch.
        validation_curve_: Weighted mean loss on the held-out groups after each epoch, or None.
        n_iter_: Epochs run.
        best_epoch_: The epoch, from 1, whose weights the agent has.
    """

    def __init__(
        self,
        *,
        width: int = FITTING_DEFAULTS.width,
        max_epochs: int = FITTING_DEFAULTS.max_epochs,
        batch_size: int = FITTING_DEFAULTS.batch_size,
        learning_rate: float = FITTING_DEFAULTS.learning_rate,
        weight_decay: float = FITTING_DEFAULTS.weight_decay,
        schedule: Schedule = FITTING_DEFAULTS.schedule,
        class_weight: dict[Any, float] | Literal["balanced"] | None = None,
        early_stopping: bool = FITTING_DEFAULTS.early_stopping,
        validation_fraction: float = FITTING_DEFAULTS.validation_fraction,
        n_iter_no_change: int = FITTING_DEFAULTS.n_iter_no_change,
        mixed_precision: Precision | None = None,
        device: str | torch.device | None = None,
        warm_start: bool = False,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        random_state: int | np.random.RandomState | None = None,
        policy_model: str | None = None,
        verbose: bool = False,
    ) -> None:
        self.width = width
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.schedule = schedule
        self.class_weight = class_weight
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.mixed_precision = mixed_precision
        self.device = device
        self.warm_start = warm_start
        self.checkpoint_dir = checkpoint_dir
        self.random_state = random_state
        self.policy_model = policy_model
        self.verbose = verbose

    def fit(
        self,
        X: Any,  # noqa: N803
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        groups: ArrayLike | None = None,
    ) -> Self:
        """Fits the agent.

        Args:
            X: (n, d) states, see the class.
            y: (n,) labels of two classes.
            sample_weight: (n,) weights, none negative.
            groups: (n,) group of each row, such as its prompt; early stopping splits between groups.

        Raises:
            DataError: If a state is not finite.
            LoadingError: If the device cannot be used.
            TrainingError: If the loss is not finite, or the checkpoint belongs to another job.
            CheckpointError: If the checkpoint is corrupt.
            ValueError: If labels, weights or parameters are out of range.
        """
        check_parameters(self)
        warm = self.agent_ if self.warm_start and hasattr(self, "agent_") else None
        states, y = check_states(self, X, y, reset=warm is None)
        classes, labels = encode_labels(y)
        self._check_goes_on(warm, classes)
        weights = row_weights(sample_weight, self.class_weight, classes, labels)
        checkpoint = self._checkpoint(states, warm, classes=classes, labels=labels, weights=weights, groups=groups)
        saved = None if checkpoint is None else checkpoint.read()
        seed = self._new_seed() if saved is None else saved["seed"]
        share = self.validation_fraction if self.early_stopping else 0.0
        train, held_out = split_by_group(labels, weights, groups, share, seed)
        scaled = (weights / weights[train].mean()).astype(np.float32)
        record = fit_agent(
            self._start(states.shape[1], seed, warm),
            LabeledStates(states, labels, scaled, train),
            None if held_out is None else LabeledStates(states, labels, scaled, held_out),
            self._options(seed),
            checkpoint,
            saved,
            verbose=self.verbose,
        )
        self.loss_curve_ = record.loss_curve
        self.validation_curve_ = None if held_out is None else record.validation_curve
        self.n_iter_ = len(record.loss_curve)
        self.best_epoch_ = record.best_epoch
        return self._keep(record, classes, seed)

    def partial_fit(
        self,
        X: Any,  # noqa: N803
        y: ArrayLike,
        classes: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> Self:
        """Makes one pass over the rows of one shard of a stream, at a constant learning rate.

        The optimiser goes on from the last call. `max_epochs`, `early_stopping` and `checkpoint_dir` play no part.

        Args:
            X: (n, d) states, see the class.
            y: (n,) labels.
            classes: (2,) all labels; needed in the first call.
            sample_weight: (n,) weights, none negative.

        Raises:
            DataError: If a state is not finite.
            LoadingError: If the device cannot be used.
            TrainingError: If the loss is not finite.
            ValueError: If labels, weights or parameters are out of range, or `class_weight` is `balanced`.
        """
        check_parameters(self)
        agent = getattr(self, "agent_", None)
        if agent is None and classes is None:
            raise ValueError("classes must be passed on the first call to partial_fit.")
        if self.class_weight == "balanced":
            raise ValueError("class_weight='balanced' needs all labels at once. Give partial_fit a dict of factors.")
        states, y = check_states(self, X, y, reset=agent is None)
        known, labels = encode_labels(y, self.classes_ if classes is None else classes)
        self._check_goes_on(agent, known)
        weights = row_weights(sample_weight, self.class_weight, known, labels, whole=False).astype(np.float32)
        seed = self._new_seed() if agent is None else self._seed
        passes = 0 if agent is None else self.n_iter_
        record = fit_pass(
            self._start(states.shape[1], seed, agent),
            LabeledStates(states, labels, weights, np.flatnonzero(weights)),
            replace(self._options(seed), schedule="constant"),
            passes,
            None if agent is None else self._optimizer_state,
        )
        self.loss_curve_ = [*(self.loss_curve_ if passes else []), *record.loss_curve]
        self.validation_curve_ = None
        self.n_iter_ = self.best_epoch_ = passes + 1
        return self._keep(record, known, seed)

    def predict(self, X: Any) -> NDArray[Any]:  # noqa: N803
        """(n,) labels: the second class where its probability is above 0.5, as the decoder accepts by default."""
        accepted = self.predict_proba(X)[:, 1] > 0.5  # noqa: PLR2004
        labels: NDArray[Any] = self.classes_[accepted.astype(int)]
        return labels

    def predict_proba(self, X: Any) -> NDArray[np.float64]:  # noqa: N803
        """(n, 2) float64 probabilities of both classes; the second is the agent's accept probability."""
        scores = torch.from_numpy(self.decision_function(X))
        probabilities: NDArray[np.float64] = torch.stack([(-scores).sigmoid(), scores.sigmoid()], dim=1).numpy()
        return probabilities

    def decision_function(self, X: Any) -> NDArray[np.float64]:  # noqa: N803
        """(n,) float64 log-odds of the second class."""
        check_is_fitted(self, "agent_")
        states, _ = check_states(self, X, reset=False)
        place, agent = fitting_device(self.device), self.agent_
        if agent.ln.weight.device != place:
            agent = self._agent(agent.state_dict()).to(place)
        with torch.inference_mode():
            logits = torch.cat([agent(chunk.to(place)).cpu() for chunk in states.chunks(rows_at_once(agent))]).double()
        scores: NDArray[np.float64] = (logits[:, 1] - logits[:, 0]).numpy()
        return scores

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        # Of two features, LayerNorm leaves only which one is larger; scikit-learn's toy data have two.
        tags.classifier_tags.poor_score = True
        return tags

    def _check_goes_on(self, agent: MaraAgent | None, classes: NDArray[Any]) -> None:
        if agent is None:
            return
        if agent.width != self.width:
            raise AgentMismatchError(
                f"Fitting goes on from an agent of width {agent.width}, not {self.width}. Start anew from a clone."
            )
        if not np.array_equal(classes, self.classes_):
            raise ValueError(
                f"Fitting goes on with the classes {self.classes_.tolist()}, not {classes.tolist()}. "
                "Start anew from a clone."
            )

    def _new_seed(self) -> int:
        return int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))

    def _options(self, seed: int) -> FittingOptions:
        device = fitting_device(self.device, self.mixed_precision)
        names = ("max_epochs", "batch_size", "learning_rate", "weight_decay", "schedule", "n_iter_no_change")
        given = {name: getattr(self, name) for name in names}
        return FittingOptions(**given, precision=self.mixed_precision, device=device, seed=seed)

    def _checkpoint(self, states: States, warm: MaraAgent | None, **data: Any) -> JobCheckpoint | None:
        if self.checkpoint_dir is None:
            return None
        parameters = {name: value for name, value in self.get_params(deep=False).items() if name not in _NOT_OF_A_JOB}
        if not isinstance(self.random_state, Integral):
            parameters["random_state"] = "drawn"
        parameters["warm_start"] = "" if warm is None else warm.fingerprint
        data["groups"] = data["groups"] if self.early_stopping else None
        return JobCheckpoint(self.checkpoint_dir, describe_job(parameters, states, data))

    def _start(self, hidden_size: int, seed: int, warm: MaraAgent | None) -> MaraAgent:
        if warm is None:
            return initialise(make_agent(hidden_size, self.width), seed)
        return self._agent(warm.state_dict())

    def _agent(self, weights: dict[str, torch.Tensor]) -> MaraAgent:
        agent = make_agent(self.n_features_in_, self.width, self.policy_model)
        agent.load_state_dict(weights)
        return agent.eval()

    def _keep(self, record: FittingRecord, classes: NDArray[Any], seed: int) -> Self:
        place = "cpu" if self.device is None else fitting_device(self.device)
        self.agent_ = self._agent(record.weights).to(place)
        self.classes_ = classes
        self._optimizer_state = record.optimizer
        self._seed = seed
        return self
