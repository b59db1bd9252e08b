"""Defaults that estimators, jobs and commands share, each written once. Importing them loads no numerical library."""

from typing import Literal, NamedTuple

Schedule = Literal["linear", "cosine", "constant"]
"""How the learning rate falls to zero during a fit."""
OnBadRow = Literal["error", "skip"]
"""What a row of data does that cannot be used: it ends the job, or is left out and counted."""
TooLong = Literal["error", "skip", "truncate-left"]
"""What a prompt does that leaves no room for an answer: it ends the job, is left out, or loses its first tokens."""
Precision = Literal["bf16", "fp16"]
"""Number format of mixed-precision passes; without one they run in float32."""

EarlyStopping = bool | Literal["auto"]
"""Whether a fit stops when the loss on held-out groups rises."""

TRAINING_BATCH_SIZE = 32
"""Most sequences that labeling, alignment and evaluation decode at a time."""


class FittingDefaults(NamedTuple):
    """Defaults of `MaraClassifier` and of `mara fit`; `MaraClassifier` documents each of them.

    Attributes:
        width: Units of the agent's first hidden layer.
        max_epochs: Passes over the labels.
        batch_size: Labels per training step.
        learning_rate: Learning rate of AdamW at the first step.
        weight_decay: Weight decay of AdamW.
        schedule: How the learning rate falls to zero.
        dropout: Share of the hidden units that each training step leaves out.
        input_dropout: Share of the normalized states' entries that each training step leaves out.
        early_stopping: Whether fitting stops when the loss on held-out groups rises; `auto`: if there are groups.
        validation_fraction: Share of the groups to hold out.
        n_iter_no_change: Epochs without a better validation loss before fitting stops.
    """

    width: int = 256
    max_epochs: int = 10
    batch_size: int = 512
    learning_rate: float = 3e-4
    weight_decay: float = 0.1
    schedule: Schedule = "linear"
    dropout: float = 0.5
    input_dropout: float = 0.2
    early_stopping: EarlyStopping = "auto"
    validation_fraction: float = 0.1
    n_iter_no_change: int = 3


FITTING_DEFAULTS = FittingDefaults()
"""The fitting parameters when you set none."""
TRACES_SHOWN = 5
"""Most answers of a system that a report shows with the agent's decisions."""
