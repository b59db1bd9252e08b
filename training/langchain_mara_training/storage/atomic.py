"""Files that are whole or not there, whatever happens while they are written."""

import os
from pathlib import Path


def write_atomically(file: Path, *parts: bytes | memoryview) -> None:
    """Replaces a file's content; whoever is killed meanwhile leaves the old file or the new one, never a part."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as stream:
        for part in parts:
            stream.write(part)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)
    _sync_folder(file.parent)


def _sync_folder(folder: Path) -> None:
    """Has the new name on disk, too; where folders cannot be opened, as on Windows, the system sees to it."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
