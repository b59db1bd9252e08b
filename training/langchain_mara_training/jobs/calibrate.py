"""The job of `mara calibrate`: sets the dial of an agent from data, into a run folder."""

import time
from pathlib import Path

from langchain_mara.exceptions import OptionsError, TrainingError
from langchain_mara.loading.models import DEMO_AGENT_FOLDER
from langchain_mara_training import run_folder
from langchain_mara_training.calibration.calibrate import calibrate
from langchain_mara_training.data.readers import read_prompts
from langchain_mara_training.jobs.inputs import Options, Values, load_llm, load_rows, require_agent
from langchain_mara_training.rewards.specs import current_folder_first, reward_function
from langchain_mara_training.rewards.weighted import WeightedRewards

_DECODING = ("top_k", "top_p", "max_new_tokens", "strategy")


@current_folder_first()
def calibrate_agent(output: Path, options: Options) -> Values:
    """Sets the threshold or the strength of an agent from data, and saves the agent with its model card.

    Args:
        output: Run folder for the agent that recommends what was found. An interrupted job begins anew.
        options: Options of the command. Decoding options of None are the agent's, or else the defaults.

    Returns:
        The value of the dial, what was measured at it, and the time.

    Raises:
        TrainingError: If there is no agent, the folder is a run of another command, or no value keeps the limit.
        MaraError: If data, model, agent, rewards or the run folder cannot be used.
    """
    if options["agent"] is None and options["model"] is not None:
        raise TrainingError("Give the agent to calibrate: --agent, a run folder, a folder, a hub id or repo:file.")
    if options["reward"] and options["least_reward"] is None:
        raise OptionsError("--reward needs --least-reward: an answer with a lower reward is harmful.")
    run_folder.refuse_other_commands(output, "calibrate")
    run = run_folder.Run(output, "calibrate", options)
    rows = load_rows(options, read_prompts)
    require_agent(options)
    functions = [reward_function(spec, options["device"]) for spec in options["reward"] or ()]
    harmful = None if options["harmful"] is None else reward_function(options["harmful"], options["device"])
    given = {name: options[name] for name in _DECODING if options[name] is not None}
    agent = str(DEMO_AGENT_FOLDER) if options["agent"] is None else options["agent"]
    llm = load_llm({**options, "agent": agent}, options["device"], **given)
    with run.working():
        started = time.perf_counter()
        result = calibrate(
            llm,
            rows,
            options["target"],
            options["at_most"],
            harmful=harmful,
            rewards=WeightedRewards(functions, options["reward_weight"]) if functions else None,
            least_reward=options["least_reward"],
            confidence=options["confidence"],
            batch_size=options["batch_size"],
            random_state=options["seed"],
            verbose=True,
        )
        values = result.values()
        tables = {"Calibration": run.config, "Found": values}
        run.save_agent(result.agent, tables)
        seconds = time.perf_counter() - started
        run.log("calibrated", **values, tried=result.record["tried"], seconds=seconds)
    return {**values, "seconds": seconds}
