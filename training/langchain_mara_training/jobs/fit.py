"""The job of `mara fit`: fits an agent to the labels of a run folder."""

import time
from collections.abc import Sequence
from pathlib import Path

from langchain_mara.exceptions import MaraError, TrainingError
from langchain_mara.options import DEFAULT_LOOK_AHEAD_RANK
from langchain_mara_training import run_folder
from langchain_mara_training.fitting.classifier import MaraClassifier
from langchain_mara_training.fitting.predictions import held_out_measures
from langchain_mara_training.fitting.validation import split_by_group
from langchain_mara_training.jobs.inputs import BUNDLED_MODEL, Options, Values
from langchain_mara_training.labeling.token_labels import TokenLabels
from langchain_mara_training.storage.defaults import FITTING_DEFAULTS

_FITTING = (
    "width", "batch_size", "learning_rate", "weight_decay", "schedule", "dropout", "input_dropout", "class_weight",
    "mixed_precision", "early_stopping", "device",
)  # fmt: skip


def fit(source: Path, output: Path | None, options: Options) -> Values:
    """Fits an agent to a run's labels and saves it with its model card.

    Args:
        source: Run folder with the labels.
        output: Run folder for the agent; `source` by default. An interrupted job resumes there.
        options: Options of the command.

    Returns:
        Counts, losses and accuracies of the fit, and its time.

    Raises:
        MaraError: If the labels, the options or the run folder cannot be used.
    """
    labels = run_folder.read_labels(source)
    labels_folder = None if output is None else str(source.expanduser().absolute())
    run = run_folder.Run(output or source, "fit", {**options, "labels": labels_folder})
    label_options = run_folder.read_config(source).get("label", {})
    policy_model = label_options.get("model") or BUNDLED_MODEL
    classifier = MaraClassifier(
        **{name: options[name] for name in _FITTING},
        agent=options.get("agent") or "state",
        rank=options.get("rank", DEFAULT_LOOK_AHEAD_RANK) or None,
        max_epochs=options["epochs"],
        validation_fraction=options["validation_fraction"] or FITTING_DEFAULTS.validation_fraction,
        checkpoint_dir=run.checkpoints,
        random_state=options["seed"],
        policy_model=policy_model,
        verbose=True,
    )
    with run.working():
        started = time.perf_counter()
        values = _fit_and_measure(classifier, labels, options["validation_fraction"], options["seed"])
        seconds = time.perf_counter() - started
        tables = {"Labels": {**label_options, "model": policy_model}, "Fitting": run.config, "Metrics": values}
        run.save_agent(classifier.agent_, tables)
        run.log("fitted", **values, seconds=seconds, loss_curve=classifier.loss_curve_)
    return {**values, "seconds": seconds}


def _fit_and_measure(classifier: MaraClassifier, labels: TokenLabels, share: float, seed: int) -> Values:
    """Fits on all groups but a held-out share, and measures the agent on that share."""
    train, held_out = split_by_group(labels.y, labels.weight, labels.groups, share, seed)
    held_out_rows: Sequence[int] = [] if held_out is None else held_out.tolist()
    weights = labels.weight.copy()
    weights[held_out_rows] = 0
    try:
        classifier.fit(labels.X, labels.y, sample_weight=weights, groups=labels.groups)
    except ValueError as error:
        raise error if isinstance(error, MaraError) else TrainingError(str(error)) from error
    epoch = classifier.best_epoch_
    return {
        "training labels": len(train),
        "epochs": classifier.n_iter_,
        "best epoch": epoch,
        "training loss": classifier.loss_curve_[epoch - 1],
        **held_out_measures(classifier, labels, held_out_rows),
        "temperature": classifier.temperature_,
    }
