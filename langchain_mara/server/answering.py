"""Runs answers for clients that may go away: whole, or as a stream of server-sent events."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from sse_starlette import EventSourceResponse, ServerSentEvent

from langchain_mara.exceptions import PromptError
from langchain_mara.server.errors import ApiError, api_error
from langchain_mara.server.protocol.answers import Answering
from langchain_mara.server.state import ServerState, Visit
from langchain_mara.serving.completion import CompletionDelta, GenerationJob, acomplete

Result = TypeVar("Result")
Deltas = AsyncIterator[CompletionDelta]

_GONE = 499
_DONE = ServerSentEvent(data="[DONE]", sep="\n")


class ClientGoneError(Exception):
    """The client went away before its answer began."""


async def respond(request: Request, answering: Answering, *, stream: bool, prompt_field: str) -> Response:
    """The response with the answers.

    Args:
        request: The request.
        answering: Its answers, not begun.
        stream: Whether they come as a stream.
        prompt_field: Field of the request that the prompt came from, for errors.

    Raises:
        ApiError: If the request cannot be answered, and nothing of the answer was sent.
    """
    state: ServerState = request.app.state.server
    _check(answering.job, prompt_field)
    visit = request.scope["state"]["visit"]
    try:
        deltas = await visit.until_end.enter_async_context(_deltas(answering, state, visit))
        if stream:
            # What fails before the first token has a status code of its own.
            first = await _while_there(request, anext(deltas))
            events = _events(answering, first, deltas)
            return EventSourceResponse(events, sep="\n", send_timeout=state.settings.send_timeout)
        await _while_there(request, _run(answering, deltas))
        return JSONResponse(answering.whole())
    except ClientGoneError:
        return Response(status_code=_GONE)
    except Exception as error:
        raise api_error(error) from error


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


async def _run(answering: Answering, deltas: Deltas) -> None:
    async for delta in deltas:
        answering.record(delta)


async def _events(answering: Answering, first: CompletionDelta, deltas: Deltas) -> AsyncIterator[ServerSentEvent]:
    """The events of a stream. Its status has been sent, so an error becomes an event."""
    try:
        for chunk in answering.begin():
            yield _event(chunk)
        for chunk in answering.chunks(first):
            yield _event(chunk)
        async for delta in deltas:
            for chunk in answering.chunks(delta):
                yield _event(chunk)
        for chunk in answering.end():
            yield _event(chunk)
        if answering.ends_with_done:
            yield _DONE
    except Exception as error:  # noqa: BLE001 - whatever it is, the client is told
        yield _event(api_error(error).body)


@asynccontextmanager
async def _deltas(answering: Answering, state: ServerState, visit: Visit) -> AsyncIterator[Deltas]:
    """The deltas of answers, which are counted, and ended when the context closes."""
    completions = list(answering.job.completions)
    state.completions.update(completions)
    running = acomplete(answering.job)
    try:
        yield _counting(running, state, visit.arrived)
    finally:
        await running.aclose()  # type: ignore[attr-defined]
        state.completions.difference_update(completions)
        usage = answering.usage()
        state.metrics.ended(answering.model, answering.answers, usage, time.monotonic() - visit.arrived)
        visit.noted |= {
            "model": answering.model,
            "prompt_tokens": usage["prompt_tokens"],
            "completion_tokens": usage["completion_tokens"],
            "finish_reasons": [completion.finish_reason for completion in answering.answers],
        }


async def _counting(deltas: Deltas, state: ServerState, arrived: float) -> Deltas:
    is_first = True
    async for delta in deltas:
        if is_first:
            state.metrics.begun(time.monotonic() - arrived)
            is_first = False
        yield delta


async def _while_there(request: Request, work: Awaitable[Result]) -> Result:
    """The result of work, which is cancelled if the client goes away.

    Raises:
        ClientGoneError: If it has gone away.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGoneError
    finally:
        for each in (task, gone):
            each.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await each


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _event(chunk: dict[str, Any]) -> ServerSentEvent:
    data = json.dumps(chunk, ensure_ascii=False, separators=(",", ":"))
    return ServerSentEvent(data=data, event=chunk.get("type"), sep="\n")
