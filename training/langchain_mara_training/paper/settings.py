"""Settings of the paper's tables: models with agents and rivals, prompts, rewards, and the figures it reports."""

from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Literal, Self, get_args

from pydantic import Field, model_validator

from langchain_mara.exceptions import OptionsError
from langchain_mara_training.data.readers import Row, read_prompts
from langchain_mara_training.storage.settings import Count, DecodingSettings, Settings, did_you_mean, read_settings

_SHIPPED = files("langchain_mara_training") / "recipes" / "tables" / "paper.yaml"

Rival = Literal["RLHF", "DPO", "Aligner"]
"""What the second table compares with: two tuned models, and a corrector that rewrites plain answers."""
Figures = dict[str, float]
"""Preference rates in percentage points, by the name of the data set."""


class PromptSet(Settings):
    """A data set's prompts."""

    source: str
    """A .json, .jsonl or .parquet file, or a data set's name on the hub."""
    split: str = "test"
    """Which split of a data set on the hub."""
    prompt_column: str | None = None
    """Column that holds the prompts; by default prompt, instruction or question."""
    limit: Count | None = None
    """Most prompts to take, the first ones; all by default."""

    def read(self, limit: int | None = None) -> list[Row]:
        """The prompts, at most `limit`.

        Raises:
            DataError: If they cannot be read.
        """
        rows = read_prompts(self.source, self.split, self.prompt_column)
        return rows[: min(one or len(rows) for one in (limit, self.limit))]


class TableModel(Settings):
    """An upstream model, and what is compared on it."""

    source: str
    """Hub id or folder."""
    agent: str | None = None
    """Its agent: a run folder, folder, hub id, .pth, or repo:file; null where it has to be given."""
    weights: dict[str, float]
    """How much each reward counts."""
    rivals: dict[Rival, str | None] = Field(default_factory=dict)
    """Checkpoints of the rivals; null where they have to be given."""


class PaperFigures(Settings):
    """What the paper reports."""

    upstream: dict[str, Figures] = Field(default_factory=dict)
    """Table 1: of each model, against itself without agent."""
    rivals: dict[Rival, Figures] = Field(default_factory=dict)
    """Table 2: against each rival, on average over the models."""
    transfer: Figures = Field(default_factory=dict)
    """Table 3: with agents of other models, on average."""


class TableSettings(Settings):
    """All that `mara table` measures.

    Example:
        >>> TableSettings.load().models["mistral-v0.3"].source
        'mistralai/Mistral-7B-Instruct-v0.3'
    """

    models: dict[str, TableModel] = Field(min_length=1)
    """Upstream models, by the names that tables give them."""
    prompts: dict[str, PromptSet] = Field(min_length=1)
    """Data sets, by the names that tables give them."""
    rewards: dict[str, str] = Field(min_length=1)
    """What answers are scored by, as `reward_specs.reward_function` reads it, by the names that weights use."""
    decoding: DecodingSettings = DecodingSettings()
    """Candidates and length of the answers, the same for all systems."""
    paper: PaperFigures = PaperFigures()
    """Figures that are printed beside the measured ones."""
    seed: int = Field(default=0, ge=0)
    """Of the intervals; no system draws."""

    @model_validator(mode="after")
    def _weights_have_rewards(self) -> Self:
        for name, model in self.models.items():
            if set(model.weights) != set(self.rewards):
                raise ValueError(f"must weigh {', '.join(self.rewards)} in models.{name}, no more and no less")
        return self

    @classmethod
    def load(cls, file: str | Path | None = None) -> Self:
        """Reads settings; by default the shipped ones.

        Raises:
            OptionsError: If there is no such file, or it holds something else.
        """
        if file is None:
            return read_settings(cls, _SHIPPED, "paper's tables")
        path = Path(file).expanduser()
        if not path.is_file():
            raise OptionsError(f"There is no file {path}. Give the settings of tables as YAML.")
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
        """The same with other sources.

        Args:
            models: Each `NAME=SOURCE`; a `NAME` alone keeps its source.
            agents: Each `MODEL=AGENT`.
            rivals: Each `MODEL/RIVAL=SOURCE`.
            prompts: Each `NAME=FILE`; all of it is read. Once one is given, the data sets that are not named are left
                out; a `NAME` alone keeps its source.
            rewards: Each `NAME=SPEC`.

        Raises:
            OptionsError: If something is named that is not there.
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
        values["rewards"] |= _pairs(rewards, self.rewards, "reward")
        chosen = _chosen(prompts, self.prompts, "data set")
        given = {name: {"source": source} for name, source in chosen.items() if source}
        if chosen:
            values["prompts"] = {name: given.get(name, values["prompts"][name]) for name in chosen}
        return type(self)(**values)


def _pairs(given: Iterable[str], known: Iterable[str], what: str) -> dict[str, str]:
    found = _chosen(given, known, what)
    for name, source in found.items():
        if not source:
            raise OptionsError(f"Say where {name} is: {name}=SOURCE.")
    return found


def _chosen(given: Iterable[str], known: Iterable[str], what: str) -> dict[str, str]:
    """Source of each name, empty where none is given."""
    found = {name: source for name, _, source in (one.partition("=") for one in given)}
    for name in found:
        known_name(name, known, what)
    return found


def known_name(name: str, known: Iterable[str], what: str) -> str:
    """A name that is known.

    Raises:
        OptionsError: If it is not, with the nearest that is.
    """
    names = sorted(known)
    if name not in names:
        meant = did_you_mean(name, names)
        raise OptionsError(f"There is no {what} {name!r} in this table.{meant} Give one of {', '.join(names)}.")
    return name
