"""The server process: it listens, closes slow connections, and ends when its answers have."""

import asyncio
import logging
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from langchain_mara.server.state import ProcessState

_logger = logging.getLogger(__name__)
_LAST_WORDS = 1
"""Seconds in which connections may still send what has been written."""


def serve(app: FastAPI) -> None:
    """Serves an app until the process is told to end.

    Args:
        app: An app of `create_app`.
    """
    _log_to_stderr()
    server_of(app).run()


def server_of(app: FastAPI, **changes: Any) -> "DrainingServer":
    """A server of an app, not begun.

    Args:
        app: An app of `create_app`.
        **changes: Further settings of uvicorn, such as `uds`.
    """
    settings = app.state.server.settings
    protocol: Any = type("Protocol", (_Protocol,), {"header_timeout": settings.header_timeout})
    values: dict[str, Any] = {
        "host": settings.host,
        "port": settings.port,
        "http": protocol,
        "ws": "none",
        "access_log": False,
        "log_config": None,
        "server_header": False,
        "proxy_headers": False,
        "timeout_keep_alive": int(settings.idle_timeout),
        "timeout_graceful_shutdown": _LAST_WORDS,
    }
    return DrainingServer(uvicorn.Config(app, **{**values, **changes}), app.state.server)


class DrainingServer(uvicorn.Server):
    """A server that refuses new requests on SIGTERM or SIGINT and ends when the running ones have ended.

    Args:
        config: Uvicorn's configuration.
        state: State of the app.
    """

    def __init__(self, config: uvicorn.Config, state: ProcessState) -> None:
        super().__init__(config)
        self._state = state
        self._deadline: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begins to drain; a second signal ends at once."""
        if self._deadline is not None:
            super().handle_exit(sig, frame)
            return
        self._state.is_draining = True
        self._deadline = time.monotonic() + self._state.settings.drain

    async def on_tick(self, counter: int) -> bool:
        """Whether to end now."""
        if self._deadline is not None and not self.should_exit:
            if time.monotonic() >= self._deadline:
                self._state.abandon()
                await asyncio.sleep(_LAST_WORDS)
                self.should_exit = True
            self.should_exit |= self._state.is_idle
        return await super().on_tick(counter)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handles signals without raising them again, so that the process ends with 0."""
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread hears signals
            return
        before = {each: signal.signal(each, self.handle_exit) for each in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)


class _Protocol(H11Protocol):
    """A connection that is closed if the head of its first request takes too long."""

    header_timeout = 10.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(self.header_timeout, self._close_if_silent)

    def _close_if_silent(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()


def _log_to_stderr() -> None:
    """Writes the server's own log to standard error, each record in a line of its own."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name in ("langchain_mara.server", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
