"""The folder of a comparison: its configuration, its prompts, and its answers.

    config.json            the systems and rewards compared, the versions of libraries, the command
    prompts.jsonl          one prompt per line
    answers/SYSTEM.jsonl   one `Answer` per line, in the order of the prompts; lines are only appended

A comparison can be killed at any moment and resumes from these files.
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

# Values that may change between two calls on the same folder, because answers do not depend on them. A model that was
# moved is recognized by its weights.
_MAY_CHANGE = {"command", "confidence", "model_id", "versions"}
_REPAIR = "Delete the file to have this system answer again."
_UNSAFE = re.compile(r"[^\w.+-]+", re.ASCII)


class Answer(BaseModel):
    """One system's answer to one prompt, with its rewards and its costs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    """Number of the prompt, from 0."""
    completion: str
    """Text of the answer."""
    rewards: dict[str, float | None]
    """Reward by each reward function, by the function's name; None where it was not scored."""
    harmful: bool | None
    """Whether the classifier calls the answer harmful; None without a classifier."""
    tokens: int
    """Number of decoded tokens, including discarded answers and end-of-sequence tokens."""
    answer_tokens: int
    """Number of tokens of the answer given."""
    passes: float
    """Passes of the policy models, as an equal share of the passes for its chunk."""
    seconds: float
    """Time to answer, as an equal share of the time for its chunk; it includes rewards that the system selects by."""
    divergence: float | None
    """Mean of -log p over the answer's tokens under the plain model's softmax over the whole vocabulary, in nats."""
    accepted_index: list[int]
    """For each index in the candidate set, how often the agent accepted the candidate there."""
    fallbacks: int
    """Number of positions at which every candidate was rejected."""


class ComparisonStore:
    """The files of a comparison.

    Args:
        folder: Folder of the files; `begin` creates it if it is missing.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        self._config = self.folder / "config.json"
        self._prompts = self.folder / "prompts.jsonl"

    def begin(self, config: Mapping[str, Any], prompts: Sequence[Prompt]) -> None:
        """Starts a comparison in the folder, or resumes it; incomplete lines after a crash are removed.

        Args:
            config: Configuration of the comparison.
            prompts: Prompts, in order.

        Raises:
            TrainingError: If the folder holds another comparison, or is a file.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise TrainingError(f"{self.folder} is a file. Give a folder as output.")
        if self._config.exists():
            self._require_same(json.loads(dump(config)))
        (self.folder / "answers").mkdir(parents=True, exist_ok=True)
        lines = "".join(dump(prompt) + "\n" for prompt in prompts)
        write_atomically(self._prompts, lines.encode())
        write_json(self._config, config)
        for system in config["systems"]:
            _remove_incomplete_line(self._file(system))

    def read_config(self) -> Config:
        """Reads the configuration.

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
        """Reads the prompts, in order."""
        return [json.loads(line) for line in self._prompts.read_bytes().split(b"\n")[:-1]]

    def read_answers(self, system: str) -> list[Answer]:
        """Reads a system's answers so far; an incomplete last line is ignored.

        Args:
            system: Name of the system.

        Raises:
            DataError: If a line is not an answer, or an answer is missing.
        """
        file = self._file(system)
        complete = file.read_bytes().rpartition(b"\n")[0] if file.exists() else b""
        answers = []
        for number, line in enumerate(complete.split(b"\n") if complete else []):
            try:
                answers.append(Answer.model_validate_json(line))
            except ValidationError as error:
                reason = error.errors()[0]["msg"]
                raise DataError(f"{file}, line {number + 1} is not an answer ({reason}). {_REPAIR}") from None
            if answers[-1].number != number:
                raise DataError(f"{file}, line {number + 1} answers prompt {answers[-1].number}. {_REPAIR}")
        return answers

    def append(self, system: str, answers: Iterable[Answer]) -> None:
        """Appends a system's next answers; they are on disk when this returns."""
        lines = "".join(answer.model_dump_json() + "\n" for answer in answers)
        with self._file(system).open("ab") as stream:
            stream.write(lines.encode())
            stream.flush()
            os.fsync(stream.fileno())

    def _file(self, system: str) -> Path:
        return self.folder / "answers" / f"{_file_name(system)}.jsonl"

    def _require_same(self, config: Config) -> None:
        differing = list(_differences(self.read_config(), config))
        if differing:
            raise TrainingError(
                f"{self.folder} holds another comparison; different: {', '.join(differing)}. "
                "Give another folder, or the settings it was started with."
            )


def digest(value: Any) -> str:
    """Digest of plain values, sixteen hexadecimal digits."""
    return hashlib.sha256(dump(value).encode()).hexdigest()[:16]


def _differences(stored: Config, config: Config, within: str = "") -> Iterable[str]:
    """Dotted names and values of all differences, except those that are allowed."""
    for name in sorted({*stored, *config} - _MAY_CHANGE):
        stored_value, value = stored.get(name), config.get(name)
        if isinstance(stored_value, dict) and isinstance(value, dict):
            yield from _differences(stored_value, value, f"{within}{name}.")
        elif stored_value != value:
            yield f"{within}{name} ({_shown(stored_value)} there, {_shown(value)} now)"


def _shown(value: Any) -> str:
    return "nothing" if value is None else dump(value)[:60]


def _file_name(system: str) -> str:
    """A name that every file system accepts, different for every system."""
    safe = _UNSAFE.sub("_", system).lstrip(".")
    # Some file systems do not distinguish upper and lower case, so mixed case gets a digest.
    return safe if safe == system and safe in (safe.lower(), safe.upper()) else f"{safe}-{digest(system)[:8]}"


def _remove_incomplete_line(file: Path) -> None:
    if file.exists() and (content := file.read_bytes()) and not content.endswith(b"\n"):
        os.truncate(file, content.rfind(b"\n") + 1)
