"""Runs answers for clients that may go away: whole, or as a stream of server-sent events."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from sse_starlette import EventSourceResponse
from starlette.datastructures import Headers
from starlette.types import Receive

from langchain_mara.exceptions import PromptError
from langchain_mara.server.errors import ApiError, api_error
from langchain_mara.server.protocol.answers import Answering
from langchain_mara.server.protocol.events import DONE, WAITING, event
from langchain_mara.server.state import ServerState, Visit
from langchain_mara.server.telemetry.spans import AnswerSpan
from langchain_mara.serving.completion import CompletionDelta, GenerationJob, acomplete_together

Result = TypeVar("Result")
Deltas = AsyncIterator[list[CompletionDelta]]

_GONE = 499


class ClientGoneError(Exception):
    """The client went away before its answer began."""


async def respond(request: Request, answering: Answering, *, stream: bool) -> Response:
    """The response with the answers.

    Args:
        request: The request.
        answering: Its answers, not begun.
        stream: Whether they come as a stream.

    Raises:
        ApiError: If the request cannot be answered, and nothing of the answer was sent.
    """
    state: ServerState = request.app.state.server
    _check(answering.job, answering.prompt_field)
    visit = request.scope["state"]["visit"]
    try:
        deltas = await visit.until_end.enter_async_context(_deltas(answering, state, visit))
        if stream:
            return await _stream(request, answering, deltas)
        await _while_there(request, _run(answering, deltas))
        return JSONResponse(answering.whole())
    except ClientGoneError:
        return Response(status_code=_GONE)
    except Exception as error:
        raise api_error(error) from error


async def _stream(request: Request, answering: Answering, deltas: Deltas) -> Response:
    """The response of a stream, which begins with the first token, or with a comment if that is long in coming."""
    settings = request.app.state.server.settings
    first = asyncio.ensure_future(anext(deltas))
    request.scope["state"]["visit"].until_end.push_async_callback(cancelled, first)
    await _while_there(request, asyncio.wait({first}, timeout=settings.keep_alive))
    if first.done():
        first.result()  # what has failed by now has a status code of its own
    events = _events(answering, first, deltas)
    return EventSourceResponse(events, sep="\n", ping=settings.keep_alive, send_timeout=settings.send_timeout)


def _check(job: GenerationJob, prompt_field: str) -> None:
    """Refuses a job that cannot be decoded, or that could never be queued."""
    most = job.batch_config.batch_size + job.queue_size
    if len(job.completions) > most:
        message = f"{len(job.completions)} answers are more than the {most} that may run and wait. Ask for fewer."
        raise ApiError(400, message, param="n")
    for completion in job.completions:
        try:
            completion.request.check(job.policy)
        except PromptError as error:
            length, context = len(completion.request.prompt_ids), job.policy.context
            is_long = context is not None and length >= context
            code = "context_length_exceeded" if is_long else None
            raise ApiError(400, str(error), param=prompt_field, code=code) from None


async def _run(answering: Answering, arriving: Deltas) -> None:
    async for deltas in arriving:
        for delta in deltas:
            answering.record(delta)


async def _events(
    answering: Answering, first: "asyncio.Future[list[CompletionDelta]]", arriving: Deltas
) -> AsyncIterator[bytes]:
    """The events of a stream; those that are waiting come together. Its status has been sent, so errors are events."""
    try:
        if not first.done():
            yield WAITING
        yield b"".join([*map(event, answering.begin()), *map(answering.events, await first)])
        async for deltas in arriving:
            if body := b"".join(map(answering.events, deltas)):
                yield body
        yield b"".join(map(event, answering.end())) + (DONE if answering.ends_with_done else b"")
    except Exception as error:  # noqa: BLE001 - whatever it is, the client is told
        yield event(api_error(error).body)


@asynccontextmanager
async def _deltas(answering: Answering, state: ServerState, visit: Visit) -> AsyncIterator[Deltas]:
    """The deltas of answers, which are counted, and ended when the context closes."""
    completions = list(answering.job.completions)
    state.completions.update(completions)
    running = acomplete_together(answering.job)
    span = AnswerSpan(answering.operation, answering.model, visit.request_id, Headers(scope=visit.scope))
    try:
        yield _counting(running, state, visit.arrived, span)
    finally:
        await running.aclose()
        state.completions.difference_update(completions)
        usage = answering.usage()
        state.metrics.ended(answering.model, answering.answers, usage, time.monotonic() - visit.arrived)
        visit.noted |= {
            "model": answering.model,
            "prompt_tokens": usage["prompt_tokens"],
            "completion_tokens": usage["completion_tokens"],
            "finish_reasons": [completion.finish_reason for completion in answering.answers],
        }
        span.end(visit.noted)


async def _counting(arriving: Deltas, state: ServerState, arrived: float, span: AnswerSpan) -> Deltas:
    is_first = True
    async for deltas in arriving:
        if is_first:
            state.metrics.begun(time.monotonic() - arrived)
            span.first_token()
            is_first = False
        yield deltas


async def _while_there(request: Request, work: Awaitable[Result]) -> Result:
    """The result of work, which is cancelled if the client goes away.

    Raises:
        ClientGoneError: If it has gone away.
    """
    task, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone(request.receive))
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGoneError
    finally:
        await cancelled(task)
        await cancelled(leaving)


async def cancelled(task: "asyncio.Future[Any]") -> None:
    """Cancels a task, and waits until it has ended, however it does.

    Args:
        task: The task.
    """
    task.cancel()
    with suppress(asyncio.CancelledError, Exception):
        await task


async def gone(receive: Receive) -> None:
    """Returns when a client has gone away.

    Args:
        receive: Receives what it sends.
    """
    while (await receive())["type"] != "http.disconnect":
        pass
