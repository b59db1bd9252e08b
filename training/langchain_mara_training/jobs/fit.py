"""What `mara fit` does: an agent fitted to a run folder's labels."""

import time
from collections.abc import Sequence
from pathlib import Path

from langchain_mara.exceptions import MaraError, TrainingError
from langchain_mara_training import run_folder
from langchain_mara_training.fitting.classifier import MaraClassifier
from langchain_mara_training.fitting.validation import held_out_accuracy, split_by_group
from langchain_mara_training.jobs.inputs import EMBEDDED, Options, Values
from langchain_mara_training.labeling.token_labels import TokenLabels

_FITTING = (
    "width", "batch_size", "learning_rate", "weight_decay", "schedule", "class_weight", "mixed_precision",
    "early_stopping", "device",
)  # fmt: skip


def fit(source: Path, output: Path | None, options: Options) -> Values:
    """Fits an agent to a run's labels and saves it, with its model card.

    Args:
        source: Run folder with the labels.
        output: Run folder for the agent; `source` by default.
        options: Of the command.

    Raises:
        MaraError: As the parts do.
    """
    labels = run_folder.read_labels(source)
    elsewhere = None if output is None else str(source.expanduser().absolute())
    run = run_folder.Run(output or source, "fit", {**options, "labels": elsewhere})
    labelled = run_folder.read_config(source).get("label", {})
    policy_model = labelled.get("model") or EMBEDDED
    classifier = MaraClassifier(
        **{name: options[name] for name in _FITTING},
        max_epochs=options["epochs"],
        validation_fraction=options["validation_fraction"] or 0.1,
        checkpoint_dir=run.checkpoints,
        random_state=options["seed"],
        policy_model=policy_model,
        verbose=True,
    )
    run.begin()
    started = time.perf_counter()
    values = _fit_and_measure(classifier, labels, options["validation_fraction"], options["seed"])
    seconds = time.perf_counter() - started
    tables = {"Labels": {**labelled, "model": policy_model}, "Fitting": run.config, "Metrics": values}
    run.save_agent(classifier.agent_, tables)
    run.log("fitted", **values, seconds=seconds, loss_curve=classifier.loss_curve_)
    return {**values, "seconds": seconds}


def _fit_and_measure(classifier: MaraClassifier, labels: TokenLabels, share: float, seed: int) -> Values:
    """Fits to all but a share of the groups, and says how well the agent does on those."""
    train, held_out = split_by_group(labels.y, labels.weight, labels.groups, share, seed)
    rest: Sequence[int] = [] if held_out is None else held_out.tolist()
    weights = labels.weight.copy()
    weights[rest] = 0
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
        **held_out_accuracy(classifier, labels, rest),
    }
