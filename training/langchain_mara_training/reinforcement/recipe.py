"""Recipes: settings of reinforcement learning as YAML. The paper's are included, one file per policy model."""

from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field

from langchain_mara.exceptions import OptionsError
from langchain_mara.options import DEFAULT_AGENT_WIDTH
from langchain_mara_training.reinforcement.actor_critic import UpdateOptions
from langchain_mara_training.reinforcement.environment import PARALLEL
from langchain_mara_training.reinforcement.penalties import EnvironmentOptions
from langchain_mara_training.storage.settings import Count, DecodingSettings, Settings, did_you_mean, read_settings

_SHIPPED = files("langchain_mara_training") / "recipes"
_SUFFIX = ".yaml"


class PromptData(Settings):
    """Where the prompts come from."""

    source: str
    """A .json, .jsonl or .parquet file, or the name of a dataset on the Hugging Face Hub."""
    split: str = "train"
    """Split of a dataset on the hub."""
    prompt_column: str = "prompt"
    """Column that holds the prompts; the other columns go to the reward functions."""


class Reward(Settings):
    """One reward of the weighted sum that scores an answer."""

    spec: str
    """Reward function, as `rewards.specs.reward_function` reads it: `beaver:PKU-Alignment/beaver-7b-v1.0-reward`."""
    weight: float = Field(default=1.0, allow_inf_nan=False)
    """Factor of this reward; negative for a cost."""


class Recipe(Settings):
    """All settings of `mara rl`. The defaults are also those of `MaraSAC`.

    Example:
        >>> Recipe.load("llama-3.1-8b").episodes
        21000
    """

    model: str | None = None
    """Policy model, by hub id or folder; by default the bundled model."""
    agent: str | None = None
    """Agent to start from: a run folder, folder, hub id, .pth, or repo:file; by default a new one."""
    kind: Literal["state", "look-ahead"] = "state"
    """Kind of a new agent; a look-ahead agent needs one pass per token."""
    data: PromptData | None = None
    """Prompts to answer."""
    rewards: tuple[Reward, ...] = ()
    """Rewards whose weighted sum scores an answer."""
    decoding: DecodingSettings = DecodingSettings()
    """Candidate sets and length of the answers."""
    preset: Literal["default", "reference"] = "default"
    """Values `environment` does not set: those of this project, or those of the paper's code, defects included."""
    environment: EnvironmentOptions = EnvironmentOptions()
    """How episodes are rewarded, where that differs from the preset."""
    update: UpdateOptions = UpdateOptions()
    """How the networks learn."""
    episodes: Count = 21_000
    """Number of episodes to play and learn from; an episode is one answer."""
    parallel: Count = PARALLEL
    """Episodes per round, played at the same time; workers share them."""
    workers: int = Field(default=0, ge=0)
    """Ray processes that play the episodes; with 0, this process plays and learns."""
    width: Count = DEFAULT_AGENT_WIDTH
    """Units of the first hidden layer of agent and critics; ignored with an agent to start from."""
    batch_size: Count = 1024
    """Transitions per gradient step."""
    updates: Count = 10
    """Gradient steps per episode; the target critics are updated once after them."""
    warm_up: Count = 64
    """Batches the replay buffer must hold before learning begins."""
    buffer_size: Count = 1_000_000
    """Largest number of transitions to learn from; each takes 2 d + 6 bytes on disk."""
    evaluate_every: Count = 160
    """Episodes between two checkpoints; each adds a history entry and measures on the evaluation prompts."""
    seed: int = Field(default=0, ge=0)
    """Seed of all randomness."""

    @classmethod
    def load(cls, name: str | Path) -> Self:
        """Reads a recipe.

        Args:
            name: Name of a shipped recipe, or path of a YAML file.

        Raises:
            OptionsError: If there is no such recipe, or it holds anything but these settings.
        """
        shipped = str(name) in recipe_names()
        file = _SHIPPED / f"{name}{_SUFFIX}" if shipped else Path(name).expanduser()
        if not file.is_file():
            raise OptionsError(_unknown(str(name)))
        return read_settings(cls, file, f"recipe {name}")

    def options(self) -> dict[str, Any]:
        """The settings by the names of `mara rl`'s options; the environment only where it differs from the preset."""
        settings = self.model_dump(exclude={"data", "rewards", "decoding", "environment"})
        data = {name: None if self.data is None else getattr(self.data, name) for name in PromptData.model_fields}
        return {
            "model": settings.pop("model"),
            "agent": settings.pop("agent"),
            "data": data.pop("source"),
            **data,
            "reward": [reward.spec for reward in self.rewards],
            "reward_weight": [reward.weight for reward in self.rewards],
            **self.decoding.model_dump(),
            **settings,
            "environment": self.environment.model_dump(exclude_unset=True),
        }


def recipe_names() -> list[str]:
    """Names of the shipped recipes, in alphabetical order."""
    return sorted(file.name.removesuffix(_SUFFIX) for file in _SHIPPED.iterdir() if file.name.endswith(_SUFFIX))


def _unknown(name: str) -> str:
    names = recipe_names()
    return f"There is no recipe {name!r}.{did_you_mean(name, names)} Give one of {', '.join(names)}, or a YAML file."
