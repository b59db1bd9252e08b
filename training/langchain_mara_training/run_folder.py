"""A run folder: what was asked for, with which libraries, what happened, and the labels, checkpoints and agent made.

    config.json     the options of each command
    versions.json   the libraries of the last command
    log.jsonl       what happened, a JSON object a line
    features/       the labels, in shards
    checkpoints/    of the fit
    fitting.pt      checkpoint of reinforcement
    buffer/         what was played in it
    agent/          the agent, with its model card

Everything but the log is written so that it is whole or not there; the log is only ever appended to.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from langchain_mara import MaraAgent
from langchain_mara.exceptions import OptionsError, TrainingError
from langchain_mara_training.labeling.shards import MANIFEST_NAME
from langchain_mara_training.labeling.token_labels import SHARD_NAME, TokenLabels
from langchain_mara_training.rewards.specs import PAIRS, split_prefix
from langchain_mara_training.storage.job_checkpoint import FILE_NAME
from langchain_mara_training.storage.model_card import Sections, save_agent
from langchain_mara_training.storage.records import Config, append_record, dump, flat, library_versions, write_json

# What a command's options bind, once it is there.
_MADE = {
    "label": Path("features", MANIFEST_NAME),
    "fit": Path("checkpoints", FILE_NAME),
    "rl": Path(FILE_NAME),
}
# Options that may change nevertheless: where to compute, for how long, and who is told.
_FREE = {"device", "episodes", "workers", "tracker"}
# Options that may be paths.
_PLACES = {"data", "model", "agent", "evaluation", "harmful"}


class Run:
    """The folder of a run, as one command uses it.

    Nothing is written before `begin`, so that a command that fails early leaves no folder behind.

    Args:
        folder: New, or of a run whose same command had the same options; then the command goes on.
        command: `label`, `fit` or `rl`.
        config: The command's resolved options, as JSON takes them.

    Attributes:
        resumed: Whether the command has begun there before.

    Raises:
        TrainingError: If the command began there with other options, another way to an agent did, or it is no folder
            of runs.
    """

    def __init__(self, folder: str | Path, command: str, config: Mapping[str, Any]) -> None:
        self.folder = Path(folder).expanduser()
        self.command = command
        if self.folder.exists() and not self.folder.is_dir():
            raise TrainingError(f"{self.folder} is a file. Give a folder as --output.")
        # Through JSON, because that is what the next call compares with.
        self.config: Config = json.loads(dump(config))
        begun = _begun(self.folder)
        self.resumed = command in begun
        if self.resumed:
            self._refuse_options(begun[command])
        for other in begun:
            # A folder has one agent.
            if (other == "rl") is not (command == "rl"):
                raise TrainingError(f"{self.folder} is a run of mara {other}. Give another --output.")

    @property
    def features(self) -> Path:
        """Folder of the labels."""
        return self.folder / "features"

    @property
    def checkpoints(self) -> Path:
        """Folder of the fit's checkpoints."""
        return self.folder / "checkpoints"

    def begin(self) -> None:
        """Takes the folder: writes configuration and versions, and logs the start."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "config.json", {**read_config(self.folder), self.command: self.config})
        write_json(self.folder / "versions.json", library_versions())
        append_record(self.folder, self.command, "resumed" if self.resumed else "started")

    def log(self, event: str, /, **values: Any) -> None:
        """Appends a record to `log.jsonl`: time, command, event and values."""
        append_record(self.folder, self.command, event, **values)

    def save_agent(self, agent: MaraAgent, sections: Sections) -> None:
        """Saves an agent with its model card; see `cards.save_agent`."""
        save_agent(agent, self.folder / "agent", sections)

    def _refuse_options(self, known: Config) -> None:
        there, now = flat(known), flat(self.config)
        differing = [
            f"{name} ({dump(there.get(name))} there, {dump(now.get(name))} now)"
            for name in sorted({*there, *now} - _FREE)
            if there.get(name) != now.get(name)
        ]
        if differing:
            raise TrainingError(
                f"In {self.folder}, mara {self.command} began with other options: {', '.join(differing)}. "
                "Give another --output, or the options it began with."
            )


def read_config(folder: str | Path) -> dict[str, Config]:
    """The options of each command that began in a folder; empty where none did.

    Raises:
        TrainingError: If `config.json` holds something else.
    """
    file = Path(folder).expanduser() / "config.json"
    if not file.is_file():
        return {}
    try:
        commands = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        commands = None
    if not isinstance(commands, dict) or not all(isinstance(one, dict) for one in commands.values()):
        raise TrainingError(f"{file} is not the configuration of a run. Give another folder.")
    return commands


def read_labels(folder: str | Path) -> TokenLabels:
    """The labels of a run.

    Raises:
        TrainingError: If labelling has not begun there, or not ended.
        DataError: If a shard is corrupt.
    """
    manifest = Path(folder).expanduser() / _MADE["label"]
    if not manifest.is_file():
        raise TrainingError(f"{folder} holds no labels. Make them first: mara label … --output {folder}")
    shards = json.loads(manifest.read_text(encoding="utf-8"))["shards"]
    done = sum((manifest.parent / SHARD_NAME.format(number)).is_file() for number in range(shards))
    if done < shards:
        raise TrainingError(
            f"Labelling in {folder} has done {done} of {shards} shards. Call mara label again; it goes on there."
        )
    return TokenLabels.load(manifest.parent)


def agent_source(source: str) -> str:
    """Where to load an agent from: of a run folder its agent, anything else as it is.

    Raises:
        TrainingError: If a run folder has no agent yet.
    """
    folder = Path(source).expanduser()
    if (folder / "agent" / "config.json").is_file():
        return str(folder / "agent")
    if (folder / "features").is_dir():
        raise TrainingError(f"{source} holds labels but no agent yet. Fit one first: mara fit {source}")
    if (folder / _MADE["rl"]).is_file():
        raise TrainingError(f"{source} holds no agent yet. Call mara rl again; it goes on there.")
    return source


def agent_config(source: str) -> Config:
    """The options of the `label` or `rl` that a run folder's agent goes back to; empty for what is no run.

    Raises:
        TrainingError: If a run folder has no agent yet, or a `config.json` holds something else.
    """
    if agent_source(source) == source:
        return {}
    folder = Path(source).expanduser()
    begun = _begun(folder)
    if "rl" in begun:
        return begun["rl"]
    commands = read_config(folder)
    elsewhere = commands.get("fit", {}).get("labels")
    return (read_config(elsewhere) if elsewhere else commands).get("label", {})


def own_rewards(config: Mapping[str, Any]) -> list[str]:
    """What answers are scored by where nothing is said: the rewards of a run, or that of its pairs.

    Args:
        config: As `agent_config` gives it.

    Raises:
        OptionsError: If it has neither.
    """
    if config.get("reward"):
        return list(config["reward"])
    if config.get("labeler") != "preference":
        raise OptionsError("Say by what the answers are to be scored: --reward module:function, model, or pairs:FILE.")
    return [f"{PAIRS}{config['data']}"]


def resolved(options: Mapping[str, Any], *left_out: str) -> Config:
    """A command's options but for some; with paths made absolute, so that they hold from everywhere."""
    kept: Config = {name: value for name, value in options.items() if name not in left_out}
    for name in _PLACES & kept.keys():
        kept[name] = None if kept[name] is None else _absolute(kept[name])
    # An option that can be repeated and was not given is empty.
    lists = {name: list(value) or None for name, value in kept.items() if isinstance(value, list | tuple)}
    if lists.get("reward"):
        lists["reward"] = [_absolute(one) for one in kept["reward"]]
    return {**kept, **lists}


def _begun(folder: Path) -> dict[str, Config]:
    """The options of those commands that made something in a folder."""
    commands = read_config(folder)
    return {name: commands[name] for name, made in _MADE.items() if name in commands and (folder / made).is_file()}


def _absolute(source: str) -> str:
    prefix, path = split_prefix(source)
    found = Path(path).expanduser()
    return f"{prefix}{found.absolute()}" if found.exists() else source
