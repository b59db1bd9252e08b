"""Callbacks of long jobs: your own trackers and stopping rules, told when a job starts, steps, saves and ends."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from langchain_mara.exceptions import OptionsError

_EVENTS = ("on_start", "on_step", "on_checkpoint", "on_end")


@dataclass
class JobProgress:
    """How far a job is; every callback of the job gets the same object.

    Attributes:
        job: What the job does: `fit`, `reinforce`, `align`, `label`, `compare` or `calibrate`.
        unit: What `done` and `total` count, such as epochs.
        total: Number of units in the whole job.
        done: Number of units done so far, those of a resumed job included.
        values: Latest numbers, by name, such as losses and rewards.
        error: What ended the job, or None; for `on_end`.
        stopping: Whether a callback asked the job to stop.
    """

    job: str
    unit: str
    total: int
    done: int = 0
    values: dict[str, float] = field(default_factory=dict)
    error: BaseException | None = None
    stopping: bool = False

    def stop(self) -> None:
        """Asks the job to end after this step, as if it were complete. What was done is kept."""
        self.stopping = True


class JobCallback:
    """Base class of callbacks. Override the methods that you need; each gets the job's `JobProgress`.

    An exception from a method ends the job like an error of its own: what was done so far is kept, see
    docs/training.md, and the exception reaches the caller with a note that names the callback.

    Example:
        >>> class Patience(JobCallback):
        ...     def on_step(self, progress):
        ...         if progress.values["loss"] < 0.1:
        ...             progress.stop()
    """

    def on_start(self, progress: JobProgress) -> None:
        """Called before the first step, also when a job resumes."""

    def on_step(self, progress: JobProgress) -> None:
        """Called after each step: an epoch, a round, a shard of labels, a chunk of prompts."""

    def on_checkpoint(self, progress: JobProgress) -> None:
        """Called when a state was written from which the job can resume."""

    def on_end(self, progress: JobProgress) -> None:
        """Called once, however the job ended."""


class JobEvents:
    """Tells callbacks what happens in a job.

    Args:
        callbacks: Callbacks, told in this order.
        progress: Progress of the job.
    """

    def __init__(self, callbacks: Sequence[JobCallback], progress: JobProgress) -> None:
        self.callbacks, self.progress = list(callbacks), progress

    def step(self, done: int, **values: float) -> bool:
        """A step is done; returns whether the job shall stop."""
        self.progress.done = done
        self.progress.values = {**self.progress.values, **values}
        self._tell("on_step")
        return self.progress.stopping

    def checkpoint(self, **values: float) -> None:
        """A state was written."""
        self.progress.values = {**self.progress.values, **values}
        self._tell("on_checkpoint")

    def start(self) -> None:
        """The job starts."""
        self._tell("on_start")

    def end(self, error: BaseException | None = None) -> None:
        """The job has ended. All callbacks are told, even if one of them raises; its exception does not hide `error`.

        Args:
            error: What ended the job.
        """
        self.progress.error = error
        first: BaseException | None = None
        for callback in self.callbacks:
            try:
                _tell(callback, "on_end", self.progress)
            except Exception as failure:  # noqa: BLE001 - a callback may raise anything
                first = first or failure
        if first is not None and error is None:
            raise first
        if first is not None and error is not None:
            error.add_note(f"A callback failed as well when it was told: {type(first).__name__}: {first}")

    def _tell(self, event: str) -> None:
        for callback in self.callbacks:
            _tell(callback, event, self.progress)


@contextmanager
def job_events(callbacks: Any, job: str, unit: str, total: int, done: int = 0) -> Iterator[JobEvents]:
    """Tells callbacks that a job starts, and that it ends, however the context is left.

    Args:
        callbacks: Callbacks, as `as_callbacks` takes them.
        job: Name of the job.
        unit: What `total` counts.
        total: Number of units in the whole job.
        done: Number of units already done.
    """
    events = JobEvents(as_callbacks(callbacks), JobProgress(job, unit, total, done))
    try:
        events.start()
        yield events
    except BaseException as error:
        events.end(error)
        raise
    events.end()


def as_callbacks(callbacks: Any) -> list[JobCallback]:
    """Callbacks as a list.

    Args:
        callbacks: One callback, several, or None. Anything with the four methods of `JobCallback` is one.

    Raises:
        OptionsError: If one is a class, or lacks a method.
    """
    if callbacks is None:
        return []
    given = list(callbacks) if isinstance(callbacks, Sequence) else [callbacks]
    for callback in given:
        missing = [event for event in _EVENTS if not callable(getattr(callback, event, None))]
        if isinstance(callback, type) or missing:
            what = "a class" if isinstance(callback, type) else f"without {', '.join(missing)}"
            raise OptionsError(
                f"The callback {callback!r} is {what}. Give an instance of a class that inherits from JobCallback."
            )
    return given


def _tell(callback: JobCallback, event: str, progress: JobProgress) -> None:
    try:
        getattr(callback, event)(progress)
    except BaseException as error:
        error.add_note(
            f"The callback {type(callback).__name__} raised this in {event}, at {progress.done} of "
            f"{progress.total} {progress.unit}."
        )
        raise
