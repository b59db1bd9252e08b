"""What `mara rl` does, behind its options: `MaraSAC` on a run folder, by the settings of a recipe."""

import time
from functools import partial
from pathlib import Path

from langchain_mara.exceptions import OptionsError
from langchain_mara_training import run_folder
from langchain_mara_training.data.readers import read_prompts
from langchain_mara_training.jobs.inputs import EMBEDDED, Options, Values, load_llm, load_rows
from langchain_mara_training.reinforcement.actor_critic import UpdateOptions
from langchain_mara_training.reinforcement.environment import EnvironmentOptions
from langchain_mara_training.reinforcement.recipe import PromptData, Recipe
from langchain_mara_training.reinforcement.sac import MaraSAC
from langchain_mara_training.reinforcement.tracking import make_trackers
from langchain_mara_training.rewards.specs import reward_function

_COUNTS = (
    "episodes", "parallel", "workers", "width", "batch_size", "updates", "warm_up", "buffer_size", "evaluate_every",
)  # fmt: skip
_DECODING = ("top_k", "top_p", "max_new_tokens")
_NOT_OF_A_RECIPE = {"evaluation": None, "limit": None, "device": None, "tracker": None}


def resolve_options(recipe: Recipe, given: Options) -> run_folder.Config:
    """The options of a job: what is given, and for the rest the recipe's.

    Args:
        recipe: Settings.
        given: Options of the command; what is None or empty is not given. Other data takes nothing from the recipe's,
            and other rewards have other weights.
    """
    said = {name: value for name, value in given.items() if value not in (None, [], ())}
    own = recipe.options()
    if "data" in said:
        own |= {name: PromptData.model_fields[name].default for name in ("split", "prompt_column")}
    if "reward" in said:
        own["reward_weight"] = None
    config = run_folder.resolved({**own, **_NOT_OF_A_RECIPE, **said})
    make = EnvironmentOptions.reference if config["preset"] == "reference" else EnvironmentOptions
    return {**config, "environment": make(**config["environment"]).model_dump()}


def reinforce(output: Path, options: Options) -> Values:
    """Trains an agent by reinforcement, and saves it with its model card.

    Args:
        output: Run folder; what was interrupted goes on there.
        options: As `resolve_options` gives them.

    Returns:
        How the training ended.

    Raises:
        OptionsError: If there are no prompts or no rewards, or a tracker cannot be had.
        MaraError: As the parts do.
    """
    _require(options)
    run = run_folder.Run(output, "rl", options)
    make_trackers(options["tracker"] or (), run.folder)
    rows = load_rows(options, partial(read_prompts, prompt_column=options["prompt_column"]))
    held_out = None if options["evaluation"] is None else read_prompts(options["evaluation"])
    sac = _estimator(options, run)
    run.begin()
    started = time.perf_counter()
    sac.fit(rows, evaluation=held_out)
    seconds = time.perf_counter() - started
    values = _values(sac)
    run.save_agent(sac.agent_, _tables(run.config, values))
    run.log("trained", **values, seconds=seconds)
    return {**values, "seconds": seconds}


def _require(options: Options) -> None:
    if options["data"] is None:
        raise OptionsError("There are no prompts to answer. Give a file of prompts, or a --recipe that names one.")
    if not options["reward"]:
        raise OptionsError("Answers are scored by reward functions. Give at least one --reward, or a --recipe.")


def _estimator(options: Options, run: run_folder.Run) -> MaraSAC:
    device = options["device"]
    # Before the policy model, because they fail faster.
    rewards = [reward_function(one, device) for one in options["reward"]]
    decoding = {name: options[name] for name in _DECODING}
    return MaraSAC(
        load_llm(options, device, batch_size=options["parallel"], **decoding),
        rewards,
        reward_weights=options["reward_weight"],
        preset=options["preset"],
        environment=EnvironmentOptions(**options["environment"]),
        update=UpdateOptions(**options["update"]),
        **{name: options[name] for name in _COUNTS},
        output=run.folder,
        trackers=options["tracker"] or (),
        random_state=options["seed"],
        verbose=True,
    )


def _values(sac: MaraSAC) -> Values:
    """The last entry of the history; of the evaluations the best, since that agent is kept."""
    last = sac.history_[-1]
    seen = [one["evaluation"] for one in sac.history_ if "evaluation" in one]
    names = ("episodes", "passes", "updates", "score", "temperature")
    return {**{name: last[name] for name in names}, **({"evaluation": max(seen)} if seen else {})}


def _tables(config: run_folder.Config, values: Values) -> dict[str, Values]:
    """Of the agent's card."""
    plain = {name: value for name, value in config.items() if not isinstance(value, dict)}
    model = {"model": config["model"] or EMBEDDED}
    return {
        "Reinforcement": {**plain, **model},
        "Environment": config["environment"],
        "Update": config["update"],
        "Metrics": values,
    }
