"""A run folder: the options and library versions of a run, its log, and its labels, checkpoints and agent.

    config.json     options of each command
    versions.json   library versions of the last command
    log.jsonl       log, one JSON object per line
    features/       labels, in shards
    checkpoints/    checkpoint of the fit
    fitting.pt      checkpoint of reinforcement
    buffer/         replay buffer of reinforcement
    agent/          agent and its model card
    .lock           empty; a command that works here locks it

Every file but the log is either complete or absent. The log is only ever appended to. Configuration, labels,
checkpoints, buffer and agent carry digests, so a damaged byte is noticed. While a command works, `.lock.json` says
which process on which machine, since when, and a file that is being written has the end `.tmp`. Both go with the
command, also if it fails; after a kill the next command in the folder removes them.
"""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import PartialState

from langchain_mara.agents.base import Agent
from langchain_mara.agents.mixture import read_mixture_text
from langchain_mara.exceptions import OptionsError, TrainingError
from langchain_mara_training.labeling.shard_list import MANIFEST_NAME, read_list
from langchain_mara_training.labeling.token_labels import TokenLabels
from langchain_mara_training.rewards.specs import PAIRS, split_prefix
from langchain_mara_training.storage.atomic import require_folder
from langchain_mara_training.storage.identity.job_identity import differences
from langchain_mara_training.storage.job_checkpoint import FILE_NAME
from langchain_mara_training.storage.lock import job_lock
from langchain_mara_training.storage.model_card import Sections, save_agent
from langchain_mara_training.storage.records import (
    Config,
    append_record,
    dump,
    library_versions,
    read_sealed,
    write_json,
    write_sealed,
)

# The first result of each command. Once it exists, the command's options can no longer change.
_FIRST_RESULTS = {
    "label": Path("features", MANIFEST_NAME),
    "fit": Path("checkpoints", FILE_NAME),
    "rl": Path(FILE_NAME),
}
# Options that may still change: device, duration and tracking.
_CHANGEABLE = {"device", "episodes", "workers", "tracker"}
# Options that may be paths.
_PATH_OPTIONS = {"data", "model", "agent", "evaluation", "harmful", "rescore"}


class Run:
    """A command's view of its run folder.

    Nothing is written before `begin`, so a command that fails early leaves no folder behind.

    Args:
        folder: New folder, or the folder of a run. If the same command ran there with the same options, it resumes.
        command: `label`, `fit` or `rl`.
        config: The command's resolved options, as JSON values.

    Attributes:
        resumed: Whether the command resumes an earlier run.

    Raises:
        TrainingError: If the command began there with other options, the folder belongs to the other way of training
            (`label` and `fit`, or `rl`), it is not a run folder, or it cannot be written to.
    """

    def __init__(self, folder: str | Path, command: str, config: Mapping[str, Any]) -> None:
        self.folder = Path(folder).expanduser()
        self.command = command
        require_folder(self.folder, "--output")
        # Through JSON, because the next call compares its options with the JSON file.
        self.config: Config = json.loads(dump(config))
        self._check()

    @property
    def features(self) -> Path:
        """Folder of the labels."""
        return self.folder / "features"

    @property
    def checkpoints(self) -> Path:
        """Folder of the fit's checkpoints."""
        return self.folder / "checkpoints"

    @contextmanager
    def working(self, state: PartialState | None = None) -> Iterator[None]:
        """Begins, and keeps other processes out of the folder while the context is open.

        Args:
            state: The processes that share the job, if several may. Only the main one begins.

        Raises:
            TrainingError: If another process works in the folder, or has changed it since this run was made.
        """
        with job_lock(self.folder, state):
            if state is None or state.is_main_process:
                self._check()
                self.begin()
            yield

    def begin(self) -> None:
        """Creates the folder, writes configuration and versions, and logs the start."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_sealed(self.folder / "config.json", {**read_config(self.folder), self.command: self.config})
        write_json(self.folder / "versions.json", library_versions())
        append_record(self.folder, self.command, "resumed" if self.resumed else "started")

    def log(self, event: str, /, **values: Any) -> None:
        """Appends a record to `log.jsonl`: time, command, event and values."""
        append_record(self.folder, self.command, event, **values)

    def save_agent(self, agent: Agent, sections: Sections) -> None:
        """Saves an agent with its model card; see `model_card.save_agent`."""
        save_agent(agent, self.folder / "agent", sections)

    def _check(self) -> None:
        """Refuses other options than those that the command began with, and results of unknown origin."""
        configs = read_config(self.folder)
        for command, result in _FIRST_RESULTS.items():
            if command not in configs and (self.folder / result).is_file():
                raise TrainingError(
                    f"{self.folder} holds results of mara {command}, but config.json does not say with which options "
                    "they were made. Put the file back, or give another --output."
                )
        earlier = _begun_commands(self.folder)
        self.resumed = self.command in earlier
        if self.resumed:
            self._refuse_other_options(earlier[self.command])
        for command in earlier:
            # A folder has one agent.
            if (command == "rl") is not (self.command == "rl"):
                raise TrainingError(f"{self.folder} is a run of mara {command}. Give another --output.")

    def _refuse_other_options(self, earlier: Config) -> None:
        if differing := differences(earlier, self.config, _CHANGEABLE):
            raise TrainingError(
                f"In {self.folder}, mara {self.command} began with other options: {', '.join(differing)}. "
                "Give another --output, or the options it began with."
            )


def read_config(folder: str | Path) -> dict[str, Config]:
    """The options of each command that began in a folder, by command; empty if none did.

    Raises:
        TrainingError: If `config.json` is damaged, or is not the configuration of a run.
    """
    file = Path(folder).expanduser() / "config.json"
    if not file.is_file():
        return {}
    commands = read_sealed(file, "So it is not the configuration of a run. Give another folder.")
    if not all(isinstance(options, dict) for options in commands.values()):
        raise TrainingError(f"{file} is not the configuration of a run. Give another folder.")
    return commands


def refuse_other_commands(folder: str | Path, command: str) -> None:
    """Refuses a folder in which another command began, for commands that share theirs with no other.

    Args:
        folder: Folder of a run, which may not be there yet.
        command: The command.

    Raises:
        TrainingError: If another command began there, or `config.json` is damaged.
    """
    if others := sorted(set(read_config(folder)) - {command}):
        raise TrainingError(f"{folder} is a run of mara {others[0]}. Give another --output.")


def read_labels(folder: str | Path) -> TokenLabels:
    """The labels of a run.

    Raises:
        TrainingError: If labeling has not begun there, or has not ended.
        DataError: If a shard is corrupt.
    """
    manifest = Path(folder).expanduser() / _FIRST_RESULTS["label"]
    if not manifest.is_file():
        raise TrainingError(f"{folder} holds no labels. Make them first: mara label … --output {folder}")
    shards = read_sealed(manifest, "Label again into another folder.")["shards"]
    done = len(read_list(manifest.parent))
    if done < shards:
        raise TrainingError(
            f"Labeling in {folder} has done {done} of {shards} shards. Run mara label again; it resumes there."
        )
    return TokenLabels.load(manifest.parent)


def agent_source(source: str) -> str:
    """Where to load an agent from: the agent of a run folder; any other source is returned unchanged.

    In the text of a mixture, such as `a+b`, each name is replaced.

    Raises:
        TrainingError: If a run folder has no agent yet.
    """
    folder = Path(source).expanduser()
    if not folder.exists() and (mixed := read_mixture_text(source)):
        return str(mixed._replace(names=[agent_source(name) for name in mixed.names]))
    if (folder / "agent" / "config.json").is_file():
        return str(folder / "agent")
    if (folder / "features").is_dir():
        raise TrainingError(f"{source} holds labels but no agent yet. Fit one first: mara fit {source}")
    if (folder / _FIRST_RESULTS["rl"]).is_file():
        raise TrainingError(f"{source} holds no agent yet. Run mara rl again; it resumes there.")
    return source


def agent_config(source: str) -> Config:
    """The options of the `label` or `rl` command that a run folder's agent comes from; empty for any other agent.

    Raises:
        TrainingError: If a run folder has no agent yet, or a `config.json` is not the configuration of a run.
    """
    folder = Path(source).expanduser()
    if agent_source(source) == source or not folder.exists():
        return {}
    earlier = _begun_commands(folder)
    if "rl" in earlier:
        return earlier["rl"]
    commands = read_config(folder)
    labels_folder = commands.get("fit", {}).get("labels")
    return (read_config(labels_folder) if labels_folder else commands).get("label", {})


def chosen_rewards(agent: str, given: Sequence[str] | None, config: Mapping[str, Any]) -> list[str]:
    """The rewards that score an agent's answers: those given, or a reward fitted on the pairs of the agent's run.

    A run folder is data, and others may have written it. So the rewards that it records are never imported, fetched or
    loaded unless the user names the same rewards.

    Args:
        agent: Run folder or agent, as the user named it.
        given: Rewards that the user named.
        config: Options as `agent_config` returns them.

    Raises:
        OptionsError: If the run was made with rewards and the given ones differ, or if there are neither rewards nor
            pairs.
    """
    recorded = config.get("reward") or []
    if recorded and recorded != list(given or ()):
        flags = shlex.join(flag for spec in recorded for flag in ("--reward", str(spec)))
        raise OptionsError(
            f"The agent of {agent} was trained with {flags}. Nothing that a run folder names is imported or loaded as "
            f"a reward, so name it again: add {flags}. To score by other rewards, give the agent without its run: "
            f"--agent {shlex.quote(str(Path(agent) / 'agent'))}."
        )
    if given:
        return list(given)
    if config.get("labeler") != "preference" or not config.get("data"):
        raise OptionsError("Choose what scores the answers: --reward module:function, a reward model, or pairs:FILE.")
    return [f"{PAIRS}{config['data']}"]


def resolved(options: Mapping[str, Any], *left_out: str) -> Config:
    """A command's options with absolute paths, so that they are valid from every folder.

    Args:
        options: Options by name.
        *left_out: Names of the options to leave out.
    """
    kept: Config = {name: value for name, value in options.items() if name not in left_out}
    for name in _PATH_OPTIONS & kept.keys():
        kept[name] = None if kept[name] is None else _absolute(kept[name])
    # A repeatable option that was not given is empty.
    lists = {name: list(value) or None for name, value in kept.items() if isinstance(value, list | tuple)}
    if lists.get("reward"):
        lists["reward"] = [_absolute(spec) for spec in kept["reward"]]
    return {**kept, **lists}


def _begun_commands(folder: Path) -> dict[str, Config]:
    """The options of the commands that have a first result in a folder, by command."""
    commands = read_config(folder)
    return {
        name: commands[name]
        for name, result in _FIRST_RESULTS.items()
        if name in commands and (folder / result).is_file()
    }


def _absolute(source: str) -> str:
    prefix, name = split_prefix(source)
    path = Path(name).expanduser()
    return f"{prefix}{path.absolute()}" if path.exists() else source
