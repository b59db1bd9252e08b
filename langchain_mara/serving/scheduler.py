"""Runs the requests of many callers in one running batch, with one decoding thread per loaded model.

A caller submits a `RequestGroup` and waits for its decisions. The thread runs only while there are requests. Groups
take turns: the next free place in the batch goes to the group that has waited longest since its last turn, so a single
prompt does not wait for a batch of a thousand to finish.

When the main thread ends, the interpreter waits for all threads. So the decoding thread then stops before its next
pass, and its callers get an error.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from langchain_mara.decoding.loop import decode
from langchain_mara.decoding.request import Decision, Request
from langchain_mara.exceptions import InterpreterExitError, QueueFullError
from langchain_mara.options import DEFAULT_QUEUE_SIZE, BatchConfig
from langchain_mara.policy.contract import Policy

MOST_ANSWERS = 2**16
"""Most answers of one call, whatever its settings: more would keep the interpreter from serving other callers."""


@dataclass(eq=False)
class RequestGroup:
    """Requests that one caller submits together.

    To withdraw the requests that have not begun, set `withdrawn`; to end those that run, call `Request.cancel`. Neither
    takes a lock, because the garbage collector closes generators, and it may run while the queue is locked.

    Attributes:
        policy: The policy model.
        waiting: Requests that have not begun, in the order in which they are decoded.
        batch_config: Batch settings. Only groups with equal settings share a batch.
        on_decision: Called with every decision, in the decoding thread. If it raises, that request fails.
        on_leave: Called once with every request that has ended, in the decoding thread.
        withdrawn: Whether the caller no longer wants the waiting requests.
    """

    policy: Policy
    waiting: deque[Request]
    batch_config: BatchConfig
    on_decision: Callable[[Decision], None]
    on_leave: Callable[[Request], None]
    withdrawn: bool = False


class Load(NamedTuple):
    """How busy a loaded model is.

    Attributes:
        waiting: Requests that have not begun.
        running: Requests that are in the batch.
        passes: Passes of the model since it was loaded.
    """

    waiting: int
    running: int
    passes: int


class Scheduler:
    """The queue of one loaded model, and the thread that decodes from it.

    Attributes:
        passes: Passes of the model since it was loaded.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._groups: list[RequestGroup] = []
        self._thread: threading.Thread | None = None
        self._overtaken = self._running = self.passes = 0

    @staticmethod
    def of(policy: Policy) -> "Scheduler":
        """The scheduler of a loaded model, which lives as long as the model."""
        with policy.loaded.lock:
            policy.loaded.scheduler = policy.loaded.scheduler or Scheduler()
            return policy.loaded.scheduler

    def submit(self, group: RequestGroup, queue_size: int = DEFAULT_QUEUE_SIZE) -> None:
        """Queues a group of requests and returns immediately.

        Args:
            group: Group with at least one request.
            queue_size: Number of waiting requests at which the queue is full and the group is refused. A group that
                holds more than that, beyond a full batch, is refused, too.

        Raises:
            QueueFullError: If the queue is full, or the group is too large.
            InterpreterExitError: If the main thread has ended.
        """
        refuse_large(len(group.waiting), group.batch_config.batch_size + queue_size)
        with self._lock:
            _refuse_exit()
            waiting = self._waiting()
            if waiting >= queue_size:
                raise QueueFullError(
                    f"{waiting} requests are waiting for {group.policy.name} already. Try again later, limit "
                    "the callers (max_concurrency), or raise queue_size."
                )
            # A thread does not survive a fork, so check that it is alive.
            if self._thread is None or not self._thread.is_alive():
                # Not a daemon, even if the caller is one: a daemon is ended inside C++ code, which aborts the process.
                self._thread = threading.Thread(target=self._run, name="mara-decoding", daemon=False)
                self._thread.start()
            self._groups.append(group)

    def load(self) -> Load:
        """How busy the model is at this moment."""
        with self._lock:
            return Load(self._waiting(), self._running, self.passes)

    def _waiting(self) -> int:
        self._forget_withdrawn()
        return sum(len(queued.waiting) for queued in self._groups)

    def _forget_withdrawn(self) -> None:
        self._groups = [group for group in self._groups if not group.withdrawn]

    def _run(self) -> None:
        while True:
            with self._lock:
                self._forget_withdrawn()
                if not self._groups:
                    self._thread = None
                    return
                group = self._groups[0]
            self._decode(group.policy, group.batch_config)

    def _decode(self, policy: Policy, batch_config: BatchConfig) -> None:
        """Runs one batch until all its sequences have ended and no request may join."""
        self._overtaken, passes = 0, policy.passes
        running: dict[Request, RequestGroup] = {}

        def leave(request: Request) -> None:
            running.pop(request).on_leave(request)

        def joining() -> Iterator[Request | None]:
            while True:
                _refuse_exit()
                turn = self._next(batch_config)
                if turn is not None:
                    running[turn[0]] = turn[1]
                yield None if turn is None else turn[0]

        try:
            decisions = decode(
                policy,
                joining(),
                batch_size=batch_config.batch_size,
                width=batch_config.width,
                draft=batch_config.draft,
                on_leave=leave,
                prefix_cache=policy.loaded.prefix_cache(batch_config.prefix_memory),
            )
            for decision in decisions:
                _refuse_exit()
                self._running, self.passes, passes = len(running), self.passes + policy.passes - passes, policy.passes
                request = decision.request
                if request in running and not request.cancelled:
                    _deliver(running[request], decision)
        except BaseException as error:  # noqa: BLE001 - the callers raise it, and the thread survives
            # An error before any request runs would recur forever without reaching a caller, so fail the next request.
            if not running and (turn := self._next(batch_config)):
                running[turn[0]] = turn[1]
            for request in list(running):
                request.fail(error)
                leave(request)
        finally:
            self._running = 0

    def _next(self, batch_config: BatchConfig) -> tuple[Request, RequestGroup] | None:
        """The next request with these batch settings, and its group.

        None if no such request waits, or if as many requests as fill a batch have overtaken groups with other settings.
        If fewer could overtake, two settings that take turns would run batches of a single sequence.
        """
        with self._lock:
            self._forget_withdrawn()
            matching = [group for group in self._groups if group.batch_config == batch_config]
            overtaken_groups = len(self._groups) - len(matching)
            if not matching or (overtaken_groups and self._overtaken >= batch_config.batch_size):
                return None
            self._overtaken += bool(overtaken_groups)
            group = matching[0]
            self._groups.remove(group)
            request = group.waiting.popleft()
            if group.waiting:
                self._groups.append(group)
            return request, group


def _deliver(group: RequestGroup, decision: Decision) -> None:
    try:
        group.on_decision(decision)
    except BaseException as error:  # noqa: BLE001 - the caller of this request raises it
        decision.request.fail(error)


def is_exiting() -> bool:
    """Whether the main thread has ended, so that the interpreter exits as soon as no other thread keeps it."""
    return not threading.main_thread().is_alive()


def _refuse_exit() -> None:
    """Refuses work once the main thread has ended: the interpreter would wait for it before it exits."""
    if is_exiting():
        raise InterpreterExitError(
            "The interpreter exits, so this answer is not decoded to its end. Wait for your answers before the main "
            "thread ends, for example by joining the threads that ask for them."
        )


def refuse_large(requests: int, most: int) -> None:
    """Refuses a call for more answers than may run and wait, or than `MOST_ANSWERS`.

    Args:
        requests: Number of answers the call asks for.
        most: `batch_size` and `queue_size` together, which a call may set.

    Raises:
        QueueFullError: If they are too many.
    """
    most = min(most, MOST_ANSWERS)
    if requests > most:
        raise QueueFullError(
            f"One call asks for {requests} answers, but {most} may run and wait (batch_size + queue_size). "
            "Ask for fewer at a time (a smaller n, or parts of the prompts), or raise queue_size."
        )
