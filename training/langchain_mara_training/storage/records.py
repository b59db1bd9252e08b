"""JSON files and logs, and the origin of a result: command line and library versions."""

import json
import math
import os
import platform
import shlex
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from langchain_mara import __version__
from langchain_mara_training.storage.atomic import write_atomically

Config = dict[str, Any]
"""Plain values by name."""

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
    with (Path(folder).expanduser() / "log.jsonl").open("a+b") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - 1))
        # A crash may have left half a line.
        is_cut = stream.read(1) not in (b"", b"\n")
        stream.write(("\n" * is_cut + line + "\n").encode())
        stream.flush()
        os.fsync(stream.fileno())


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
