"""The history of a training where people look at it: in a log of JSON lines and in accelerate's trackers."""

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
"""Names such as `tensorboard` or `wandb`, or trackers of one's own."""
Entries = Sequence[Mapping[str, float]]
"""A history: mappings with `episodes`, in order."""

PROJECT = "langchain-mara"
_COMMAND, _EVENT = "rl", "noted"
_PACKAGES = {"tensorboard": "'langchain-mara[tracking]'", "comet_ml": "comet-ml"}


def make_trackers(trackers: Trackers, folder: str | Path | None) -> list[Any]:
    """Trackers by name, not started yet.

    Args:
        trackers: Names that accelerate knows, or instances of its `GeneralTracker`, which stay as they are.
        folder: For those that write files, below `langchain-mara`.

    Raises:
        OptionsError: If a name is unknown, its library is not installed, or a folder is missing.
    """
    given = [trackers] if isinstance(trackers, str | GeneralTracker) else trackers
    # Each name once, as accelerate has it.
    return [_make(one, folder) if isinstance(one, str) else one for one in dict.fromkeys(given)]


@contextmanager
def tracked(
    trackers: Sequence[Any], configuration: Mapping[str, Any], log: Path | None, history: Entries
) -> Iterator[Callable[[Entries], None]]:
    """Starts trackers, and finishes them however the context ends.

    Args:
        trackers: From `make_trackers`.
        configuration: Stored by each tracker at its start.
        log: Folder whose `log.jsonl` gets every entry once, whatever it holds already.
        history: As far as a checkpoint holds it. Entries that the log lacks, because of a crash, are told at once.

    Yields:
        What is to be called with the whole history when a checkpoint holds it: new entries are told, in order.

    Raises:
        TrainingError: If a tracker does not start.
    """
    last = int(history[-1]["episodes"]) if history else 0
    told = min(last, _last_logged(log)) if log is not None else last

    def note(entries: Entries) -> None:
        nonlocal told
        for entry in entries:
            if entry["episodes"] <= told:
                continue
            told = int(entry["episodes"])
            for tracker in trackers:
                tracker.log({name: value for name, value in entry.items() if name != "episodes"}, step=told)
            if log is not None:
                append_record(log, _COMMAND, _EVENT, **entry)

    with ExitStack() as stack:
        if trackers:
            processes()  # accelerate's trackers ask which of them this is
        for tracker in trackers:
            _start(tracker)
            stack.callback(tracker.finish)
            tracker.store_init_configuration({name: _plain(value) for name, value in configuration.items()})
        note(history)
        yield note


def _make(name: str, folder: str | Path | None) -> Any:
    kind = LOGGER_TYPE_TO_CLASS.get(name)
    if kind is None:
        raise OptionsError(f"There is no tracker {name!r}. Give one of {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}.")
    if name not in map(str, get_available_trackers()):
        raise OptionsError(f"The tracker {name} is not installed: pip install {_PACKAGES.get(name, name)}")
    if not kind.requires_logging_directory:
        return kind(PROJECT)
    if folder is None:
        raise OptionsError(f"The tracker {name} writes files. Give a folder: output=….")
    return kind(PROJECT, str(Path(folder).expanduser()))


def _start(tracker: Any) -> None:
    try:
        tracker.start()
    except Exception as error:  # whatever another's library does when it cannot reach its server
        reason = " ".join(str(error).split()) or type(error).__name__
        raise TrainingError(f"The tracker {tracker.name} does not start: {reason}") from error


def _last_logged(folder: Path) -> int:
    """Episodes of the last entry in a log; 0 where there is none."""
    file = folder / "log.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return max(map(_noted_episodes, lines), default=0)


def _noted_episodes(line: str) -> int:
    try:
        record = json.loads(line)
    except ValueError:
        return 0  # half a line that a crash left
    return int(record["episodes"]) if record.get("event") == _EVENT else 0


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str) else str(value)
