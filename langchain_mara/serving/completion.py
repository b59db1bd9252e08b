"""Texts out of decisions: the one place where the decode loop meets a tokenizer and stop strings."""

import asyncio
import queue
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from math import isnan
from typing import Any, NamedTuple

from langchain_mara.decoding.request import Decision, FinishReason, Request
from langchain_mara.options import DEFAULT_QUEUE_SIZE, BatchConfig
from langchain_mara.policy.model import PolicyModel
from langchain_mara.serving.scheduler import RequestGroup, Scheduler
from langchain_mara.text.detokenizer import IncrementalDetokenizer
from langchain_mara.tracing.statistics import DecisionStatistics


@dataclass(eq=False)
class Completion:
    """One prompt being answered.

    Attributes:
        request: What the decode loop runs.
        transcript: The text so far.
        statistics: Of the decisions so far.
        finish_reason: None while it runs.
        decisions: How many were taken so far.
        accept_probabilities: For each emitted token those of the candidates examined (None for a state that
            was not finite), where they are asked for.
    """

    request: Request
    transcript: IncrementalDetokenizer
    statistics: DecisionStatistics = field(default_factory=DecisionStatistics)
    finish_reason: FinishReason | None = None
    accept_probabilities: list[list[float | None]] | None = None
    decisions: int = 0
    _told: int = 0

    @property
    def info(self) -> dict[str, Any]:
        """LangChain's `generation_info`: why it ended, counts of what was decided, and what else is asked for."""
        info = {"finish_reason": self.finish_reason, "decisions": self.statistics.as_info()}
        return (
            info if self.accept_probabilities is None else {**info, "accept_probabilities": self.accept_probabilities}
        )

    def info_of_chunk(self, delta: "CompletionDelta") -> dict[str, Any] | None:
        """`info` for the chunk that ends with a delta, so that the infos of a stream's chunks merge to the whole.

        The decoding thread may be ahead of the reader, so a chunk takes the decisions up to its delta and no others.
        """
        info = self.info if delta.last else {}
        if self.accept_probabilities is not None:
            info["accept_probabilities"] = self.accept_probabilities[self._told : delta.decisions]
            self._told = delta.decisions
        return info or None

    def push(self, decision: Decision) -> str:
        """Takes a decision and returns the text it releases; ends the request at a stop string."""
        self.decisions += 1
        self.statistics.add(decision)
        if self.accept_probabilities is not None:
            self.accept_probabilities.append([None if isnan(p) else p for p in decision.accept_probabilities])
        self.finish_reason = decision.finish_reason
        released = "" if decision.token_id is None else self.transcript.push(decision.token_id)
        if self.transcript.stopped:
            self.finish_reason = "stop"
            self.request.cancel()
        elif self.finish_reason is not None:
            released += self.transcript.finish()
            # What was held back may hold a stop string once the last bytes are decoded.
            self.finish_reason = "stop" if self.transcript.stopped else self.finish_reason
        return released


def token_usage(completions: Sequence[Completion]) -> dict[str, int]:
    """Tokens of prompts and answers, by the names LangChain uses."""
    # Several answers to one prompt have the prompt in common.
    prompts = {id(completion.request.prompt_ids): len(completion.request.prompt_ids) for completion in completions}
    prompt = sum(prompts.values())
    answer = sum(completion.statistics.tokens for completion in completions)
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


class CompletionDelta(NamedTuple):
    """What one decision adds to a completion.

    Attributes:
        completion: Which one.
        decision: What was decided.
        text: Text it releases, often the empty string.
        last: Whether the completion has ended with it.
        decisions: Decisions of the completion so far, this one included.
    """

    completion: Completion
    decision: Decision
    text: str
    last: bool
    decisions: int


@dataclass(frozen=True)
class GenerationJob:
    """Prompts to be answered together by a loaded model's scheduler.

    Attributes:
        policy: The policy model.
        completions: None of them begun.
        pace: Batch size, width, draft, prefix memory and whether passes are compiled.
        queue_size: Most requests that may be waiting before.
        timeout: Seconds until all of it must be done; None for no limit.
    """

    policy: PolicyModel
    completions: Sequence[Completion]
    pace: BatchConfig = field(default_factory=BatchConfig)
    queue_size: int = DEFAULT_QUEUE_SIZE
    timeout: float | None = None


def complete(work: GenerationJob) -> Iterator[CompletionDelta]:
    """Answers prompts in the model's running batch.

    Args:
        work: What to answer.

    Yields:
        A piece per decision; closing the generator frees the rows within a pass.

    Raises:
        QueueFullError: If too many requests are waiting.
        TimeoutError: If `timeout` is over.
        Exception: Whatever made one of the requests fail.
    """
    arrived: queue.SimpleQueue[CompletionDelta | Request] = queue.SimpleQueue()
    with _submitted(work, arrived.put) as deadline:
        running = {completion.request for completion in work.completions}
        while running:
            try:
                item = arrived.get(timeout=deadline())
            except queue.Empty:
                raise _timeout(work) from None
            if isinstance(item, CompletionDelta):
                yield item
            _settle(running, item)


async def acomplete(work: GenerationJob) -> AsyncIterator[CompletionDelta]:
    """As `complete`, without blocking the event loop.

    Args:
        work: What to answer.

    Yields:
        A piece per decision; cancelling the task or closing the generator frees the rows within a pass.

    Raises:
        QueueFullError: If too many requests are waiting.
        TimeoutError: If `timeout` is over.
        Exception: Whatever made one of the requests fail.
    """
    loop = asyncio.get_running_loop()
    arrived: asyncio.Queue[CompletionDelta | Request] = asyncio.Queue()

    def put(item: CompletionDelta | Request) -> None:
        # A loop that was closed in the meantime has nobody left to tell.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(arrived.put_nowait, item)

    with _submitted(work, put) as deadline:
        running = {completion.request for completion in work.completions}
        while running:
            try:
                # Unlike wait_for, this gives what has arrived also when time is over.
                async with asyncio.timeout(deadline()):
                    item = await arrived.get()
            except TimeoutError:
                raise _timeout(work) from None
            if isinstance(item, CompletionDelta):
                yield item
            _settle(running, item)


@contextmanager
def _submitted(
    work: GenerationJob, put: Callable[[CompletionDelta | Request], None]
) -> Iterator[Callable[[], float | None]]:
    """Has the work decoded while the context is open; gives the seconds left, and withdraws what is not done."""
    by_request = {completion.request: completion for completion in work.completions}
    end = None if work.timeout is None else time.monotonic() + work.timeout

    def push(decision: Decision) -> None:
        completion = by_request[decision.request]
        text = completion.push(decision)
        put(CompletionDelta(completion, decision, text, completion.finish_reason is not None, completion.decisions))

    for request in by_request:
        request.check(work.policy)
    call = RequestGroup(work.policy, list(by_request), work.pace, push, put)
    if by_request:
        Scheduler.of(work.policy).submit(call, work.queue_size)
    try:
        yield lambda: None if end is None else max(0.0, end - time.monotonic())
    finally:
        for completion in work.completions:
            if completion.finish_reason is None:
                completion.request.cancel()
        call.withdraw()


def _settle(running: set[Request], item: CompletionDelta | Request) -> None:
    """Takes a request that has ended out of those running; raises its error if it has one."""
    request = item.completion.request if isinstance(item, CompletionDelta) else item
    if request.error is not None:
        raise request.error
    if not isinstance(item, CompletionDelta) or item.last:
        running.discard(request)


def _timeout(work: GenerationJob) -> TimeoutError:
    return TimeoutError(f"{work.policy.name} did not answer within timeout={work.timeout} seconds.")
