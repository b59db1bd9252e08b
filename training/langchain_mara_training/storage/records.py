"""JSON files and logs, and where a result came from: command line and library versions."""

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
    """Appends a record to a run's `log.jsonl`, with the time, and has it on disk when it returns."""
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    line = dump({"time": time, "command": command, "event": event, **values})
    with (Path(folder).expanduser() / "log.jsonl").open("a+b") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - 1))
        # A crash may have left half a line.
        cut = stream.read(1) not in (b"", b"\n")
        stream.write(("\n" * cut + line + "\n").encode())
        stream.flush()
        os.fsync(stream.fileno())


def command_line() -> str:
    """What this process was called by, as a shell takes it; of the program its name alone."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that results depend on."""
    found = {"langchain-mara": __version__, "python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            found[library] = "not installed"
    return found


def write_json(file: Path, value: Any) -> None:
    """Writes plain values to a file, whole or not at all."""
    write_atomically(file, (dump(value, indent=2) + "\n").encode())


def dump(value: Any, indent: int | None = None) -> str:
    """JSON of plain values; numbers that are not finite become null, which JSON has no word for."""
    return json.dumps(_plain(value), ensure_ascii=False, indent=indent, allow_nan=False)


def flat(config: Mapping[str, Any]) -> Config:
    """A configuration without inner mappings: their values are named `outer.inner`."""
    found: Config = {}
    for name, value in config.items():
        inner = flat(value) if isinstance(value, Mapping) else None
        found |= {name: value} if inner is None else {f"{name}.{key}": one for key, one in inner.items()}
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
