"""The process in front of replicas: it reads requests, and sends each to a replica that Ray Serve's router chooses.

A replica may die at any time. What it was answering then ends with an error of OpenAI's form, and the next requests go
to the others, until Ray Serve has made a new one.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from langchain_mara.exceptions import InterpreterExitError, MaraError
from langchain_mara.server.answering import cancelled, gone
from langchain_mara.server.errors import ApiError, api_error
from langchain_mara.server.gatekeeper import PROBES
from langchain_mara.server.protocol.events import event
from langchain_mara.server.ray_serve.figures import FrontMetrics
from langchain_mara.server.ray_serve.replica import Ended, Forwarded
from langchain_mara.server.state import ProcessState

METRICS = "/metrics"


@dataclass(kw_only=True)
class FrontState(ProcessState):
    """What the process in front of replicas knows.

    Attributes:
        metrics: What it counts, and what the replicas did.
        endings: For each request that is being answered, what ends it with an error.
    """

    metrics: FrontMetrics
    endings: set[Callable[[MaraError], None]] = field(default_factory=set)

    def abandon(self) -> None:
        """See `ProcessState.abandon`."""
        for end in list(self.endings):
            end(InterpreterExitError("The server ends."))


class Front:
    """An app that forwards requests to replicas.

    Args:
        answer: Ray Serve's handle of `Replica.answer`, as a stream.
        state: The state of this process.
    """

    def __init__(self, answer: Any, state: FrontState) -> None:
        self._answer, self._state = answer, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request.

        Raises:
            ApiError: If it cannot be answered, and nothing of the answer was sent.
        """
        if scope["path"] in (*PROBES, METRICS):
            await self._own(scope["path"])(scope, receive, send)
            return
        request = await _received(scope, receive)
        reply = _Reply(send, self._state.settings.send_timeout)
        forwarding = asyncio.ensure_future(self._forward(request, reply, scope["state"]["visit"].noted))
        leaving = asyncio.ensure_future(gone(receive))
        ended: list[MaraError] = []

        def end(error: MaraError) -> None:
            ended.append(error)
            forwarding.cancel()

        self._state.endings.add(end)
        try:
            await asyncio.wait({forwarding, leaving}, return_when=asyncio.FIRST_COMPLETED)
            # After a whole response, too, the server says that the client has gone.
            if forwarding.done() or reply.is_whole:
                await forwarding
        except asyncio.CancelledError:
            if not ended:
                raise
            await reply.fail(api_error(ended[0]))
        except TimeoutError:
            raise  # nobody reads
        except Exception as error:  # noqa: BLE001 - whatever it is, the client is told
            await reply.fail(_explained(error))
        finally:
            self._state.endings.discard(end)
            for task in (forwarding, leaving):
                await cancelled(task)

    def _own(self, path: str) -> JSONResponse | PlainTextResponse:
        """What this process says of itself."""
        if path == METRICS:
            return PlainTextResponse(self._state.metrics.text(), media_type="text/plain; version=0.0.4")
        if path == "/ready" and self._state.is_draining:
            return JSONResponse({"status": "draining"}, 503)
        return JSONResponse({"status": "ready" if path == "/ready" else "ok"})

    async def _forward(self, request: Forwarded, reply: "_Reply", noted: dict[str, Any]) -> None:
        messages = self._answer.remote(request)
        try:
            async for message in messages:
                if isinstance(message, Ended):
                    noted |= message.noted
                    self._state.metrics.heard(message.replica, message.figures)
                else:
                    await reply.send(message)
        finally:
            messages.cancel()


class _Reply:
    """A response whose head is held back until its body begins, so that an earlier error has a status of its own.

    Args:
        send: Sends a message to the client.
        timeout: Most seconds that the client may take to accept one.

    Attributes:
        is_whole: Whether all of it was sent.
    """

    def __init__(self, send: Send, timeout: float) -> None:
        self._send, self._timeout = send, timeout
        self._head: Message | None = None
        self._is_begun = self._is_stream = self.is_whole = False

    async def send(self, message: Message) -> None:
        """Sends a message of the response.

        Raises:
            TimeoutError: If the reader does not take it in time.
        """
        if message["type"] == "http.response.start":
            kinds = [value for name, value in message["headers"] if name.lower() == b"content-type"]
            self._head, self._is_stream = message, b"".join(kinds).startswith(b"text/event-stream")
            return
        async with asyncio.timeout(self._timeout):
            if self._head is not None:
                head, self._head, self._is_begun = self._head, None, True
                await self._send(head)
            await self._send(message)
        self.is_whole = not message.get("more_body", False)

    async def fail(self, error: ApiError) -> None:
        """Ends the response with an error: as a response of its own, or as the last event of a stream.

        Raises:
            ApiError: If nothing was sent yet, or what was sent cannot hold an error.
        """
        if not (self._is_begun and self._is_stream):
            raise error from None
        async with asyncio.timeout(self._timeout):
            await self._send({"type": "http.response.body", "body": event(error.body), "more_body": False})


async def _received(scope: Scope, receive: Receive) -> Forwarded:
    """A request with its whole body, under the id that this process gave it.

    Raises:
        ClientDisconnect: If the client went away before all of it had arrived.
    """
    body, is_whole = b"", False
    while not is_whole:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        is_whole = not message.get("more_body", False)
    headers = [(name, value) for name, value in scope["headers"] if name != b"x-request-id"]
    headers.append((b"x-request-id", scope["state"]["visit"].request_id.encode()))
    return Forwarded(scope["method"], scope["path"], scope["query_string"], headers, body)


def _explained(error: Exception) -> ApiError:
    """What a client is told of an error between this process and a replica."""
    from ray.exceptions import RayError, RayTaskError  # noqa: PLC0415 - an extra
    from ray.serve.exceptions import BackPressureError, RayServeException  # noqa: PLC0415

    if isinstance(error, BackPressureError):
        return ApiError(503, "Too many requests wait already. Try again.", kind="server_error", code="queue_full")
    if isinstance(error, RayError | RayServeException) and not isinstance(error, RayTaskError):
        message = "The process that was answering this request has ended. Send the request again."
        return ApiError(503, message, kind="server_error", code="replica_ended")
    return api_error(error)
