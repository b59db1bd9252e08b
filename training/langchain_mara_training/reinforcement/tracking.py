"""Sends the history of a training to where people read it: a log of JSON lines, and accelerate's trackers."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers

from langchain_mara.exceptions import OptionsError, TrainingError
from langchain_mara_training.storage.distributed import processes
from langchain_mara_training.storage.records import append_record

Trackers: TypeAlias = str | GeneralTracker | Sequence[str | GeneralTracker]
"""Names such as `tensorboard` or `wandb`, or instances of accelerate's `GeneralTracker`."""
Entries = Sequence[Mapping[str, float]]
"""A history: entries in order, each with `episodes`."""

PROJECT = "langchain-mara"
_COMMAND, _EVENT = "rl", "noted"
_PACKAGES = {"tensorboard": "'langchain-mara[tracking]'", "comet_ml": "comet-ml"}


def make_trackers(trackers: Trackers, folder: str | Path | None) -> list[Any]:
    """Makes trackers by name, without starting them.

    Args:
        trackers: Names that accelerate knows, or instances of its `GeneralTracker`, which are returned as they are.
        folder: Folder for trackers that write files; they write to its subfolder `langchain-mara`.

    Raises:
        OptionsError: If a name is unknown, its library is not installed, or it needs a folder and none is given.
    """
    requested = [trackers] if isinstance(trackers, str | GeneralTracker) else trackers
    # Each tracker once, as accelerate does.
    return [_make(tracker, folder) if isinstance(tracker, str) else tracker for tracker in dict.fromkeys(requested)]


@contextmanager
def tracked(
    trackers: Sequence[Any], configuration: Mapping[str, Any], log: Path | None, history: Entries
) -> Iterator[Callable[[Entries], None]]:
    """Starts trackers, and finishes them however the context ends.

    Args:
        trackers: Trackers from `make_trackers`.
        configuration: Settings that each tracker stores at its start.
        log: Folder whose `log.jsonl` gets every entry once, even across restarts.
        history: History of the checkpoint that training resumes from. Entries missing from the log after a crash are
            sent at once.

    Yields:
        A function to call with the whole history after each checkpoint. It sends the new entries in order.

    Raises:
        TrainingError: If a tracker does not start.
    """
    last = int(history[-1]["episodes"]) if history else -1  # the first entry may be that of the start, episode 0
    sent = min(last, _last_logged(log)) if log is not None else last

    def send_new(entries: Entries) -> None:
        nonlocal sent
        for entry in entries:
            if entry["episodes"] <= sent:
                continue
            sent = int(entry["episodes"])
            for tracker in trackers:
                tracker.log({name: value for name, value in entry.items() if name != "episodes"}, step=sent)
            if log is not None:
                append_record(log, _COMMAND, _EVENT, **entry)

    with ExitStack() as stack:
        if trackers:
            processes()  # accelerate's trackers need its process state
        for tracker in trackers:
            _start(tracker)
            stack.callback(tracker.finish)
            tracker.store_init_configuration({name: _plain(value) for name, value in configuration.items()})
        send_new(history)
        yield send_new


def _make(name: str, folder: str | Path | None) -> Any:
    tracker_class = LOGGER_TYPE_TO_CLASS.get(name)
    if tracker_class is None:
        raise OptionsError(f"There is no tracker {name!r}. Give one of {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}.")
    if name not in map(str, get_available_trackers()):
        raise OptionsError(f"The tracker {name} is not installed: pip install {_PACKAGES.get(name, name)}")
    if not tracker_class.requires_logging_directory:
        return tracker_class(PROJECT)
    if folder is None:
        raise OptionsError(f"The tracker {name} writes files. Give a folder: output=….")
    return tracker_class(PROJECT, str(Path(folder).expanduser()))


def _start(tracker: Any) -> None:
    try:
        tracker.start()
    except Exception as error:  # a tracker's library may raise anything when it cannot reach its server
        reason = " ".join(str(error).split()) or type(error).__name__
        raise TrainingError(
            f"The tracker {tracker.name} does not start: {reason}. Fix its setup, or leave it out of trackers."
        ) from error


def _last_logged(folder: Path) -> int:
    """Number of episodes of the last entry in a log; -1 if there is none."""
    file = folder / "log.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return max(map(_logged_episodes, lines), default=-1)


def _logged_episodes(line: str) -> int:
    try:
        record = json.loads(line)
    except ValueError:
        return -1  # an incomplete line after a crash
    return int(record["episodes"]) if record.get("event") == _EVENT else -1


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str) else str(value)
