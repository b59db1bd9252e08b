"""The job of `mara label`: labels tokens into a run folder."""

import time
from pathlib import Path

from langchain_mara.exceptions import OptionsError
from langchain_mara_training import run_folder
from langchain_mara_training.data.readers import iterate_feedback, iterate_prompts
from langchain_mara_training.jobs.engines import IN_PROCESS, EngineChoice, Made
from langchain_mara_training.jobs.examples import EXAMPLES, Example, pair_examples, prompt_examples
from langchain_mara_training.jobs.inputs import (
    DECODING,
    Options,
    Values,
    load_llm,
    no_progress_bars,
    open_rows,
    require_agent,
)
from langchain_mara_training.labeling.preference import PreferenceLabeler
from langchain_mara_training.labeling.rollout import RolloutLabeler
from langchain_mara_training.labeling.rollout_options import RolloutOptions
from langchain_mara_training.rewards.specs import current_folder_first, reward_function
from langchain_mara_training.storage.distributed import processes

FIRST_BAD_ROWS = "first bad rows"
"""Name of the sentences about skipped rows among the values."""


def label_examples(output: Path, options: Options) -> tuple[list[Example], int]:
    """The first rows of the data as `label` would read them, and the number of rows. Nothing is written.

    Args:
        output: Run folder.
        options: Options of the command.

    Raises:
        MaraError: If data, model or the run folder cannot be used.
    """
    run_folder.Run(output, "label", options)
    is_preference = options["labeler"] == "preference"
    source = open_rows(options)
    first, count = [], 0
    with no_progress_bars():
        for numbered in (iterate_feedback if is_preference else iterate_prompts)(source, report=source.report):
            count += 1
            first += [numbered.row] if count <= EXAMPLES else []
    require_agent(options)
    llm = load_llm(options, options["device"])
    return (pair_examples if is_preference else prompt_examples)(llm, first), count


@current_folder_first()
def label(output: Path, options: Options, choice: EngineChoice = IN_PROCESS) -> Values:
    """Labels tokens into a run folder.

    Args:
        output: Run folder. An interrupted job resumes there, with any engine.
        options: Options of the command.
        choice: What computes the shards.

    Returns:
        Counts and times, and sentences about the first bad rows if any were skipped. With several
        processes (`torchrun`), only the main one returns them and writes the log.

    Raises:
        OptionsError: If rollouts have no reward.
        MaraError: If data, model, rewards or the run folder cannot be used.
    """
    if options["labeler"] == "rollout" and not options["reward"]:
        raise OptionsError("Rollouts are labeled by reward functions. Give at least one --reward.")
    choice.check()
    run = run_folder.Run(output, "label", options)
    state = processes()
    device = str(state.device) if options["device"] is None and state.num_processes > 1 else options["device"]
    source = open_rows(options)
    require_agent(options)
    made = _made(options, device)
    labeler = made.worker
    engine = choice.engine(_made, options, made)
    with no_progress_bars():
        rows = labeler.read(source)
    with run.working(state):
        started = time.perf_counter()
        labels = labeler.label(rows, run.features, engine=engine)
        if not state.is_main_process:
            return {}
        seconds = time.perf_counter() - started
        values: Values = {
            "labels": len(labels),
            "accept share": float(labels.y.mean()),
            "groups": len(set(labels.groups.tolist())),
            # A resumed job did not compute all labels in this time.
            "labels/s": None if run.resumed else len(labels) / seconds,
            "seconds": seconds,
            **labeler.report_.counts(),
        }
        values |= {FIRST_BAD_ROWS: labeler.report_.first_bad} if labeler.report_.first_bad else {}
        run.log("labeled", **values)
    return values


def _made(options: Options, device: str | None) -> Made:
    labeler = _labeler(options, device)
    return Made(labeler, labeler.llm)


def _labeler(options: Options, device: str | None) -> PreferenceLabeler | RolloutLabeler:
    seed = options["seed"]
    decoding = {name: options[name] for name in DECODING if name in options}
    on_bad = {name: options[name] for name in ("too_long", "on_bad_row")}
    on_bad["judges"] = options.get("judges", "after")
    if options["labeler"] == "preference":
        llm = load_llm(options, device, **decoding)
        return PreferenceLabeler(llm, candidate_filter=not options["all_tokens"], random_state=seed, **on_bad)
    # Rewards come before the model, because their errors show faster.
    functions = [reward_function(spec, device) for spec in options["reward"]]
    rollouts = {name: options[name] for name in RolloutOptions.model_fields if name in options}
    weights = options["reward_weight"]
    return RolloutLabeler(
        load_llm(options, device, **decoding),
        functions,
        reward_weights=weights,
        random_state=seed,
        **on_bad,
        **rollouts,
    )
