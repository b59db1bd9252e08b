"""The folder of a comparison: its configuration, its prompts, and its answers.

    config.json            the systems and rewards compared, the versions of libraries, the command
    prompts.jsonl          one prompt per line
    answers/SYSTEM.jsonl   one `Answer` per line, in the order of the prompts; lines are only appended
    .lock                  empty; a process that works here locks it

A comparison can be killed at any moment and resumes from these files. The configuration and every answer carry a
digest, so a damaged byte is noticed.
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
from langchain_mara_training.storage.atomic import append_durably, require_folder, write_atomically
from langchain_mara_training.storage.identity.job_identity import differences, require_known
from langchain_mara_training.storage.records import Config, dump, read_sealed, sealed_line, unsealed_line, write_sealed

# Values that may change between two calls on the same folder, because answers do not depend on them. A model that was
# moved is recognized by its weights.
_MAY_CHANGE = {"command", "confidence", "model_id", "prompts.jsonl", "rounding", "tolerance", "versions"}
_REPAIR = "Delete the file to have this system answer again."
_UNSAFE = re.compile(r"[^\w.+-]+", re.ASCII)


class Answer(BaseModel):
    """One system's answer to one prompt, with its rewards and its costs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    """Number of the prompt, from 0."""
    completion: str
    """Text of the answer."""
    token_ids: list[int] | None = None
    """Token ids of the answer, for reward functions that read them; None in comparisons of earlier versions."""
    rewards: dict[str, float | None]
    """Reward by each reward function, by the function's name; None where it was not scored."""
    harmful: bool | None = None
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
            TrainingError: If the folder holds another comparison, answers without a configuration, or is a file.
            RewardError: If a reward function cannot be told from others.
        """
        require_known(config)
        require_folder(self.folder)
        if self._config.exists():
            self._require_same(config)
        elif self._has_answers():
            raise TrainingError(
                f"{self.folder} holds answers, but config.json, which says what gave them, is missing. Put it back, or "
                "give another folder."
            )
        (self.folder / "answers").mkdir(parents=True, exist_ok=True)
        lines = _lines(prompts)
        write_atomically(self._prompts, lines)
        write_sealed(self._config, {**config, "prompts.jsonl": hashlib.sha256(lines).hexdigest()})
        for system in config["systems"]:
            _remove_incomplete_line(self._file(system))

    def read_config(self) -> Config:
        """Reads the configuration.

        Raises:
            TrainingError: If there is none, or it is damaged.
        """
        repair = f"So {self.folder} holds no comparison. Give a folder that compare or mara evaluate wrote."
        config = read_sealed(self._config, repair)
        if missing := {"systems", "rewards", "baseline"} - config.keys():
            raise TrainingError(f"{self._config} lacks {', '.join(sorted(missing))}. {repair}")
        return config

    def read_prompts(self) -> list[Prompt]:
        """Reads the prompts, in order.

        Raises:
            TrainingError: If they are missing or damaged.
        """
        content = self._prompts.read_bytes() if self._prompts.is_file() else b""
        digest_then = self.read_config().get("prompts.jsonl")
        if digest_then not in (None, hashlib.sha256(content).hexdigest()):
            raise TrainingError(
                f"{self._prompts} is missing or damaged. Compare again with the same output to repair it."
            )
        return [json.loads(line) for line in content.split(b"\n")[:-1]]

    def read_answers(self, system: str) -> list[Answer]:
        """Reads a system's answers so far; an incomplete last line is ignored.

        Args:
            system: Name of the system.

        Raises:
            DataError: If a line is damaged or not an answer, or an answer is missing.
        """
        file = self._file(system)
        complete = file.read_bytes().rpartition(b"\n")[0] if file.exists() else b""
        answers = []
        for number, line in enumerate(complete.split(b"\n") if complete else []):
            try:
                answers.append(Answer.model_validate_json(unsealed_line(line)))
            except ValueError as error:
                reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
                raise DataError(f"{file}, line {number + 1} is not an answer ({reason}). {_REPAIR}") from None
            if answers[-1].number != number:
                raise DataError(f"{file}, line {number + 1} answers prompt {answers[-1].number}. {_REPAIR}")
        return answers

    def append(self, system: str, answers: Iterable[Answer]) -> None:
        """Appends a system's next answers; they are on disk when this returns."""
        lines = "".join(sealed_line(answer.model_dump_json()) + "\n" for answer in answers)
        append_durably(self._file(system), lines.encode())

    def _file(self, system: str) -> Path:
        return self.folder / "answers" / f"{_file_name(system)}.jsonl"

    def _has_answers(self) -> bool:
        folder = self.folder / "answers"
        return folder.is_dir() and any(file.suffix == ".jsonl" for file in folder.iterdir())

    def _require_same(self, config: Mapping[str, Any]) -> None:
        differing = differences(self.read_config(), config, _MAY_CHANGE)
        if differing:
            raise TrainingError(
                f"{self.folder} holds another comparison; different: {', '.join(differing)}. "
                "Give another folder, or the settings it was started with."
            )


def _lines(prompts: Iterable[Prompt]) -> bytes:
    return "".join(dump(prompt) + "\n" for prompt in prompts).encode()


def digest(value: Any) -> str:
    """Digest of plain values, sixteen hexadecimal digits."""
    return hashlib.sha256(dump(value).encode()).hexdigest()[:16]


def _file_name(system: str) -> str:
    """A name that every file system accepts, different for every system."""
    safe = _UNSAFE.sub("_", system).lstrip(".")
    # Some file systems do not distinguish upper and lower case, so mixed case gets a digest.
    return safe if safe == system and safe in (safe.lower(), safe.upper()) else f"{safe}-{digest(system)[:8]}"


def _remove_incomplete_line(file: Path) -> None:
    if file.exists() and (content := file.read_bytes()) and not content.endswith(b"\n"):
        os.truncate(file, content.rfind(b"\n") + 1)
