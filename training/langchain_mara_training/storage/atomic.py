"""Atomic writes: a file is complete or absent, whatever happens while it is written."""

import os
from pathlib import Path


def write_atomically(file: Path, *parts: bytes | memoryview) -> None:
    """Replaces a file's content. A process killed on the way leaves the old file or the new one, never a part.

    Args:
        file: File to replace, in an existing folder.
        *parts: New content, written one after the other.
    """
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as stream:
        for part in parts:
            stream.write(part)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)
    _sync_folder(file.parent)


def _sync_folder(folder: Path) -> None:
    """Flushes the new file name to disk. Windows cannot open folders and does this by itself."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
