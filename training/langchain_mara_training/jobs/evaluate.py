"""The job of `mara evaluate`: compares an agent with plain decoding and best-of-n."""

from functools import partial
from pathlib import Path
from typing import NamedTuple

from langchain_mara_training import run_folder
from langchain_mara_training.data.readers import read_prompts
from langchain_mara_training.evaluation.comparison import CHUNK_BATCHES, Comparison, compare
from langchain_mara_training.evaluation.systems import BestOf, Decoding, System
from langchain_mara_training.jobs.inputs import DECODING, Options, Values, load_llm, load_rows
from langchain_mara_training.rewards.specs import current_folder_first, reward_function
from langchain_mara_training.rewards.weighted import WeightedRewards
from langchain_mara_training.storage.records import append_record, library_versions, write_json


class Evaluation(NamedTuple):
    """The result of `evaluate`.

    Attributes:
        title: Title of its table.
        systems: Summary of each system, by the system's name.
        comparison: The comparison that is summarized.
    """

    title: str
    systems: dict[str, Values]
    comparison: Comparison


@current_folder_first()
def evaluate(report: Path | None, output: Path | None, options: Options) -> Evaluation:
    """Compares an agent with plain decoding and best-of-n.

    Args:
        report: JSON file for the summaries and all answers.
        output: Folder of the comparison. An interrupted job resumes there.
        options: Options of the command. Values of None are taken from the agent's run, if it has one, except
            for its rewards, which must be given again.

    Raises:
        MaraError: If data, model, agent, rewards or folders cannot be used.
    """
    run_options = run_folder.agent_config(options["agent"])
    config = {**options, **_options_left_open(options, run_options)}
    rows = load_rows(config, partial(read_prompts, prompt_column=config["prompt_column"]))
    functions = [reward_function(spec, config["device"]) for spec in config["reward"]]
    rewards = WeightedRewards(functions, config["reward_weight"])
    harmful = None if config["harmful"] is None else reward_function(config["harmful"], config["device"])
    decoding = {name: config[name] for name in (*DECODING, "batch_size", "seed")}
    llm = load_llm(config, config["device"], accept_threshold=config["threshold"], **decoding)
    systems: list[System] = [Decoding("plain", llm.with_agent(None)), Decoding("MARA", llm)]
    comparison = compare(
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
    summaries = comparison.summaries()
    if run_options:
        append_record(config["agent"], "evaluate", "evaluated", config=config, systems=summaries)
    if report is not None:
        origin = {"config": config, "versions": library_versions()}
        report.parent.mkdir(parents=True, exist_ok=True)
        write_json(report, {**origin, "systems": summaries, "answers": comparison.side_by_side()})
    return Evaluation(f"{len(rows)} prompts, by {', '.join(rewards.names)}", summaries, comparison)


def _options_left_open(options: Options, run_options: Options) -> Values:
    """Values for the options that were not given: those of the agent's run, or else the defaults.

    Rewards count as not given until they are those of the run.
    """
    defaults = {"model": None, **DECODING}
    values: Values = {name: run_options.get(name, defaults[name]) for name in defaults if options[name] is None}
    recorded = run_options.get("reward_weight") if run_options.get("reward") else None
    values["reward_weight"] = options["reward_weight"] or recorded
    values["reward"] = run_folder.chosen_rewards(options["agent"], options["reward"], run_options)
    return values
