"""Turns decisions into text: the only module where the decode loop meets tokenizers and stop strings."""

import queue
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from math import isnan
from typing import Any, NamedTuple

from langchain_mara.decoding.request import Decision, FinishReason, Request
from langchain_mara.options import DEFAULT_QUEUE_SIZE, BatchConfig
from langchain_mara.policy.contract import Policy
from langchain_mara.serving.mailbox import Inbox
from langchain_mara.serving.scheduler import RequestGroup, Scheduler, is_exiting
from langchain_mara.text.detokenizer import IncrementalDetokenizer
from langchain_mara.text.token_texts import TokenTexts
from langchain_mara.tracing.statistics import DecisionStatistics


@dataclass(eq=False)
class Completion:
    """One prompt being answered.

    Attributes:
        request: The request that the decode loop runs.
        detokenizer: Turns the decided tokens into text.
        statistics: Statistics of the decisions so far.
        finish_reason: Why the completion ended; None while it runs.
        accept_probabilities: For each decision, the accept probabilities of the candidates examined, with None for a
            state that was not finite; None if they are not requested.
        decisions: Number of decisions so far.
        token_texts: Texts of tokens, for log-probabilities; None if they are not requested.
        passes: Passes of the batch from the completion's first decision on, whatever other sequences were in them.
    """

    request: Request
    detokenizer: IncrementalDetokenizer
    statistics: DecisionStatistics = field(default_factory=DecisionStatistics)
    finish_reason: FinishReason | None = None
    accept_probabilities: list[list[float | None]] | None = None
    decisions: int = 0
    token_texts: TokenTexts | None = None
    passes: int = 0
    _passes_before: int | None = None
    _log_probabilities: list[dict[str, Any] | None] = field(default_factory=list)
    _decisions_in_chunks: int = 0

    @property
    def info(self) -> dict[str, Any]:
        """LangChain's `generation_info`: finish reason, statistics, and what is requested for each token."""
        info = {"finish_reason": self.finish_reason, "decisions": self.statistics.as_info()}
        return {**info, **self._info_of_tokens(0, self.decisions)}

    def _info_of_tokens(self, start: int, stop: int) -> dict[str, Any]:
        """What is requested for each of some tokens; OpenAI's log-probabilities do not contain the EOS."""
        info: dict[str, Any] = {}
        if self.accept_probabilities is not None:
            info["accept_probabilities"] = self.accept_probabilities[start:stop]
        if self.token_texts is not None:
            info["logprobs"] = {"content": [entry for entry in self._log_probabilities[start:stop] if entry]}
        return info

    def info_of_chunk(self, delta: "CompletionDelta") -> dict[str, Any] | None:
        """The part of `info` that belongs to the chunk ending with a delta. The parts of all chunks merge to `info`.

        The decoding thread may be ahead of the reader, so a chunk gets the decisions up to its delta and no later ones.
        """
        info = self.info if delta.last else {}
        info |= self._info_of_tokens(self._decisions_in_chunks, delta.decisions)
        self._decisions_in_chunks = delta.decisions
        return info or None

    def push(self, decision: Decision) -> str:
        """Takes a decision and returns the text that it releases. Ends the request at a stop string."""
        self.decisions += 1
        self.statistics.add(decision)
        if self.accept_probabilities is not None:
            self.accept_probabilities.append([None if isnan(p) else p for p in decision.accept_probabilities])
        if self.token_texts is not None:
            self._log_probabilities.append(self._log_entry(decision, self.token_texts))
        self.finish_reason = decision.finish_reason
        released = self.detokenizer.push(decision.token_id)
        if self.detokenizer.stopped:
            self.finish_reason = "stop"
            self.request.cancel()
        elif self.finish_reason is not None:
            released += self.detokenizer.finish()
            # What was held back may hold a stop string once the last bytes are decoded.
            self.finish_reason = "stop" if self.detokenizer.stopped else self.finish_reason
        return released

    def count_passes(self, made: int) -> None:
        """Takes the number of passes that the model has made when a decision arrives.

        Args:
            made: Passes since the model was loaded.
        """
        if self._passes_before is None:
            self._passes_before = made - 1
        self.passes = made - self._passes_before

    def _log_entry(self, decision: Decision, texts: TokenTexts) -> dict[str, Any] | None:
        logs = decision.log_probabilities
        if logs is None or decision.token_id in self.request.eos_token_ids:
            return None
        top = [texts.entry(token, log) for token, log in logs.top]
        return {**texts.entry(decision.token_id, logs.chosen), "top_logprobs": top}


def token_usage(completions: Sequence[Completion]) -> dict[str, int]:
    """Token counts of prompts and answers, under LangChain's names."""
    # Several answers to one prompt count their common prompt once.
    prompts = {id(completion.request.prompt_ids): len(completion.request.prompt_ids) for completion in completions}
    prompt_tokens = sum(prompts.values())
    answer_tokens = sum(completion.statistics.tokens for completion in completions)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": answer_tokens,
        "total_tokens": prompt_tokens + answer_tokens,
    }


class CompletionDelta(NamedTuple):
    """What one decision adds to a completion.

    Attributes:
        completion: The completion.
        decision: The decision.
        text: Text that the decision releases, often the empty string.
        last: Whether the completion ends with this decision.
        decisions: Number of decisions of the completion so far, including this one.
    """

    completion: Completion
    decision: Decision
    text: str
    last: bool
    decisions: int


@dataclass(frozen=True)
class GenerationJob:
    """Completions that a loaded model's scheduler is to run together.

    Attributes:
        policy: The policy model.
        completions: Completions that have not begun.
        batch_config: Batch settings.
        queue_size: Number of waiting requests at which the job is refused.
        timeout: Seconds within which all completions must end; None for no limit.
    """

    policy: Policy
    completions: Sequence[Completion]
    batch_config: BatchConfig = field(default_factory=BatchConfig)
    queue_size: int = DEFAULT_QUEUE_SIZE
    timeout: float | None = None


def complete(job: GenerationJob) -> Iterator[CompletionDelta]:
    """Runs completions in the model's running batch.

    Args:
        job: The job to run.

    Yields:
        One delta per decision. Closing the generator ends the sequences before the next pass.

    Raises:
        QueueFullError: If too many requests are waiting.
        TimeoutError: If the job takes longer than its timeout.
        Exception: The error that made one of the requests fail.
    """
    arrived: queue.SimpleQueue[CompletionDelta | Request] = queue.SimpleQueue()
    with _submitted(job, arrived.put) as deadline:
        running = {completion.request for completion in job.completions}
        while running:
            try:
                item = arrived.get(timeout=deadline())
            except queue.Empty:
                raise _timeout(job) from None
            if isinstance(item, CompletionDelta):
                yield item
            _settle(running, item)


async def acomplete(job: GenerationJob) -> AsyncIterator[CompletionDelta]:
    """Runs completions like `complete`, without blocking the event loop.

    Args:
        job: The job to run.

    Yields:
        One delta per decision. Canceling the task or closing the generator ends the sequences before the next pass.

    Raises:
        QueueFullError: If too many requests are waiting.
        TimeoutError: If the job takes longer than its timeout.
        Exception: The error that made one of the requests fail.
    """
    async with aclosing(acomplete_together(job)) as arriving:
        async for deltas in arriving:
            for delta in deltas:
                yield delta


async def acomplete_together(job: GenerationJob) -> AsyncGenerator[list[CompletionDelta]]:
    """Runs completions like `acomplete`, and yields together what arrives together.

    Args:
        job: The job to run.

    Yields:
        The deltas that have arrived since the last ones were taken, at least one.
    """
    inbox: Inbox[CompletionDelta | Request] = Inbox()
    with _submitted(job, inbox.put) as deadline:
        running = {completion.request for completion in job.completions}
        while running:
            try:
                items = await inbox.take(deadline())
            except TimeoutError:
                raise _timeout(job) from None
            if deltas := [item for item in items if isinstance(item, CompletionDelta)]:
                yield deltas
            for item in items:
                _settle(running, item)


@contextmanager
def _submitted(
    job: GenerationJob, put: Callable[[CompletionDelta | Request], None]
) -> Iterator[Callable[[], float | None]]:
    """Runs a job while the context is open and cancels its rest at exit; gives a function of the seconds left."""
    by_request = {completion.request: completion for completion in job.completions}
    end = None if job.timeout is None else time.monotonic() + job.timeout

    is_daemon = threading.current_thread().daemon
    scheduler = Scheduler.of(job.policy)

    def wake(item: CompletionDelta | Request) -> None:
        # A daemon thread that wakes while the interpreter exits may be ended inside C++ code, which aborts the process.
        if not (is_daemon and is_exiting()):
            put(item)

    def push(decision: Decision) -> None:
        completion = by_request[decision.request]
        completion.count_passes(scheduler.passes)
        text = completion.push(decision)
        wake(CompletionDelta(completion, decision, text, completion.finish_reason is not None, completion.decisions))

    for request in by_request:
        request.check(job.policy)
    group = RequestGroup(job.policy, deque(by_request), job.batch_config, push, wake)
    if by_request:
        scheduler.submit(group, job.queue_size)
    try:
        yield lambda: None if end is None else max(0.0, end - time.monotonic())
    finally:
        for completion in job.completions:
            if completion.finish_reason is None:
                completion.request.cancel()
        group.withdrawn = True


def _settle(running: set[Request], item: CompletionDelta | Request) -> None:
    """Removes a request that has ended from `running`, and raises its error if it has one."""
    if isinstance(item, CompletionDelta):
        # The request may have failed since. Its error comes after all its deltas, with the request itself.
        if item.last:
            running.discard(item.completion.request)
        return
    if item.error is not None:
        raise item.error
    running.discard(item)


def _timeout(job: GenerationJob) -> TimeoutError:
    return TimeoutError(
        f"{job.policy.name} did not answer within timeout={job.timeout} seconds. Raise timeout, or ask for less: "
        "a smaller max_new_tokens, or fewer prompts at a time."
    )
