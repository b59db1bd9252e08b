"""What `mara label`, `mara fit` and `mara evaluate` do, behind their options: the library's parts on a run folder."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import datasets

from langchain_mara import MaraLLM
from langchain_mara.exceptions import MaraError, OptionsError, TrainingError
from langchain_mara_training import runs
from langchain_mara_training.classifier import MaraClassifier
from langchain_mara_training.comparison import CHUNK_BATCHES, Comparison, compare
from langchain_mara_training.data import Row, read_pairs, read_prompts
from langchain_mara_training.evaluation import held_out_accuracy
from langchain_mara_training.features import TokenLabels
from langchain_mara_training.labels import PreferenceLabeler
from langchain_mara_training.reward_specs import reward_function
from langchain_mara_training.rewards import WeightedRewards
from langchain_mara_training.rollouts import RolloutLabeler
from langchain_mara_training.shards import processes
from langchain_mara_training.systems import BestOf, Decoding, System
from langchain_mara_training.validation import split_by_group

Options = Mapping[str, Any]
"""A command's options by name, as `runs.resolved` gives them."""
Values = dict[str, Any]
"""Results by name."""

EMBEDDED = "langchain-mara demo"
_DECODING = {"top_k": 40, "top_p": 0.95, "max_new_tokens": 256}
_ROLLOUTS = ("generations", "positions", "candidates", "continuations", "value", "margin", "ties", "weighting")
_FITTING = (
    "width", "batch_size", "learning_rate", "weight_decay", "schedule", "class_weight", "mixed_precision",
    "early_stopping", "device",
)  # fmt: skip


class Evaluation(NamedTuple):
    """What `evaluate` found.

    Attributes:
        title: Of the table.
        systems: Each system's summary, by the system's name.
        comparison: All of it.
    """

    title: str
    systems: dict[str, Values]
    comparison: Comparison


def label(output: Path, options: Options) -> Values:
    """Labels a run's tokens.

    Returns:
        What was labelled; of several processes (`torchrun`), the main one alone says it and keeps the run's log.

    Raises:
        OptionsError: If rollouts have no reward.
        MaraError: As the parts do.
    """
    if options["labeler"] == "rollout" and not options["reward"]:
        raise OptionsError("Rollouts are labelled by reward functions. Give at least one --reward.")
    run = runs.Run(output, "label", options)
    state = processes()
    device = str(state.device) if options["device"] is None and state.num_processes > 1 else options["device"]
    rows = load_rows(options, read_pairs if options["labeler"] == "preference" else read_prompts)
    labeler = _labeler(options, device)
    if state.is_main_process:
        run.begin()
    started = time.perf_counter()
    labels = labeler.label(rows, run.features)
    if not state.is_main_process:
        return {}
    seconds = time.perf_counter() - started
    values = {
        "labels": len(labels),
        "accept share": float(labels.y.mean()),
        "groups": len(set(labels.groups.tolist())),
        # Shards that were there cost no time.
        "labels/s": None if run.resumed else len(labels) / seconds,
        "seconds": seconds,
    }
    run.log("labelled", **values)
    return values


def fit(source: Path, output: Path | None, options: Options) -> Values:
    """Fits an agent to a run's labels and saves it, with its model card.

    Args:
        source: Run folder with the labels.
        output: Run folder for the agent; `source` by default.
        options: Of the command.

    Raises:
        MaraError: As the parts do.
    """
    labels = runs.read_labels(source)
    elsewhere = None if output is None else str(source.expanduser().absolute())
    run = runs.Run(output or source, "fit", {**options, "labels": elsewhere})
    labelled = runs.read_config(source).get("label", {})
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


def evaluate(report: Path | None, output: Path | None, options: Options) -> Evaluation:
    """Compares an agent with plain decoding and best-of-n.

    Args:
        report: File for what was found, with all answers.
        output: Folder of the comparison; what was interrupted goes on there.
        options: Of the command; what is None comes from the agent's run, where it has one.

    Raises:
        MaraError: As the parts do.
    """
    labelled = runs.agent_config(options["agent"])
    config = {**options, **_from_run(options, labelled)}
    rows = load_rows(config, partial(read_prompts, prompt_column=config["prompt_column"]))
    functions = [reward_function(one, config["device"]) for one in config["reward"]]
    rewards = WeightedRewards(functions, config["reward_weight"])
    harmful = None if config["harmful"] is None else reward_function(config["harmful"], config["device"])
    decoding = {name: config[name] for name in (*_DECODING, "batch_size", "seed")}
    llm = load_llm(config, config["device"], accept_threshold=config["threshold"], **decoding)
    systems: list[System] = [Decoding("plain", llm.with_agent(None)), Decoding("MARA", llm)]
    found = compare(
        [*systems, *(BestOf(llm, rewards, n) for n in config["best_of"] or ())],
        rows,
        rewards,
        output,
        harmful=harmful,
        chunk=CHUNK_BATCHES * config["batch_size"],
        random_state=config["seed"],
        facts={name: config[name] for name in ("reward", "harmful")},
        verbose=True,
    )
    summaries = found.summaries()
    if labelled:
        runs.append_record(config["agent"], "evaluate", "evaluated", config=config, systems=summaries)
    if report is not None:
        whole = {"config": config, "versions": runs.library_versions(), "systems": summaries}
        report.parent.mkdir(parents=True, exist_ok=True)
        runs.write_json(report, {**whole, "answers": found.side_by_side()})
    return Evaluation(f"{len(rows)} prompts, by {', '.join(rewards.names)}", summaries, found)


def load_llm(options: Options, device: str | None, **fields: Any) -> MaraLLM:
    """The policy model and agent that a command's options name; the embedded model where they name none.

    Args:
        options: With `model` and perhaps `agent`, which may be a run folder.
        device: Where to compute.
        fields: Other fields of `MaraLLM`.

    Raises:
        TrainingError: If a run folder has no agent yet.
        MaraError: As `MaraLLM.from_model_id` does.
    """
    agent = options.get("agent")
    fields |= {"agent": None if agent is None else runs.agent_source(agent), "device": device}
    model = options["model"]
    return MaraLLM.demo(**fields) if model is None else MaraLLM.from_model_id(model, **fields)


def load_rows(options: Options, read: Callable[[str, str], list[Row]]) -> list[Row]:
    """The rows that a command's options name.

    Args:
        options: With `data`, `split` and `limit`.
        read: Reads a source and its split.

    Raises:
        DataError: If they cannot be read.
    """
    datasets.disable_progress_bars()
    return read(options["data"], options["split"])[: options["limit"]]


def _labeler(options: Options, device: str | None) -> PreferenceLabeler | RolloutLabeler:
    seed = options["seed"]
    sets = {name: options[name] for name in _DECODING if name in options}
    if options["labeler"] == "preference":
        llm = load_llm(options, device, **sets)
        return PreferenceLabeler(llm, candidate_filter=not options["all_tokens"], random_state=seed)
    # Before the model, because they fail faster.
    functions = [reward_function(one, device) for one in options["reward"]]
    given = {name: options[name] for name in _ROLLOUTS}
    weights = options["reward_weight"]
    return RolloutLabeler(
        load_llm(options, device, **sets), functions, reward_weights=weights, random_state=seed, **given
    )


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


def _from_run(options: Options, labelled: Options) -> Values:
    """What the call leaves open: of the run that the agent goes back to, or else the usual."""
    usual = {name: labelled.get(name, value) for name, value in {"model": None, **_DECODING}.items()}
    found = {name: value for name, value in usual.items() if options[name] is None}
    if options["reward"] is None:
        weights = options["reward_weight"] or labelled.get("reward_weight")
        found |= {"reward": runs.own_rewards(labelled), "reward_weight": weights}
    return found
