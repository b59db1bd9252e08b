"""What `mara label` does: labels on a run folder."""

import time
from pathlib import Path

from langchain_mara.exceptions import OptionsError
from langchain_mara_training import run_folder
from langchain_mara_training.data.readers import read_pairs, read_prompts
from langchain_mara_training.jobs.inputs import DECODING, Options, Values, load_llm, load_rows
from langchain_mara_training.labeling.preference import PreferenceLabeler
from langchain_mara_training.labeling.rollout import RolloutLabeler
from langchain_mara_training.rewards.specs import reward_function
from langchain_mara_training.storage.distributed import processes

_ROLLOUTS = ("generations", "positions", "candidates", "continuations", "value", "margin", "ties", "weighting")


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
    run = run_folder.Run(output, "label", options)
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


def _labeler(options: Options, device: str | None) -> PreferenceLabeler | RolloutLabeler:
    seed = options["seed"]
    sets = {name: options[name] for name in DECODING if name in options}
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
