"""The folder of a comparison: its configuration, the prompts, and a line for every answer.

    config.json            what is compared, with which libraries, by which command
    prompts.jsonl          a prompt a line
    answers/SYSTEM.jsonl   an `Answer` a line, in the order of the prompts; only ever appended to

A comparison that was killed at any moment goes on there.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from langchain_mara.exceptions import DataError, TrainingError
from langchain_mara_training.data.readers import Prompt
from langchain_mara_training.storage.atomic import write_atomically
from langchain_mara_training.storage.records import Config, dump, write_json

# What may change between two calls that share a folder, since answers do not depend on it. A model that was moved is
# known by its weights.
_FREE = {"command", "confidence", "model_id", "versions"}
_REPAIR = "Delete the file to have this system answer again."
_UNSAFE = re.compile(r"[^\w.+-]+", re.ASCII)


class Answer(BaseModel):
    """One system's answer to one prompt, with what it earned and what it cost."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    """Of the prompt, from 0."""
    completion: str
    """The text."""
    rewards: dict[str, float | None]
    """By reward function's name; None where it was not scored."""
    harmful: bool | None
    """By the classifier, where there is one."""
    tokens: int
    """Decoded, those thrown away and the end of sequence included."""
    answer_tokens: int
    """Of the answer given."""
    passes: float
    """Forward passes of the policy models: its share of its chunk's."""
    seconds: float
    """Of what the system needs to answer, rewards it chooses by included: its share of its chunk's."""
    divergence: float | None
    """Mean over the answer's tokens of -log p under the plain model, over the whole vocabulary, in nats."""
    accepted_index: list[int]
    """How often the candidate at each index was accepted by an agent."""
    fallbacks: int
    """Positions at which every candidate was rejected."""


class ComparisonStore:
    """The files of a comparison.

    Args:
        folder: Made by `begin`, where it is missing.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        self._config = self.folder / "config.json"
        self._prompts = self.folder / "prompts.jsonl"

    def begin(self, config: Mapping[str, Any], prompts: Sequence[Prompt]) -> None:
        """Takes the folder, or goes on in it; half a line that a crash has left is taken off.

        Raises:
            TrainingError: If another comparison began there, or it is a file.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise TrainingError(f"{self.folder} is a file. Give a folder as output.")
        if self._config.exists():
            self._refuse_other(json.loads(dump(config)))
        (self.folder / "answers").mkdir(parents=True, exist_ok=True)
        lines = "".join(dump(prompt) + "\n" for prompt in prompts)
        write_atomically(self._prompts, lines.encode())
        write_json(self._config, config)
        for system in config["systems"]:
            _take_off_half_line(self._file(system))

    def read_config(self) -> Config:
        """The configuration.

        Raises:
            TrainingError: If there is none.
        """
        try:
            config: Config = json.loads(self._config.read_text(encoding="utf-8"))
            _ = config["systems"], config["rewards"], config["baseline"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TrainingError(
                f"{self.folder} holds no comparison ({error}). Give a folder that compare or mara evaluate wrote."
            ) from None
        return config

    def read_prompts(self) -> list[Prompt]:
        """The prompts, in order."""
        return [json.loads(line) for line in self._prompts.read_bytes().split(b"\n")[:-1]]

    def read_answers(self, system: str) -> list[Answer]:
        """What a system has answered so far; half a line at the end is left out.

        Raises:
            DataError: If a line is no answer, or one is missing.
        """
        file = self._file(system)
        whole = file.read_bytes().rpartition(b"\n")[0] if file.exists() else b""
        answers = []
        for number, line in enumerate(whole.split(b"\n") if whole else []):
            try:
                answers.append(Answer.model_validate_json(line))
            except ValidationError as error:
                reason = error.errors()[0]["msg"]
                raise DataError(f"{file}, line {number + 1} is no answer ({reason}). {_REPAIR}") from None
            if answers[-1].number != number:
                raise DataError(f"{file}, line {number + 1} answers prompt {answers[-1].number}. {_REPAIR}")
        return answers

    def append(self, system: str, answers: Iterable[Answer]) -> None:
        """Appends a system's next answers, and has them on disk when it returns."""
        lines = "".join(one.model_dump_json() + "\n" for one in answers)
        with self._file(system).open("ab") as stream:
            stream.write(lines.encode())
            stream.flush()
            os.fsync(stream.fileno())

    def _file(self, system: str) -> Path:
        return self.folder / "answers" / f"{_file_name(system)}.jsonl"

    def _refuse_other(self, config: Config) -> None:
        known = self.read_config()
        differing = list(_differences(known, config))
        if differing:
            raise TrainingError(
                f"{self.folder} holds another comparison; different: {', '.join(differing)}. "
                "Give another folder, or compare what it began with."
            )


def digest(value: Any) -> str:
    """Sixteen hexadecimal digits of plain values."""
    return hashlib.sha256(dump(value).encode()).hexdigest()[:16]


def _differences(known: Config, config: Config, within: str = "") -> Iterable[str]:
    """Dotted names of what differs, but for what may."""
    for name in sorted({*known, *config} - _FREE):
        one, other = known.get(name), config.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from _differences(one, other, f"{within}{name}.")
        elif one != other:
            yield f"{within}{name} ({_shown(one)} there, {_shown(other)} now)"


def _shown(value: Any) -> str:
    return "nothing" if value is None else dump(value)[:60]


def _file_name(system: str) -> str:
    """A name that every file system takes, and that no other system has."""
    safe = _UNSAFE.sub("_", system).lstrip(".")
    # Upper and lower case are one on some file systems.
    return safe if safe == system and safe in (safe.lower(), safe.upper()) else f"{safe}-{digest(system)[:8]}"


def _take_off_half_line(file: Path) -> None:
    if file.exists() and (content := file.read_bytes()) and not content.endswith(b"\n"):
        os.truncate(file, content.rfind(b"\n") + 1)
