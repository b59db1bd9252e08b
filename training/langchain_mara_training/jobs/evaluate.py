"""What `mara evaluate` does: an agent compared with plain decoding and best-of-n."""

from functools import partial
from pathlib import Path
from typing import NamedTuple

from langchain_mara_training import run_folder
from langchain_mara_training.data.readers import read_prompts
from langchain_mara_training.evaluation.comparison import CHUNK_BATCHES, Comparison, compare
from langchain_mara_training.evaluation.systems import BestOf, Decoding, System
from langchain_mara_training.jobs.inputs import DECODING, Options, Values, load_llm, load_rows
from langchain_mara_training.rewards.specs import reward_function
from langchain_mara_training.rewards.weighted import WeightedRewards
from langchain_mara_training.storage.records import append_record, library_versions, write_json


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


def evaluate(report: Path | None, output: Path | None, options: Options) -> Evaluation:
    """Compares an agent with plain decoding and best-of-n.

    Args:
        report: File for what was found, with all answers.
        output: Folder of the comparison; what was interrupted goes on there.
        options: Of the command; what is None comes from the agent's run, where it has one.

    Raises:
        MaraError: As the parts do.
    """
    labelled = run_folder.agent_config(options["agent"])
    config = {**options, **_from_run(options, labelled)}
    rows = load_rows(config, partial(read_prompts, prompt_column=config["prompt_column"]))
    functions = [reward_function(one, config["device"]) for one in config["reward"]]
    rewards = WeightedRewards(functions, config["reward_weight"])
    harmful = None if config["harmful"] is None else reward_function(config["harmful"], config["device"])
    decoding = {name: config[name] for name in (*DECODING, "batch_size", "seed")}
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
        append_record(config["agent"], "evaluate", "evaluated", config=config, systems=summaries)
    if report is not None:
        whole = {"config": config, "versions": library_versions(), "systems": summaries}
        report.parent.mkdir(parents=True, exist_ok=True)
        write_json(report, {**whole, "answers": found.side_by_side()})
    return Evaluation(f"{len(rows)} prompts, by {', '.join(rewards.names)}", summaries, found)


def _from_run(options: Options, labelled: Options) -> Values:
    """What the call leaves open: of the run that the agent goes back to, or else the usual."""
    usual = {name: labelled.get(name, value) for name, value in {"model": None, **DECODING}.items()}
    found = {name: value for name, value in usual.items() if options[name] is None}
    if options["reward"] is None:
        weights = options["reward_weight"] or labelled.get("reward_weight")
        found |= {"reward": run_folder.own_rewards(labelled), "reward_weight": weights}
    return found
