"""Settings of the paper's tables: models with agents and rivals, prompts, rewards, and the paper's figures."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Literal, Self, get_args

from pydantic import Field, model_validator

from langchain_mara.exceptions import OptionsError
from langchain_mara_training.data.readers import Row, read_prompts
from langchain_mara_training.rewards.specs import names_code
from langchain_mara_training.storage.settings import Count, DecodingSettings, Settings, did_you_mean, read_settings

_SHIPPED = files("langchain_mara_training") / "recipes" / "tables" / "paper.yaml"

Rival = Literal["RLHF", "DPO", "Aligner"]
"""Rivals in the second table: two fine-tuned models, and a corrector that rewrites plain answers."""
Figures = dict[str, float]
"""Preference rates in percentage points, by the name of the data set."""


class PromptSet(Settings):
    """The prompts of a data set."""

    source: str
    """A .json, .jsonl or .parquet file, or the name of a data set on the Hugging Face Hub."""
    split: str = "test"
    """Split of a data set on the hub."""
    prompt_column: str | None = None
    """Column that holds the prompts; by default prompt, instruction or question."""
    limit: Count | None = None
    """Number of prompts to use, from the first on; by default all."""

    def read(self, limit: int | None = None) -> list[Row]:
        """Reads the prompts.

        Args:
            limit: Largest number of prompts, in addition to `self.limit`.

        Raises:
            DataError: If they cannot be read.
        """
        rows = read_prompts(self.source, self.split, self.prompt_column)
        return rows[: min(bound or len(rows) for bound in (limit, self.limit))]


class TableModel(Settings):
    """An upstream model, its agent and its rivals."""

    source: str
    """Hub id or folder."""
    agent: str | None = None
    """Agent of the model: a run folder, folder, hub id, .pth, or repo:file; null if the user must give it."""
    weights: dict[str, float]
    """Weight of each reward."""
    rivals: dict[Rival, str | None] = Field(default_factory=dict)
    """Checkpoints of the rivals; null if the user must give them."""


class PaperFigures(Settings):
    """Figures that the paper reports."""

    upstream: dict[str, Figures] = Field(default_factory=dict)
    """Table 1: each model with its agent, against the same model without it."""
    rivals: dict[Rival, Figures] = Field(default_factory=dict)
    """Table 2: against each rival, averaged over the models."""
    transfer: Figures = Field(default_factory=dict)
    """Table 3: with agents of other models, averaged."""


class TableSettings(Settings):
    """All settings of `mara table`.

    Example:
        >>> TableSettings.load().models["mistral-v0.3"].source
        'mistralai/Mistral-7B-Instruct-v0.3'
    """

    models: dict[str, TableModel] = Field(min_length=1)
    """Upstream models, by their names in the tables."""
    prompts: dict[str, PromptSet] = Field(min_length=1)
    """Data sets, by their names in the tables."""
    rewards: dict[str, str] = Field(min_length=1)
    """Reward functions, as `rewards.specs.reward_function` reads them, by the names that `weights` use."""
    decoding: DecodingSettings = DecodingSettings()
    """Candidate sets and length of the answers, the same for all systems."""
    paper: PaperFigures = PaperFigures()
    """Figures of the paper, printed next to the measured ones."""
    seed: int = Field(default=0, ge=0)
    """Seed of the intervals; the systems decode deterministically."""

    @model_validator(mode="after")
    def _weights_have_rewards(self) -> Self:
        for name, model in self.models.items():
            if set(model.weights) != set(self.rewards):
                raise ValueError(f"must give weights for exactly {', '.join(self.rewards)} in models.{name}")
        return self

    @classmethod
    def load(cls, file: str | Path | None = None) -> Self:
        """Reads settings.

        Args:
            file: YAML file; by default the shipped settings.

        Raises:
            OptionsError: If there is no such file, or it holds anything but these settings.
        """
        if file is None:
            return read_settings(cls, _SHIPPED, "paper's tables")
        path = Path(file).expanduser()
        if not path.is_file():
            raise OptionsError(f"There is no file {path}. Give a YAML file with the settings of tables.")
        return read_settings(cls, path, f"file {file}")

    def with_sources(
        self,
        *,
        models: Sequence[str] = (),
        agents: Sequence[str] = (),
        rivals: Sequence[str] = (),
        prompts: Sequence[str] = (),
        rewards: Sequence[str] = (),
    ) -> Self:
        """A copy of the settings with other sources.

        Args:
            models: Items `NAME=SOURCE`; a `NAME` alone keeps its source.
            agents: Items `MODEL=AGENT`.
            rivals: Items `MODEL/RIVAL=SOURCE`.
            prompts: Items `NAME=FILE`; the whole file is read. A `NAME` alone keeps its source. If there are any
                items, data sets without one are left out.
            rewards: Items `NAME=SPEC`.

        Raises:
            OptionsError: If a name is unknown, a source is missing, or the settings name a function to import as a
                reward and `rewards` does not.
        """
        values = self.model_dump()
        for name, source in _chosen(models, self.models, "model").items():
            values["models"][name]["source"] = source or self.models[name].source
        for name, source in _pairs(agents, self.models, "model").items():
            values["models"][name]["agent"] = source
        contests = {f"{name}/{rival}" for name in self.models for rival in get_args(Rival)}
        for name, source in _pairs(rivals, contests, "rival").items():
            model, _, rival = name.partition("/")
            values["models"][model]["rivals"][rival] = source
        values["rewards"] |= (named := _pairs(rewards, self.rewards, "reward"))
        _refuse_code({name: spec for name, spec in self.rewards.items() if name not in named})
        chosen = _chosen(prompts, self.prompts, "data set")
        replaced = {name: {"source": source} for name, source in chosen.items() if source}
        if chosen:
            values["prompts"] = {name: replaced.get(name, values["prompts"][name]) for name in chosen}
        return type(self)(**values)


def _refuse_code(rewards: Mapping[str, str]) -> None:
    functions = [f"{name}={spec}" for name, spec in rewards.items() if names_code(spec)]
    if functions:
        flags = shlex.join(flag for item in functions for flag in ("--rewards", item))
        raise OptionsError(
            f"The settings name a function to import. A file runs no code, so name it yourself: add {flags}."
        )


def _pairs(items: Iterable[str], known: Iterable[str], what: str) -> dict[str, str]:
    """Source of each name, for items that must have one."""
    sources = _chosen(items, known, what)
    for name, source in sources.items():
        if not source:
            raise OptionsError(f"Say where {name} is: {name}=SOURCE.")
    return sources


def _chosen(items: Iterable[str], known: Iterable[str], what: str) -> dict[str, str]:
    """Source of each name; empty if an item has none."""
    sources = {name: source for name, _, source in (item.partition("=") for item in items)}
    for name in sources:
        known_name(name, known, what)
    return sources


def known_name(name: str, known: Iterable[str], what: str) -> str:
    """Returns a name if it is known.

    Args:
        name: Name to check.
        known: Known names.
        what: Kind of thing named, for the error message.

    Raises:
        OptionsError: If the name is unknown; the message suggests the nearest known name.
    """
    names = sorted(known)
    if name not in names:
        hint = did_you_mean(name, names)
        raise OptionsError(f"There is no {what} {name!r} in this table.{hint} Give one of {', '.join(names)}.")
    return name
