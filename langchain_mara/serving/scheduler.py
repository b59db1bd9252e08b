"""Requests of many callers in one running batch: one decoding thread per loaded model.

Whoever answers prompts hands over a `Call` and waits for its decisions. The thread runs only while
there is work. Calls take turns: the next free row goes to the call that has waited longest since its
last turn, so that a single prompt does not wait behind a batch of a thousand.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from langchain_mara.decoding.loop import decode
from langchain_mara.decoding.request import Decision, Request
from langchain_mara.exceptions import QueueFullError
from langchain_mara.options import DEFAULT_QUEUE_SIZE, BatchConfig
from langchain_mara.policy.model import PolicyModel


class RequestGroup:
    """Requests of one caller, answered together.

    Args:
        policy: The policy model.
        requests: To be decoded in this order.
        pace: Batch size, width, draft, prefix memory and whether passes are compiled.
        on_decision: Given every decision, in the decoding thread; what it raises fails that request.
        on_leave: Given every request that has ended, in the decoding thread, once.
    """

    def __init__(
        self,
        policy: PolicyModel,
        requests: Sequence[Request],
        pace: BatchConfig,
        on_decision: Callable[[Decision], None],
        on_leave: Callable[[Request], None],
    ) -> None:
        self.policy = policy
        self.waiting = deque(requests)
        self.pace = pace
        self.on_decision = on_decision
        self.on_leave = on_leave
        self.withdrawn = False

    def withdraw(self) -> None:
        """Takes back what has not begun; rows that run end by `Request.cancel`.

        It needs no lock: the garbage collector, which may run while the queue is locked, closes generators.
        """
        self.withdrawn = True


class Scheduler:
    """The queue of one loaded model, and the thread that empties it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: list[RequestGroup] = []
        self._thread: threading.Thread | None = None
        self._overtaken = 0

    @staticmethod
    def of(policy: PolicyModel) -> "Scheduler":
        """The scheduler of a loaded model; it lives as long as the model."""
        with policy.loaded.lock:
            policy.loaded.scheduler = policy.loaded.scheduler or Scheduler()
            return policy.loaded.scheduler

    def submit(self, call: RequestGroup, queue_size: int = DEFAULT_QUEUE_SIZE) -> None:
        """Queues a call and returns at once.

        Args:
            call: With at least one request.
            queue_size: Refuse the call if as many requests are waiting already.

        Raises:
            QueueFullError: If the queue is full.
        """
        with self._lock:
            self._forget_withdrawn()
            waiting = sum(len(one.waiting) for one in self._calls)
            if waiting >= queue_size:
                raise QueueFullError(
                    f"{waiting} requests are waiting for {call.policy.name} already. Try again later, limit "
                    "the callers (max_concurrency), or raise queue_size."
                )
            # A thread does not survive a fork; is_alive tells.
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="mara-decoding")
                self._thread.start()
            self._calls.append(call)

    def _forget_withdrawn(self) -> None:
        self._calls = [call for call in self._calls if not call.withdrawn]

    def _run(self) -> None:
        while True:
            with self._lock:
                self._forget_withdrawn()
                if not self._calls:
                    self._thread = None
                    return
                call = self._calls[0]
            self._decode(call.policy, call.pace)

    def _decode(self, policy: PolicyModel, pace: BatchConfig) -> None:
        """Runs one batch until no row is left and none may join."""
        self._overtaken = 0
        running: dict[Request, RequestGroup] = {}

        def leave(request: Request) -> None:
            running.pop(request).on_leave(request)

        def joining() -> Iterator[Request | None]:
            while True:
                turn = self._next(pace)
                if turn is not None:
                    running[turn[0]] = turn[1]
                yield None if turn is None else turn[0]

        try:
            decisions = decode(
                policy,
                joining(),
                batch_size=pace.batch_size,
                width=pace.width,
                draft=pace.draft,
                on_leave=leave,
                prefix_cache=policy.loaded.prefix_cache(pace.prefix_memory),
            )
            for decision in decisions:
                request = decision.request
                if request in running and not request.cancelled:
                    _deliver(running[request], decision)
        except BaseException as error:  # noqa: BLE001 - the callers raise it, the thread lives on
            # What fails before anybody runs would fail for ever, and nobody would be told.
            if not running and (turn := self._next(pace)):
                running[turn[0]] = turn[1]
            for request in list(running):
                request.fail(error)
                leave(request)

    def _next(self, pace: BatchConfig) -> tuple[Request, RequestGroup] | None:
        """The next request of a pace and whose it is; None if none waits, or those of another pace wait too long.

        As many may overtake those as fill a batch, or two paces in turn would run batches of a single row.
        """
        with self._lock:
            self._forget_withdrawn()
            mine = [call for call in self._calls if call.pace == pace]
            others = len(self._calls) - len(mine)
            if not mine or (others and self._overtaken >= pace.batch_size):
                return None
            self._overtaken += bool(others)
            call = mine[0]
            self._calls.remove(call)
            request = call.waiting.popleft()
            if call.waiting:
                self._calls.append(call)
            return request, call


def _deliver(call: RequestGroup, decision: Decision) -> None:
    try:
        call.on_decision(decision)
    except Exception as error:  # noqa: BLE001 - of one caller, who raises it
        decision.request.fail(error)
