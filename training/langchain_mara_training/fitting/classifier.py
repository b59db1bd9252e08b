"""MaraClassifier: fits an agent to labeled states, as a scikit-learn classifier."""

import os
from dataclasses import replace
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_random_state

from langchain_mara.exceptions import TrainingError
from langchain_mara.options import DEFAULT_LOOK_AHEAD_RANK
from langchain_mara_training.fitting.fit_job import check_continuation, fitting_options, open_checkpoint
from langchain_mara_training.fitting.fit_loop import FittingRecord, fit_agent, fit_pass
from langchain_mara_training.fitting.net import fitting_device
from langchain_mara_training.fitting.networks import AgentKind, FittedAgent, initialize_weights, make_agent_of
from langchain_mara_training.fitting.predictions import AgentPredictions
from langchain_mara_training.fitting.state_dataset import LabeledStates
from langchain_mara_training.fitting.temperature import Scaling, calibrate_agent
from langchain_mara_training.fitting.validation import (
    check_parameters,
    check_states,
    encode_labels,
    held_out_share,
    row_weights,
    split_by_group,
    warn_if_useless,
)
from langchain_mara_training.storage.defaults import FITTING_DEFAULTS, EarlyStopping, Precision, Schedule


class MaraClassifier(AgentPredictions):
    """Fits an agent to states labeled accept or reject.

    States can be a numpy array, a memory map, a torch tensor, or sharded states on disk, from float16 to float64. They
    are read in batches, so they can be larger than memory. Of a memory map or of shards, one block is read after the
    other, in random order; the rows of a block are also in random order.

    With labels 0 and 1, label 1 means accept, the agent's action 1. Of other numbers, the larger one does. Words
    must say it, such as `reject` and `accept`, or `rejected` and `chosen`. Rows of weight zero are ignored. `fit`
    scales weights to a mean of one; `partial_fit` does not.

    Two fits with the same int `random_state`, resumed or not, are equal to the bit on the CPU with the same number of
    threads. The global generators of PyTorch and numpy are not used, except that `random_state=None` draws a seed from
    numpy's.

    Args:
        agent: Kind of agent: `state`, or `look-ahead`, whose rows are those of labels with `judges="before"`.
        rank: Rank of a look-ahead agent's matrix for tokens, see `LookAheadAgent`; None for a full one.
        width: Units of the agent's first hidden layer, at least 4.
        max_epochs: Largest number of epochs, that is, of times all rows are used.
        batch_size: Rows per training step.
        learning_rate: Learning rate of AdamW at the first step.
        weight_decay: Weight decay of AdamW, for the matrices only.
        schedule: How the learning rate falls to zero over `fit`: `linear` or `cosine`; or `constant`.
        class_weight: Factors of the weights, as {label: factor}; `balanced` gives both classes equal sums of weights.
        dropout: Share of the hidden units that each training step leaves out, in [0, 1).
        input_dropout: Share of the normalized states' entries that each training step leaves out, in [0, 1).
        early_stopping: Whether to hold out some groups, stop when their loss no longer falls, and keep the weights of
            the best epoch; `auto` does so if `fit` gets groups. If no split has both classes on both sides, as with a
            single group or very few rows, nothing is held out and `validation_curve_` is None.
        validation_fraction: Share of the groups to hold out.
        n_iter_no_change: Epochs without a better validation loss before fitting stops.
        calibration: `temperature` divides the logits of a finished fit by what fits the held-out groups best, so that
            accept probabilities mean what they say and `strength` means the same for all agents. It is folded into
            the last layer, changes no decision at a threshold of 0.5, and does nothing if nothing is held out.
        mixed_precision: `bf16`, or on CUDA `fp16` with scaled gradients; None computes in float32.
        device: Device to compute on, such as `cuda:1`; by default CUDA if available.
        warm_start: Whether `fit` starts from the weights of the previous fit, with a new optimizer.
        checkpoint_dir: Folder for the state of this job, written after every epoch. After a crash, the same call of
            `fit` resumes at the next epoch and ends with the same weights. A finished job returns at once.
        random_state: Seed of initial weights, batch order and held-out groups.
        policy_model: Name of the model the states come from, stored in the agent.
        callbacks: `JobCallback`s, and callbacks of skorch such as `EarlyStopping`, for `fit`. They get no say in which
            epoch is kept, and skorch's learning rate schedulers have no effect. See docs/training.md.
        verbose: Whether to show progress on standard error.

    Attributes:
        agent_: The fitted agent in eval mode, on the CPU unless `device` is given: with held-out groups the best
            epoch's, otherwise the last one's. If `fit` fails after an epoch, it keeps that of the epochs so far, and
            raises with a note that says so. Later fits do not change it.
        classes_: (2,) labels in sorted order, which is that of the columns of `predict_proba`.
        accept_class_: The label that means accept.
        n_features_in_: Size d of the states.
        loss_curve_: Weighted mean training loss of each epoch.
        validation_curve_: Weighted mean loss on the held-out groups after each epoch, or None.
        n_iter_: Number of epochs run.
        best_epoch_: Number, from 1, of the epoch whose weights the agent has.
        temperature_: What the logits were divided by; 1 without calibration.
        calibration_: `AgentCalibration`: calibration error and Brier score on the held-out groups, before and after;
            None without calibration. These groups chose epoch and temperature, so measure on others, too.
    """

    def __init__(
        self,
        *,
        agent: AgentKind = "state",
        rank: int | None = DEFAULT_LOOK_AHEAD_RANK,
        width: int = FITTING_DEFAULTS.width,
        max_epochs: int = FITTING_DEFAULTS.max_epochs,
        batch_size: int = FITTING_DEFAULTS.batch_size,
        learning_rate: float = FITTING_DEFAULTS.learning_rate,
        weight_decay: float = FITTING_DEFAULTS.weight_decay,
        schedule: Schedule = FITTING_DEFAULTS.schedule,
        class_weight: dict[Any, float] | Literal["balanced"] | None = None,
        dropout: float = FITTING_DEFAULTS.dropout,
        input_dropout: float = FITTING_DEFAULTS.input_dropout,
        early_stopping: EarlyStopping = FITTING_DEFAULTS.early_stopping,
        validation_fraction: float = FITTING_DEFAULTS.validation_fraction,
        n_iter_no_change: int = FITTING_DEFAULTS.n_iter_no_change,
        calibration: Scaling | None = "temperature",
        mixed_precision: Precision | None = None,
        device: str | torch.device | None = None,
        warm_start: bool = False,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        random_state: int | np.random.RandomState | None = None,
        policy_model: str | None = None,
        callbacks: Any = (),
        verbose: bool = False,
    ) -> None:
        self.agent = agent
        self.rank = rank
        self.width = width
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.schedule = schedule
        self.class_weight = class_weight
        self.dropout = dropout
        self.input_dropout = input_dropout
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.calibration = calibration
        self.mixed_precision = mixed_precision
        self.device = device
        self.warm_start = warm_start
        self.checkpoint_dir = checkpoint_dir
        self.random_state = random_state
        self.policy_model = policy_model
        self.callbacks = callbacks
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
            groups: (n,) group of each row, such as its prompt; early stopping holds out whole groups.

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
        check_continuation(self, warm, classes)
        weights = row_weights(sample_weight, self.class_weight, classes, labels)
        checkpoint = open_checkpoint(self, states, warm, classes=classes, labels=labels, weights=weights, groups=groups)
        saved = None if checkpoint is None else checkpoint.read()
        seed = self._new_seed() if saved is None else saved["seed"]
        train, held_out = split_by_group(labels, weights, groups, held_out_share(self, groups), seed)
        scaled = (weights / weights[train].mean()).astype(np.float32)
        unseen = None if held_out is None else LabeledStates(states, labels, scaled, held_out)
        record = FittingRecord.resumed(saved)
        try:
            fit_agent(
                self._start(seed, warm),
                LabeledStates(states, labels, scaled, train),
                unseen,
                fitting_options(self, seed),
                record,
                checkpoint,
                saved,
                callbacks=self.callbacks,
                verbose=self.verbose,
            )
        except BaseException as error:
            if record.loss_curve:
                self._keep(record, classes, seed)
                done = f"Fitting ended after {self.n_iter_} of {self.max_epochs} epochs."
                error.add_note(f"{done} The classifier's agent_ has the weights of epoch {self.best_epoch_}.")
            raise
        if not record.loss_curve:
            raise TrainingError("A callback stopped fitting before the first epoch had ended, so there is no agent.")
        warn_if_useless(record.validation_curve, labels, scaled, train, held_out)
        self._keep(record, classes, seed)
        if unseen is not None and self.calibration is not None:
            found = calibrate_agent(self.agent_, unseen, fitting_device(self.device))
            self.calibration_, self.temperature_ = found, found.temperature
        return self

    def partial_fit(
        self,
        X: Any,  # noqa: N803
        y: ArrayLike,
        classes: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> Self:
        """Fits once on the rows of one part of a stream, at a constant learning rate.

        The optimizer continues from the last call. `max_epochs`, `early_stopping` and `checkpoint_dir` are ignored.

        Args:
            X: (n, d) states, see the class.
            y: (n,) labels.
            classes: (2,) both labels; required in the first call.
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
            raise ValueError("class_weight='balanced' needs all labels at once. Use a dict of factors in partial_fit.")
        states, y = check_states(self, X, y, reset=agent is None)
        encoded_classes, labels = encode_labels(y, self.classes_ if classes is None else classes)
        check_continuation(self, agent, encoded_classes)
        weights = row_weights(sample_weight, self.class_weight, encoded_classes, labels, whole=False).astype(np.float32)
        seed = self._new_seed() if agent is None else self._seed
        earlier_epochs = 0 if agent is None else self.n_iter_
        record = fit_pass(
            self._start(seed, agent),
            LabeledStates(states, labels, weights, np.flatnonzero(weights)),
            replace(fitting_options(self, seed), schedule="constant"),
            earlier_epochs,
            None if agent is None else self._optimizer_state,
        )
        record.loss_curve = [*(self.loss_curve_ if earlier_epochs else []), *record.loss_curve]
        record.best_epoch = earlier_epochs + 1
        return self._keep(record, encoded_classes, seed)

    def _new_seed(self) -> int:
        return int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))

    def _start(self, seed: int, warm: FittedAgent | None) -> FittedAgent:
        return initialize_weights(self._agent(), seed) if warm is None else self._agent(warm.state_dict())

    def _agent(self, weights: dict[str, torch.Tensor] | None = None) -> FittedAgent:
        agent = make_agent_of(self.agent, self.n_features_in_, self.width, self.rank, self.policy_model)
        if weights is not None:
            agent.load_state_dict(weights)
        return agent.eval()

    def _keep(self, record: FittingRecord, classes: NDArray[Any], seed: int) -> Self:
        device = "cpu" if self.device is None else fitting_device(self.device)
        self.agent_: Any = self._agent(record.kept_weights).to(device)
        self.loss_curve_, self.validation_curve_ = record.loss_curve, record.validation_curve or None
        self.n_iter_, self.best_epoch_ = len(record.loss_curve), record.best_epoch
        self.classes_, self.accept_class_ = np.sort(classes), classes[1]
        self.calibration_, self.temperature_ = None, 1.0
        self._optimizer_state = record.optimizer
        self._seed = seed
        return self
