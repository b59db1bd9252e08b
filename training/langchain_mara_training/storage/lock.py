"""One process at a time works in a job's folder. The lock is the operating system's, so a dead process holds none.

Two files belong to it: `.lock`, which stays and is empty, and `.lock.json`, which says who holds the lock. A job may
start another one in the same folder, on the same thread.
"""

import json
import os
import platform
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from accelerate import PartialState
from filelock import FileLock, Timeout

from langchain_mara.exceptions import TrainingError
from langchain_mara_training.storage.atomic import explained, remove_temporary_files, write_atomically

_LOCK, _OWNER = ".lock", ".lock.json"


@dataclass
class _Held:
    """A lock of this process.

    Attributes:
        process: Process that took it; a fork does not inherit it.
        thread: Thread that took it.
        depth: Number of jobs in one another that hold it.
    """

    process: int
    thread: int
    depth: int = 1


_held: dict[Path, _Held] = {}
_changing = threading.Lock()


@contextmanager
def job_lock(folder: str | Path | None, state: PartialState | None = None) -> Iterator[None]:
    """Keeps other processes and threads out of a job's folder, and removes temporary files that killed jobs left.

    Args:
        folder: Folder of the job, created if it is missing; None takes no lock.
        state: The processes that share the job, if several may. Only the main one takes the lock.

    Raises:
        TrainingError: If another process or thread works there; the message says which, where, and since when.
    """
    if folder is None or not (state is None or state.is_main_process):
        yield
        return
    place = Path(folder).expanduser().resolve()
    lock = _entered(place, alone=state is None or state.num_processes == 1)
    try:
        yield
    finally:
        _leave(place, lock)


def _entered(place: Path, *, alone: bool) -> FileLock | None:
    """Takes the lock of a folder; None if this thread holds it already."""
    with _changing:
        held = _held.get(place)
        if held is not None and held.process == os.getpid():
            if held.thread != threading.get_ident():
                raise _in_use(place)
            held.depth += 1
            return None
        lock = FileLock(place / _LOCK, timeout=0, thread_local=False)
        with explained(place / _LOCK, 0):
            place.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire()
            except Timeout:
                raise _in_use(place) from None
            except NotImplementedError:
                warnings.warn(f"The file system of {place} has no locks. Start no second job there.", stacklevel=4)
        try:
            remove_temporary_files(place, alone=alone)
            write_atomically(place / _OWNER, json.dumps(_this_process()).encode())
        except BaseException:
            lock.release()
            raise
        _held[place] = _Held(os.getpid(), threading.get_ident())
        return lock


def _leave(place: Path, lock: FileLock | None) -> None:
    with _changing:
        _held[place].depth -= 1
        if lock is not None:
            del _held[place]
            (place / _OWNER).unlink(missing_ok=True)
            lock.release()


def _this_process() -> dict[str, str | int]:
    return {"host": platform.node(), "process": os.getpid(), "time": datetime.now(UTC).isoformat(timespec="seconds")}


def _in_use(place: Path) -> TrainingError:
    try:
        owner = json.loads((place / _OWNER).read_text(encoding="utf-8"))
        who = f"process {owner['process']} on {owner['host']}, since {owner['time']}"
    except (OSError, ValueError, KeyError, TypeError):
        who = "another process"
    return TrainingError(f"{place} is in use by {who}. Wait until that job has ended, or give another folder.")
