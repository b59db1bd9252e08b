"""JSON files and logs, sealed by a digest where results depend on them, and the origin of a result."""

import hashlib
import json
import math
import platform
import re
import shlex
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from langchain_mara import __version__
from langchain_mara.exceptions import TrainingError
from langchain_mara.untrusted import parse_json, read_content
from langchain_mara_training.storage.atomic import append_durably, write_atomically

Config = dict[str, Any]
"""Plain values by name."""

_SEAL = "sha256"
_BLANK = "0" * 64
_SEALED_LINE = re.compile(rb'(?P<content>\{.*),"sha256":"(?P<seal>[0-9a-f]{64})"\}', re.DOTALL)

LIBRARIES = (
    "accelerate", "datasets", "huggingface_hub", "langchain-core", "numpy", "safetensors", "scikit-learn", "skorch",
    "torch", "transformers",
)  # fmt: skip


def append_record(folder: str | Path, command: str, event: str, /, **values: Any) -> None:
    """Appends a record with the current time to a run's `log.jsonl`. It is on disk when the function returns.

    Args:
        folder: Run folder.
        command: Command that reports, such as `label`.
        event: What happened, such as `started`.
        **values: Further plain values of the record.
    """
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    line = dump({"time": time, "command": command, "event": event, **values})
    append_durably(Path(folder).expanduser() / "log.jsonl", f"{line}\n".encode())


def command_line() -> str:
    """The command line of this process, quoted for a shell. The program's path is cut to its name."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that results depend on, by name."""
    versions = {"langchain-mara": __version__, "python": platform.python_version()}
    for library in LIBRARIES:
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            versions[library] = "not installed"
    return versions


def write_json(file: Path, value: Any) -> None:
    """Writes plain values to a file, completely or not at all."""
    write_atomically(file, (dump(value, indent=2) + "\n").encode())


def write_sealed(file: Path, value: Mapping[str, Any]) -> None:
    """Writes plain values with a digest of the whole file as the last one, `sha256`; completely or not at all."""
    start, _, end = (dump({**value, _SEAL: _BLANK}, indent=2) + "\n").rpartition(_BLANK)
    seal = hashlib.sha256(f"{start}{_BLANK}{end}".encode()).hexdigest()
    write_atomically(file, f"{start}{seal}{end}".encode())


def read_sealed(file: Path, repair: str) -> Config:
    """Reads values that `write_sealed` wrote; a file of an earlier version has no digest and is not checked.

    Args:
        file: File to read.
        repair: What to do if it is damaged, as a sentence.

    Raises:
        TrainingError: If the file is missing, is no JSON object, or does not match its digest.
    """
    try:
        content = read_content(file, TrainingError)
        value: Config = parse_json(content, str(file), TrainingError)
    except (OSError, TrainingError) as error:
        raise TrainingError(f"{file} is missing or damaged ({error}). {repair}") from None
    if not isinstance(value, dict):
        raise TrainingError(f"{file} is damaged: it holds no JSON object. {repair}")
    seal = str(value.pop(_SEAL, ""))
    if seal:
        start, _, end = content.rpartition(seal.encode())
        if hashlib.sha256(start + _BLANK.encode() + end).hexdigest() != seal:
            raise TrainingError(f"{file} is damaged: its content does not match its digest. {repair}")
    return value


def sealed_line(line: str) -> str:
    """The JSON object of one line with a digest of the line as its last value, `sha256`."""
    return f'{line[:-1]},"{_SEAL}":"{hashlib.sha256(line.encode()).hexdigest()}"}}'


def unsealed_line(line: bytes) -> bytes:
    """The JSON object that `sealed_line` sealed; a line without a digest is returned as it is.

    Raises:
        ValueError: If the line does not match its digest.
    """
    match = _SEALED_LINE.fullmatch(line)
    if match is None:
        return line
    content = match["content"] + b"}"
    if hashlib.sha256(content).hexdigest().encode() != match["seal"]:
        raise ValueError("it does not match its digest")
    return content


def dump(value: Any, indent: int | None = None) -> str:
    """JSON of plain values. NaN and infinity become null, because JSON cannot express them."""
    return json.dumps(_plain(value), ensure_ascii=False, indent=indent, allow_nan=False)


def flat(config: Mapping[str, Any]) -> Config:
    """A configuration without inner mappings: their values are named `outer.inner`."""
    flattened: Config = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flattened |= {f"{name}.{key}": inner for key, inner in flat(value).items()}
        else:
            flattened[name] = value
    return flattened


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
