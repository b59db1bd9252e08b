"""A replica: the app of one process, with a loaded model of its own. Ray Serve makes it and calls it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from fastapi import FastAPI
from starlette.types import Message

from langchain_mara.server.answering import cancelled


@dataclass(frozen=True)
class Forwarded:
    """A request that was received whole.

    Attributes:
        method: Its method.
        path: Its path.
        query: Its query string.
        headers: Names and values of its headers.
        body: Its body.
    """

    method: str
    path: str
    query: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes

    def scope(self) -> dict[str, Any]:
        """The scope with which an app is called."""
        return {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "scheme": "http",
            "method": self.method,
            "path": self.path,
            "raw_path": self.path.encode(),
            "query_string": self.query,
            "headers": self.headers,
            "client": None,
            "server": None,
            "state": {},
        }


@dataclass(frozen=True)
class Ended:
    """What a replica says when it has answered a request.

    Attributes:
        replica: A name of its own.
        noted: What the log says of the request.
        figures: All that the replica has counted, in Prometheus' form.
    """

    replica: str
    noted: dict[str, Any]
    figures: str


class Replica:
    """Calls an app that was made in this process.

    Args:
        make: Makes the app.
    """

    def __init__(self, make: Callable[[], FastAPI]) -> None:
        self._app, self._name = make(), uuid4().hex[:8]

    async def answer(self, request: Forwarded) -> AsyncIterator[Message | Ended]:
        """The messages of the app's response, and in the end an `Ended`.

        If the caller stops listening, the app is cancelled, so its answer leaves the batch.

        Args:
            request: The request.
        """
        scope = request.scope()
        messages: asyncio.Queue[Message | None] = asyncio.Queue()
        parts = [{"type": "http.request", "body": request.body, "more_body": False}]

        async def receive() -> Message:
            if not parts:
                await asyncio.Event().wait()  # a client that goes away cancels the call
            return parts.pop()

        async def run() -> None:
            try:
                await self._app(scope, receive, messages.put)
            finally:
                messages.put_nowait(None)

        running = asyncio.create_task(run())
        try:
            while (message := await messages.get()) is not None:
                yield message
            await running
            figures = self._app.state.server.metrics.text().decode()
            yield Ended(self._name, scope["state"]["visit"].noted, figures)
        finally:
            await cancelled(running)
