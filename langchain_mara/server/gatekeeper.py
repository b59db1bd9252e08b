"""What a request passes before it is read: request id, host, key, limits. And what is counted and logged of it."""

import asyncio
import json
import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from langchain_mara.server.errors import ApiError, api_error
from langchain_mara.server.state import ProcessState, Visit
from langchain_mara.server.telemetry.spans import name_request

PROBES = frozenset({"/health", "/ready"})
"""Paths that answer without a key, and while the server drains."""

_OPEN = PROBES | {"/"}
_REQUEST_ID = re.compile(r"[\w.:-]{1,128}")
_UNKNOWN_PATH = "other"
_logger = logging.getLogger("langchain_mara.server.requests")


class Gatekeeper:
    """Lets requests through that may be answered.

    Args:
        app: The app behind it.
        state: The server's state.
        paths: Paths that there are; others are counted together.
    """

    def __init__(self, app: ASGIApp, state: ProcessState, paths: frozenset[str]) -> None:
        self._app, self._state, self._paths = app, state, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        visit = Visit(scope, given if _REQUEST_ID.fullmatch(given) else uuid4().hex)
        scope.setdefault("state", {})["visit"] = visit
        name_request(visit.request_id)
        try:
            async with visit.until_end:
                await self._admit(visit, receive, visit.noting(send))
        except ApiError as error:
            await error.response()(scope, receive, visit.noting(send))
        except Exception as error:
            if visit.status is not None:
                raise
            await api_error(error).response()(scope, receive, visit.noting(send))
        finally:
            self._note(visit)

    async def _admit(self, visit: Visit, receive: Receive, send: Send) -> None:
        scope, settings = visit.scope, self._state.settings
        headers = Headers(scope=scope)
        self._check_host(headers)
        key = self._key(scope["path"], headers)
        if scope["path"] in _OPEN or scope["method"] == "OPTIONS":
            await self._app(scope, receive, send)
            return
        if self._state.is_draining:
            raise ApiError(503, "The server is shutting down. Try again.", kind="server_error", code="draining")
        if int(headers.get("content-length") or 0) > settings.body_limit:
            raise _too_large(settings.body_limit)
        with self._place(key):
            await self._app(scope, _Body(receive, settings.body_limit, settings.body_timeout), send)

    def _check_host(self, headers: Headers) -> None:
        """Refuses names that do not mean this machine, where only this machine may ask."""
        allowed = self._state.settings.allowed_hosts
        host = headers.get("host", "").lower()
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        if allowed is not None and name not in allowed:
            raise ApiError(400, f"This server does not answer under the name {name!r:.100}. Use 127.0.0.1.")

    def _key(self, path: str, headers: Headers) -> str:
        """The key of a request; the empty text where none is needed.

        Raises:
            ApiError: If it has none, or a wrong one.
        """
        settings = self._state.settings
        if not settings.api_keys or path in _OPEN:
            return ""
        scheme, _, given = headers.get("authorization", "").partition(" ")
        key = settings.key_of(given.strip()) if scheme.lower() == "bearer" else None
        if key is None:
            message = "No key, or a wrong one. Send one as `Authorization: Bearer KEY`."
            raise ApiError(401, message, kind="authentication_error", code="invalid_api_key")
        return key

    @contextmanager
    def _place(self, key: str) -> Iterator[None]:
        """A place among the running requests of a key."""
        running, most = self._state.in_flight, self._state.settings.requests_per_key
        if most is not None and running.get(key, 0) >= most:
            message = f"{most} requests of this key are running already. Wait for one of them."
            raise ApiError(429, message, kind="rate_limit_error", code="rate_limit_exceeded")
        running[key] = running.get(key, 0) + 1
        self._state.metrics.in_flight.inc()
        try:
            yield
        finally:
            running[key] -= 1
            self._state.metrics.in_flight.dec()

    def _note(self, visit: Visit) -> None:
        path = visit.scope["path"]
        known = path if path in self._paths else _UNKNOWN_PATH
        status = visit.status or 499  # nobody was there to be answered
        self._state.metrics.requests.labels(known, str(status)).inc()
        if self._state.settings.json_log:
            seconds = round(time.monotonic() - visit.arrived, 4)
            line = {"time": time.time(), "request_id": visit.request_id, "method": visit.scope["method"], "path": path}
            _logger.info(json.dumps({**line, "status": status, "seconds": seconds, **visit.noted}))


class _Body:
    """A `receive` that refuses bodies that are too large or too slow."""

    def __init__(self, receive: Receive, limit: int, timeout: float) -> None:
        self._receive, self._limit, self._timeout = receive, limit, timeout
        self._size, self._is_read = 0, False
        self._until = asyncio.get_running_loop().time() + timeout

    async def __call__(self) -> Message:
        if self._is_read:
            return await self._receive()  # waits until the client goes away
        try:
            async with asyncio.timeout_at(self._until):
                message = await self._receive()
        except TimeoutError:
            text = f"The body did not arrive within {self._timeout:g} seconds."
            raise ApiError(408, text, code="timeout") from None
        self._size += len(message.get("body", b""))
        self._is_read = message["type"] != "http.request" or not message.get("more_body", False)
        if self._size > self._limit:
            raise _too_large(self._limit)
        return message


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"The body is larger than {limit} bytes, which this server permits.", code="body_too_large")
