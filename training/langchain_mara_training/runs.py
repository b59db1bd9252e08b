"""A run folder: what was asked for, with which libraries, what happened, and the labels, checkpoints and agent made.

    config.json     the options of each command
    versions.json   the libraries of the last command
    log.jsonl       what happened, a JSON object a line
    features/       the labels, in shards
    checkpoints/    of the fit
    agent/          the agent, with its model card

Everything but the log is written so that it is whole or not there; the log is only ever appended to.
"""

import json
import math
import os
import platform
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from langchain_mara import MaraAgent, __version__
from langchain_mara.exceptions import OptionsError, TrainingError
from langchain_mara_training.features import SHARD_NAME, TokenLabels
from langchain_mara_training.files import write_atomically
from langchain_mara_training.shards import MANIFEST_NAME

Config = dict[str, Any]

LIBRARIES = (
    "accelerate", "datasets", "huggingface_hub", "langchain-core", "numpy", "safetensors", "scikit-learn", "skorch",
    "torch", "transformers",
)  # fmt: skip
PAIRS = "pairs:"
"""What a reward begins with that is fitted on a file's pairs."""
# Options that a job may go on with otherwise.
_FREE = {"device"}
_AGENT_FOLDER = "agent"
_FEATURES_FOLDER = "features"


class Run:
    """The folder of a run, as one command uses it.

    Nothing is written before `begin`, so that a command that fails early leaves no folder behind.

    Args:
        folder: New, or of a run whose same command had the same options; then the command goes on.
        command: Such as `label`.
        config: The command's resolved options, as JSON takes them.

    Raises:
        TrainingError: If the command ran there with other options, or `config.json` is no configuration.
    """

    def __init__(self, folder: str | Path, command: str, config: Mapping[str, Any]) -> None:
        self.folder = Path(folder).expanduser()
        self.command = command
        # Through JSON, because that is what the next call compares with.
        self.config: Config = json.loads(dump(config))
        known = read_config(self.folder).get(command)
        self.resumed = known is not None
        if known is not None:
            self._refuse_other(known)

    @property
    def features(self) -> Path:
        """Folder of the labels."""
        return self.folder / _FEATURES_FOLDER

    @property
    def checkpoints(self) -> Path:
        """Folder of the fit's checkpoints."""
        return self.folder / "checkpoints"

    @property
    def agent(self) -> Path:
        """Folder of the agent."""
        return self.folder / _AGENT_FOLDER

    def begin(self) -> None:
        """Takes the folder: writes configuration and versions, and logs the start."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "config.json", {**read_config(self.folder), self.command: self.config})
        write_json(self.folder / "versions.json", library_versions())
        self.log("resumed" if self.resumed else "started")

    def log(self, event: str, **values: Any) -> None:
        """Appends a record to `log.jsonl`: time, command, event and values."""
        append_record(self.folder, {"command": self.command, "event": event, **values})

    def save_agent(self, agent: MaraAgent, training: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
        """Saves an agent with its model card.

        Args:
            agent: What was fitted.
            training: What it was trained on and how, a row of the card each.
            metrics: Numbers that say how well; None is left out.
        """
        temporary = self.folder / f".{_AGENT_FOLDER}.{os.getpid()}.tmp"
        agent.save_pretrained(temporary)
        card = str(agent.generate_model_card()).rstrip()
        sections = _section("Training", training), _section("Metrics", metrics)
        (temporary / "README.md").write_text("\n\n".join([card, *sections]) + "\n", encoding="utf-8")
        self.agent.mkdir(exist_ok=True)
        for file in sorted(temporary.iterdir()):
            write_atomically(self.agent / file.name, file.read_bytes())
        shutil.rmtree(temporary)

    def _refuse_other(self, known: Config) -> None:
        differing = [
            f"{name} ({_shown(known, name)} there, {_shown(self.config, name)} now)"
            for name in sorted({*known, *self.config} - _FREE)
            if known.get(name) != self.config.get(name)
        ]
        if differing:
            raise TrainingError(
                f"In {self.folder}, mara {self.command} ran with other options: {', '.join(differing)}. "
                "Give another --output, or the options it ran with."
            )


def read_config(folder: str | Path) -> dict[str, Config]:
    """The options of each command that ran in a folder; empty where none did.

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


def read_log(folder: str | Path) -> list[dict[str, Any]]:
    """The records of a run, in order; a line that a crash cut short is left out."""
    file = Path(folder).expanduser() / "log.jsonl"
    records = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def append_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Appends a record to a run's `log.jsonl`, with the time, and has it on disk when it returns."""
    line = dump({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **record})
    with (folder / "log.jsonl").open("a+b") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - 1))
        # A crash may have left half a line.
        cut = stream.read(1) not in (b"", b"\n")
        stream.write(("\n" * cut + line + "\n").encode())
        stream.flush()
        os.fsync(stream.fileno())


def read_labels(folder: str | Path) -> TokenLabels:
    """The labels of a run.

    Raises:
        TrainingError: If labelling has not begun there, or not ended.
        DataError: If a shard is corrupt.
    """
    features = Path(folder).expanduser() / _FEATURES_FOLDER
    manifest = features / MANIFEST_NAME
    if not manifest.is_file():
        raise TrainingError(f"{folder} holds no labels. Make them first: mara label … --output {folder}")
    shards = json.loads(manifest.read_text(encoding="utf-8"))["shards"]
    done = sum((features / SHARD_NAME.format(number)).is_file() for number in range(shards))
    if done < shards:
        raise TrainingError(
            f"Labelling in {folder} has done {done} of {shards} shards. Call mara label again; it goes on there."
        )
    return TokenLabels.load(features)


def agent_source(source: str) -> str:
    """Where to load an agent from: of a run folder its agent, anything else as it is.

    Raises:
        TrainingError: If a run folder has no agent yet.
    """
    folder = Path(source).expanduser()
    if (folder / _AGENT_FOLDER / "config.json").is_file():
        return str(folder / _AGENT_FOLDER)
    if (folder / _FEATURES_FOLDER).is_dir():
        raise TrainingError(f"{folder} holds labels but no agent yet. Fit one first: mara fit {folder}")
    return source


def label_config(source: str | Path) -> Config:
    """The options of the `label` that a run folder's agent goes back to; empty for what is no run with an agent.

    Raises:
        TrainingError: If a `config.json` holds something else.
    """
    folder = Path(source).expanduser()
    if not (folder / _AGENT_FOLDER / "config.json").is_file():
        return {}
    commands = read_config(folder)
    # Labels of another run stand under that run's absolute path.
    features = folder / commands.get("fit", {}).get("labels", _FEATURES_FOLDER)
    return commands.get("label") or read_config(features.parent).get("label", {})


def own_rewards(labelled: Config) -> list[str]:
    """What answers are scored by where nothing is said: the rewards of a run's rollouts, or that of its pairs.

    Raises:
        OptionsError: If it was labelled by neither.
    """
    if labelled.get("reward"):
        return list(labelled["reward"])
    if labelled.get("labeler") != "preference":
        raise OptionsError("Say by what the answers are to be scored: --reward module:function, model, or pairs:FILE.")
    return [f"{PAIRS}{labelled['data']}"]


def resolved(options: Mapping[str, Any], *left_out: str) -> Config:
    """A command's options but for some; with paths made absolute, so that they hold from everywhere."""
    kept = {name: value for name, value in options.items() if name not in left_out}
    sources = {name: _absolute(kept[name]) for name in ("data", "model", "agent") if kept.get(name)}
    rewards = {"reward": [_absolute(one) for one in kept["reward"]]} if kept.get("reward") else {}
    return {**kept, **sources, **rewards}


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that results depend on."""
    found = {"langchain-mara": __version__, "python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            found[library] = "not installed"
    return found


def dump(value: Any, indent: int | None = None) -> str:
    """JSON of plain values; numbers that are not finite become null, which JSON has no word for."""
    return json.dumps(_plain(value), ensure_ascii=False, indent=indent, allow_nan=False)


def _absolute(source: str) -> str:
    prefix, path = (PAIRS, source.removeprefix(PAIRS)) if source.startswith(PAIRS) else ("", source)
    found = Path(path).expanduser()
    return f"{prefix}{found.absolute()}" if found.exists() else source


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def write_json(file: Path, value: Any) -> None:
    """Writes plain values to a file, whole or not at all."""
    write_atomically(file, (dump(value, indent=2) + "\n").encode())


def _section(title: str, values: Mapping[str, Any]) -> str:
    rows = [f"| {name} | {_cell(value)} |" for name, value in values.items() if value is not None]
    return "\n".join([f"## {title}", "", "| | |", "|---|---|", *rows])


def _cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.replace("|", "\\|").split())


def _shown(config: Config, name: str) -> str:
    return dump(config[name]) if name in config else "not set"
