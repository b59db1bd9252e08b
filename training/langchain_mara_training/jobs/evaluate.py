"""The job of `mara evaluate`: compares an agent with plain decoding and best-of-n, or scores kept answers again."""

from functools import partial
from pathlib import Path
from typing import NamedTuple

from langchain_mara.exceptions import OptionsError
from langchain_mara_training import run_folder
from langchain_mara_training.data.readers import Row, read_prompts
from langchain_mara_training.evaluation.comparison import CHUNK_BATCHES, Comparison, compare
from langchain_mara_training.evaluation.rescoring import rescore
from langchain_mara_training.evaluation.scoring import Judges, Scoring
from langchain_mara_training.evaluation.systems import BestOf, Decoding, System
from langchain_mara_training.jobs.engines import IN_PROCESS, EngineChoice, Made
from langchain_mara_training.jobs.examples import Example, prompt_examples
from langchain_mara_training.jobs.inputs import DECODING, Options, Values, load_llm, load_rows, require_agent
from langchain_mara_training.rewards.calling import RewardFunction
from langchain_mara_training.rewards.specs import current_folder_first, reward_function
from langchain_mara_training.rewards.weighted import WeightedRewards
from langchain_mara_training.storage.atomic import require_file, require_folder
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
def evaluate(
    report: Path | None, output: Path | None, options: Options, choice: EngineChoice = IN_PROCESS
) -> Evaluation:
    """Compares an agent with plain decoding and best-of-n, or scores a comparison again.

    Args:
        report: JSON file for the summaries and all answers.
        output: Folder of the comparison. An interrupted job resumes there.
        options: Options of the command. Values of None are taken from the agent's run, if it has one, except
            for its rewards, which must be given again. With `rescore`, the folder of a comparison, its answers are
            scored and nothing is generated.
        choice: What asks the systems.

    Raises:
        MaraError: If data, model, agent, rewards or folders cannot be used.
    """
    _require_places(report, output)
    choice.check()
    config, comparison = _rescored(output, options) if options.get("rescore") else _compared(output, options, choice)
    summaries = comparison.summaries()
    if options["agent"] is not None and run_folder.agent_config(options["agent"]):
        append_record(options["agent"], "evaluate", "evaluated", config=config, systems=summaries)
    if report is not None:
        origin = {"config": config, "versions": library_versions()}
        report.parent.mkdir(parents=True, exist_ok=True)
        write_json(report, {**origin, "systems": summaries, "answers": comparison.side_by_side()})
    title = f"{len(comparison.prompts)} prompts, by {', '.join(comparison.reward_names)}"
    return Evaluation(title, summaries, comparison)


def examples(report: Path | None, output: Path | None, options: Options) -> tuple[list[Example], int]:
    """The first prompts as `evaluate` would read them, and the number of prompts. Nothing is written.

    Args:
        report: See `evaluate`.
        output: See `evaluate`.
        options: See `evaluate`; without `rescore`.

    Raises:
        MaraError: If data, model, agent or folders cannot be used.
    """
    _require_places(report, output)
    config = {**options, **_options_left_open(options, run_folder.agent_config(options["agent"]))}
    rows = _rows(config)
    require_agent(config)
    return prompt_examples(load_llm(config, config["device"]), rows), len(rows)


def _require_places(report: Path | None, output: Path | None) -> None:
    if output is not None:
        require_folder(output, "--output")
    if report is not None:
        require_file(report, "--report")


def _compared(output: Path | None, options: Options, choice: EngineChoice) -> tuple[Values, Comparison]:
    config = {**options, **_options_left_open(options, run_folder.agent_config(options["agent"]))}
    rows = _rows(config)
    require_agent(config)
    made = _made(config, config["device"])
    scoring: Scoring = made.worker
    comparison = compare(
        list(scoring.systems.values()),
        rows,
        scoring.judges.rewards,
        output,
        harmful=scoring.judges.harmful_function,
        chunk=CHUNK_BATCHES * config["batch_size"],
        random_state=config["seed"],
        tolerance=config.get("tolerance"),
        facts=_facts(config),
        verbose=True,
        engine=choice.engine(_made, config, made),
    )
    return config, comparison


def _made(config: Options, device: str | None) -> Made:
    """What asks plain decoding, the agent and best-of-n, and scores the answers."""
    rewards, harmful = _judges({**config, "device": device})
    decoding = {name: config[name] for name in (*DECODING, "batch_size", "seed")}
    decoding["accept_threshold"] = config["threshold"]
    # What is still open is left to the agent, which may recommend a value.
    llm = load_llm(config, device, **{name: given for name, given in decoding.items() if given is not None})
    systems: list[System] = [Decoding("plain", llm.with_agent(None)), Decoding("MARA", llm)]
    systems += [BestOf(llm, rewards, n) for n in config["best_of"] or ()]
    return Made(Scoring(Judges(rewards, harmful), systems, systems[0].answering, config["seed"]), llm)


def _rescored(output: Path | None, options: Options) -> tuple[Values, Comparison]:
    if not options["reward"]:
        raise OptionsError("Choose what scores the answers: --reward module:function, a reward model, or pairs:FILE.")
    kept = Comparison.load(options["rescore"])
    rows = None if options["data"] is None else _rows(options)
    rewards, harmful = _judges(options)
    comparison = rescore(
        kept,
        rewards,
        output,
        prompts=rows,
        harmful=harmful,
        chunk=CHUNK_BATCHES * options["batch_size"],
        tolerance=options.get("tolerance"),
        facts=_facts(options),
        verbose=True,
    )
    return dict(options), comparison


def _rows(config: Options) -> list[Row]:
    return load_rows(config, partial(read_prompts, prompt_column=config["prompt_column"]))


def _judges(config: Options) -> tuple[WeightedRewards, RewardFunction | None]:
    """The rewards, and the harm classifier if there is one."""
    functions = [reward_function(spec, config["device"]) for spec in config["reward"]]
    harmful = None if config["harmful"] is None else reward_function(config["harmful"], config["device"])
    return WeightedRewards(functions, config["reward_weight"]), harmful


def _facts(config: Options) -> Values:
    return {name: config[name] for name in ("reward", "harmful")}


def _options_left_open(options: Options, run_options: Options) -> Values:
    """Values for the options that were not given: those of the agent's run, or else None.

    Rewards count as not given until they are those of the run.
    """
    names = ("model", *DECODING)
    values: Values = {name: run_options.get(name) for name in names if options[name] is None}
    recorded = run_options.get("reward_weight") if run_options.get("reward") else None
    values["reward_weight"] = options["reward_weight"] or recorded
    values["reward"] = run_folder.chosen_rewards(options["agent"], options["reward"], run_options)
    return values
