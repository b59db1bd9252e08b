"""The job of `mara distill`: distills an agent into a look-ahead agent, into a run folder."""

import time
from pathlib import Path

from langchain_mara.exceptions import TrainingError
from langchain_mara.loading.models import DEMO_AGENT_FOLDER
from langchain_mara_training import run_folder
from langchain_mara_training.data.readers import read_prompts
from langchain_mara_training.distillation.distill import default_classifier, distill
from langchain_mara_training.jobs.inputs import BUNDLED_MODEL, DECODING, Options, Values, load_llm, load_rows
from langchain_mara_training.rewards.specs import current_folder_first, reward_function
from langchain_mara_training.rewards.weighted import WeightedRewards

_DISTILLING = ("answers", "rounds", "held_out")


@current_folder_first()
def distill_agent(output: Path, options: Options) -> Values:
    """Distills an agent into a look-ahead agent and saves it with its model card.

    Args:
        output: Run folder for the agent. An interrupted job begins anew.
        options: Options of the command.

    Returns:
        Agreement of both agents and, with rewards, their preference rates; and the time.

    Raises:
        TrainingError: If there is no agent to distill, or the folder is a run of another command.
        MaraError: If data, model, agent, rewards or the run folder cannot be used.
    """
    if options["agent"] is None and options["model"] is not None:
        raise TrainingError("Give the agent to distill: --agent, a run folder, a folder, a hub id or repo:file.")
    run_folder.refuse_other_commands(output, "distill")
    run = run_folder.Run(output, "distill", options)
    rows = load_rows(options, read_prompts)
    # Rewards come before the model, because their errors show faster.
    functions = [reward_function(spec, options["device"]) for spec in options["reward"] or ()]
    rewards = WeightedRewards(functions, options["reward_weight"]) if functions else None
    decoding = {name: options[name] for name in DECODING}
    llm = load_llm({**options, "agent": None}, options["device"], **decoding)
    agent = DEMO_AGENT_FOLDER if options["agent"] is None else run_folder.agent_source(options["agent"])
    classifier = default_classifier(options["model"] or BUNDLED_MODEL, options["seed"])
    classifier.set_params(width=options["width"], rank=options["rank"] or None, device=options["device"])
    with run.working():
        started = time.perf_counter()
        result = distill(
            agent,
            llm,
            rows,
            rewards=rewards,
            classifier=classifier,
            random_state=options["seed"],
            **{name: options[name] for name in _DISTILLING},
        )
        values = result.values()
        run.save_agent(result.agent, {"Distillation": run.config, "Metrics": values})
        seconds = time.perf_counter() - started
        run.log("distilled", **values, seconds=seconds)
    return {**values, "seconds": seconds}
