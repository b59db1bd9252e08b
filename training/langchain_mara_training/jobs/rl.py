"""The job of `mara rl`: runs `MaraSAC` on a run folder with the settings of a recipe."""

import math
import shlex
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from langchain_mara.exceptions import OptionsError
from langchain_mara_training import run_folder
from langchain_mara_training.data.readers import read_prompts
from langchain_mara_training.jobs.examples import Example, prompt_examples
from langchain_mara_training.jobs.inputs import (
    BUNDLED_MODEL,
    DECODING,
    Options,
    Values,
    load_llm,
    load_rows,
    require_agent,
)
from langchain_mara_training.reinforcement.actor_critic import UpdateOptions
from langchain_mara_training.reinforcement.penalties import EnvironmentOptions
from langchain_mara_training.reinforcement.recipe import PromptData, Recipe
from langchain_mara_training.reinforcement.sac import MaraSAC
from langchain_mara_training.reinforcement.tracking import make_trackers
from langchain_mara_training.rewards.specs import current_folder_first, names_code, reward_function
from langchain_mara_training.storage.records import Config

_COUNTS = (
    "episodes", "parallel", "workers", "width", "batch_size", "updates", "warm_up", "buffer_size", "evaluate_every",
)  # fmt: skip
_FIRST_KIND = "state"  # jobs from before there was a choice do not name it, and may resume
# Options of the command that no recipe has.
_NOT_OF_A_RECIPE = {
    "evaluation": None, "limit": None, "device": None, "tracker": None, "data_name": None, "data_revision": None,
}  # fmt: skip


def resolve_options(recipe: Recipe, given: Options) -> Config:
    """The options of a job: those given, and the recipe's for the rest.

    If you give other data, no setting of the recipe's data is used. If you give other rewards, the recipe's weights
    are not used.

    Args:
        recipe: Settings for the options that are not given.
        given: Options of the command; values that are None or empty are not given.

    Raises:
        OptionsError: If the recipe names a function to import, and the same rewards are not given.
    """
    set_options = {name: value for name, value in given.items() if value not in (None, [], ())}
    recipe_options = recipe.options()
    if "data" in set_options:
        recipe_options |= {name: PromptData.model_fields[name].default for name in ("split", "prompt_column")}
    if list(set_options.get("reward", recipe_options["reward"])) != recipe_options["reward"]:
        recipe_options["reward_weight"] = None
    elif "reward" not in set_options:
        _refuse_code(recipe_options["reward"])
    config = run_folder.resolved({**recipe_options, **_NOT_OF_A_RECIPE, **set_options})
    if config["kind"] == _FIRST_KIND:
        del config["kind"]
    make = EnvironmentOptions.reference if config["preset"] == "reference" else EnvironmentOptions
    return {**config, "environment": make(**config["environment"]).model_dump()}


@current_folder_first()
def reinforce(output: Path, options: Options) -> Values:
    """Trains an agent by reinforcement and saves it with its model card.

    Args:
        output: Run folder. An interrupted job resumes there.
        options: Options as `resolve_options` returns them.

    Returns:
        Counts and scores at the end of training, and its time.

    Raises:
        OptionsError: If there are no prompts or no rewards, or a tracker is not available.
        MaraError: If data, model, agent, rewards or the run folder cannot be used.
    """
    _check_required(options)
    run = run_folder.Run(output, "rl", options)
    # Made only to report an unavailable tracker early; `MaraSAC` makes its own.
    make_trackers(options["tracker"] or (), run.folder)
    rows = load_rows(options, partial(read_prompts, prompt_column=options["prompt_column"]))
    held_out = None if options["evaluation"] is None else read_prompts(options["evaluation"])
    require_agent(options)
    sac = _estimator(options, run)
    with run.working():
        started = time.perf_counter()
        sac.fit(rows, evaluation=held_out)
        seconds = time.perf_counter() - started
        values = _values(sac)
        run.save_agent(sac.agent_, _tables(run.config, values))
        run.log("trained", **values, seconds=seconds)
    return {**values, "seconds": seconds}


def examples(output: Path, options: Options) -> tuple[list[Example], int]:
    """The first prompts as `reinforce` would read them, and the number of prompts. Nothing is written.

    Args:
        output: Run folder.
        options: Options as `resolve_options` returns them.

    Raises:
        OptionsError: If there are no prompts or no rewards.
        MaraError: If data, model, agent or the run folder cannot be used.
    """
    _check_required(options)
    run_folder.Run(output, "rl", options)
    rows = load_rows(options, partial(read_prompts, prompt_column=options["prompt_column"]))
    require_agent(options)
    return prompt_examples(load_llm(options, options["device"]), rows), len(rows)


def _refuse_code(rewards: Sequence[str]) -> None:
    if any(map(names_code, rewards)):
        flags = shlex.join(flag for spec in rewards for flag in ("--reward", spec))
        raise OptionsError(
            f"The recipe names a function to import. A file runs no code, so name it yourself: add {flags}."
        )


def _check_required(options: Options) -> None:
    if options["data"] is None:
        raise OptionsError("There are no prompts to answer. Give a file of prompts, or a --recipe that names one.")
    if not options["reward"]:
        raise OptionsError("Answers are scored by reward functions. Give at least one --reward, or a --recipe.")


def _estimator(options: Options, run: run_folder.Run) -> MaraSAC:
    device = options["device"]
    # Rewards come before the policy model, because their errors show faster.
    rewards = [reward_function(spec, device) for spec in options["reward"]]
    decoding = {name: options[name] for name in DECODING}
    return MaraSAC(
        load_llm(options, device, batch_size=options["parallel"], **decoding),
        rewards,
        reward_weights=options["reward_weight"],
        preset=options["preset"],
        environment=EnvironmentOptions(**options["environment"]),
        update=UpdateOptions(**options["update"]),
        **{name: options[name] for name in _COUNTS},
        kind=options.get("kind", _FIRST_KIND),
        output=run.folder,
        trackers=options["tracker"] or (),
        random_state=options["seed"],
        verbose=True,
    )


def _values(sac: MaraSAC) -> Values:
    """Values of the last history entry, and the best evaluation, because that agent is kept."""
    last = sac.history_[-1]
    evaluations = [entry["evaluation"] for entry in sac.history_ if not math.isnan(entry.get("evaluation", math.nan))]
    names = ("episodes", "passes", "updates", "score", "temperature")
    return {**{name: last[name] for name in names}, **({"evaluation": max(evaluations)} if evaluations else {})}


def _tables(config: Config, values: Values) -> dict[str, Values]:
    """Tables of the agent's model card."""
    options = {name: value for name, value in config.items() if not isinstance(value, dict)}
    return {
        "Reinforcement": {**options, "model": config["model"] or BUNDLED_MODEL},
        "Environment": config["environment"],
        "Update": config["update"],
        "Metrics": values,
    }
