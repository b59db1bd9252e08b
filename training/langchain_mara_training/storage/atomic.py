"""Writes that a crash or a full disk cannot spoil: a file is complete, or it is as it was before."""

import errno
import os
import platform
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from langchain_mara.exceptions import TrainingError

_NO_SPACE = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_TEMPORARY = re.compile(r"\..+\.(?P<host>[\w-]*)\.(?P<process>\d+)\.tmp", re.DOTALL)


def write_atomically(file: Path, *parts: bytes | memoryview) -> None:
    """Replaces a file's content. A process killed on the way leaves the old file or the new one, never a part.

    Args:
        file: File to replace, in an existing folder.
        *parts: New content, written one after the other.

    Raises:
        TrainingError: If the disk is full or the folder cannot be written to. The old file is still there.
    """
    temporary = file.with_name(f".{file.name}.{_host()}.{os.getpid()}.tmp")
    with explained(file, sum(memoryview(part).nbytes for part in parts)):
        try:
            with temporary.open("wb") as stream:
                for part in parts:
                    stream.write(part)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(file)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(file.parent)


def append_durably(file: Path, data: bytes) -> None:
    """Appends whole lines to a file. They are on disk when this returns; if that fails, the file is as before.

    A crash may have left half a line at the end. The new lines then begin on a line of their own.

    Args:
        file: File to append to; it is created if it is missing.
        data: Lines, each with its line break.

    Raises:
        TrainingError: If the disk is full or the file cannot be written to.
    """
    with explained(file, len(data)), file.open("a+b", buffering=0) as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - 1))
        is_cut = stream.read(1) not in (b"", b"\n")
        rest = memoryview(b"\n" * is_cut + data)
        try:
            while rest:
                rest = rest[stream.write(rest) :]
            os.fsync(stream.fileno())
        except BaseException:
            stream.truncate(size)
            raise


def require_folder(folder: Path, option: str = "output") -> None:
    """Refuses a folder that a job could not write to at its end. Nothing is created.

    Args:
        folder: Folder that the job will write to; it may be missing.
        option: Name of the argument that gives it.

    Raises:
        TrainingError: If it is a file, is below one, or may not be written to.
    """
    folder = folder.expanduser()
    if folder.exists() and not folder.is_dir():
        raise TrainingError(f"{folder} is a file. Give a folder as {option}.")
    _require_writable(folder, folder, option)


def require_file(file: Path, option: str) -> None:
    """Refuses a file that a job could not write at its end. Nothing is created.

    Args:
        file: File that the job will write; it may be missing.
        option: Name of the argument that gives it.

    Raises:
        TrainingError: If it is a folder, or its folder may not be written to.
    """
    file = file.expanduser()
    if file.is_dir():
        raise TrainingError(f"{file} is a folder. Give a file as {option}.")
    _require_writable(file.parent, file, option)


def _require_writable(folder: Path, target: Path, option: str) -> None:
    """Refuses a target in a folder that neither is there nor can be created."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not existing.is_dir():
        raise TrainingError(f"{target} cannot be written: {existing} is a file. Give another {option}.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise TrainingError(f"{target} cannot be written: you may not write to {existing}. Give another {option}.")


@contextmanager
def explained(file: Path, size: int) -> Iterator[None]:
    """Turns an `OSError` into one that names the file and the bytes it needs.

    Args:
        file: File or folder that is written.
        size: Bytes to be written.

    Raises:
        TrainingError: If the block raises an `OSError`.
    """
    try:
        yield
    except OSError as error:
        what = f"{file} cannot be written: {error.strerror or error}."
        if error.errno not in _NO_SPACE:
            raise TrainingError(f"{what} Give a folder that you may write to.") from error
        free = next((shutil.disk_usage(folder).free for folder in file.parents if folder.is_dir()), 0)
        raise TrainingError(
            f"{what} It needs {size:,} bytes, and {free:,} are free there. Make room and run the job again; it resumes "
            "from what was written before."
        ) from error


def remove_temporary_files(folder: Path, *, alone: bool) -> None:
    """Removes the temporary files that killed processes left in a folder and below it.

    Args:
        folder: Folder of a job.
        alone: Whether no other process writes to the folder itself now. Otherwise, and in its subfolders, only files
            of this machine's dead processes go.
    """
    for parent, _, names in os.walk(folder):
        for match in filter(None, map(_TEMPORARY.fullmatch, names)):
            is_dead = match["host"] == _host() and not _is_running(int(match["process"]))
            if is_dead or (alone and Path(parent) == folder):
                Path(parent, match[0]).unlink(missing_ok=True)


def _host() -> str:
    return re.sub(r"[^\w-]", "-", platform.node(), flags=re.ASCII)[:64]


def _is_running(process: int) -> bool:
    if os.name != "posix":
        return True  # elsewhere the question would end the process
    with suppress(PermissionError):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return False
    return True


def _sync_folder(folder: Path) -> None:
    """Flushes the new file name to disk. Windows cannot open folders and does this by itself."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
