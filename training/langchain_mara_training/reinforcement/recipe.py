"""Recipes: the settings of a training by reinforcement as YAML, the paper's own shipped, one file per policy model."""

from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field

from langchain_mara.exceptions import OptionsError
from langchain_mara_training.reinforcement.actor_critic import UpdateOptions
from langchain_mara_training.reinforcement.environment import EnvironmentOptions
from langchain_mara_training.storage.settings import Count, DecodingSettings, Settings, did_you_mean, read_settings

_SHIPPED = files("langchain_mara_training") / "recipes"
_SUFFIX = ".yaml"


class PromptData(Settings):
    """Where the prompts come from."""

    source: str
    """A .json, .jsonl or .parquet file, or a dataset's name on the hub."""
    split: str = "train"
    """Which split of a dataset on the hub."""
    prompt_column: str = "prompt"
    """Column that holds the prompts; the others go to the reward functions."""


class Reward(Settings):
    """One of the rewards whose weighted sum scores an answer."""

    spec: str
    """As `reward_specs.reward_function` reads it, such as `beaver:PKU-Alignment/beaver-7b-v1.0-reward`."""
    weight: float = Field(default=1.0, allow_inf_nan=False)
    """Factor of this reward; below 0 for a cost."""


class Recipe(Settings):
    """All settings of `mara rl`; the defaults are those of `MaraSAC`.

    Example:
        >>> Recipe.load("llama-3.1-8b").episodes
        21000
    """

    model: str | None = None
    """Policy model, by hub id or folder; the embedded model where there is none."""
    agent: str | None = None
    """Agent that training begins with: a run folder, folder, hub id, .pth, or repo:file; by default a new one."""
    data: PromptData | None = None
    """Prompts to answer."""
    rewards: tuple[Reward, ...] = ()
    """What answers are scored by."""
    decoding: DecodingSettings = DecodingSettings()
    """Candidates and length of the answers."""
    preset: Literal["default", "reference"] = "default"
    """What `environment` leaves open: this project's environment, or that of the paper's code with its defects."""
    environment: EnvironmentOptions = EnvironmentOptions()
    """How episodes are rewarded, where it differs from the preset."""
    update: UpdateOptions = UpdateOptions()
    """How the networks learn."""
    episodes: Count = 21_000
    """Answers to play and learn from."""
    parallel: Count = 16
    """Episodes of a round, played at once; workers share them."""
    workers: int = Field(default=0, ge=0)
    """Processes that play, by Ray; with 0 this process plays and learns."""
    width: Count = 1024
    """Units of the first hidden layer of agent and critics, where there is no agent to begin with."""
    batch_size: Count = 1024
    """Transitions of a gradient step."""
    updates: Count = 10
    """Gradient steps per episode; the target critics follow once after them."""
    warm_up: Count = 64
    """Batches the replay buffer must hold before learning begins."""
    buffer_size: Count = 1_000_000
    """Most transitions to learn from, in a file of 2 d + 6 bytes each."""
    evaluate_every: Count = 160
    """Episodes between two checkpoints, each with an entry of the history and a look at the evaluation prompts."""
    seed: int = Field(default=0, ge=0)
    """Of everything that is drawn."""

    @classmethod
    def load(cls, name: str | Path) -> Self:
        """Reads a recipe.

        Args:
            name: Of a shipped recipe, or the path of a YAML file.

        Raises:
            OptionsError: If there is no such recipe, or it holds something else than these settings.
        """
        shipped = str(name) in recipe_names()
        file = _SHIPPED / f"{name}{_SUFFIX}" if shipped else Path(name).expanduser()
        if not file.is_file():
            raise OptionsError(_unknown(str(name)))
        return read_settings(cls, file, f"recipe {name}")

    def options(self) -> dict[str, Any]:
        """The settings under the names of `mara rl`'s options; of the environment only what differs from the preset."""
        settings = self.model_dump(exclude={"data", "rewards", "decoding", "environment"})
        data = {name: None if self.data is None else getattr(self.data, name) for name in PromptData.model_fields}
        return {
            "model": settings.pop("model"),
            "agent": settings.pop("agent"),
            "data": data.pop("source"),
            **data,
            "reward": [one.spec for one in self.rewards],
            "reward_weight": [one.weight for one in self.rewards],
            **self.decoding.model_dump(),
            **settings,
            "environment": self.environment.model_dump(exclude_unset=True),
        }


def recipe_names() -> list[str]:
    """Names of the shipped recipes, in order."""
    return sorted(file.name.removesuffix(_SUFFIX) for file in _SHIPPED.iterdir() if file.name.endswith(_SUFFIX))


def _unknown(name: str) -> str:
    names = recipe_names()
    return f"There is no recipe {name!r}.{did_you_mean(name, names)} Give one of {', '.join(names)}, or a YAML file."
