"""The server process: it listens, closes slow connections, and ends when its answers have."""

import asyncio
import faulthandler
import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from langchain_mara.server.state import ProcessState

_logger = logging.getLogger(__name__)
_LAST_WORDS = 1
"""Seconds in which connections may still send what has been written."""
_PATIENCE = 10.0
"""Seconds after the time to drain in which the process may end by itself."""


def serve(app: FastAPI) -> None:
    """Serves an app until the process is told to end, and sees to it that it ends.

    Args:
        app: An app of `create_app`.
    """
    _log_to_stderr()
    server = server_of(app)
    server.on_signal = _end_in
    server.run()
    gc.freeze()  # or the interpreter looks for garbage among all of torch before it ends, which takes over a second


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

    Attributes:
        on_signal: Called at each signal with the seconds in which the server means to end.
    """

    def __init__(self, config: uvicorn.Config, state: ProcessState) -> None:
        super().__init__(config)
        self._state = state
        self._deadline: float | None = None
        self.on_signal: Callable[[float], None] = lambda _: None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begins to drain; a second signal ends at once."""
        if self._deadline is not None:
            self.on_signal(0)
            super().handle_exit(sig, frame)
            return
        self._state.is_draining = True
        self.on_signal(self._state.settings.drain)
        self._deadline = time.monotonic() + self._state.settings.drain

    async def on_tick(self, counter: int) -> bool:
        """Whether to end now."""
        if self._deadline is not None and not self.should_exit:
            if time.monotonic() >= self._deadline:
                self._state.abandon()
                await asyncio.sleep(_LAST_WORDS)
                self.should_exit = True
            self.should_exit |= self._state.is_idle and self._is_sent
        return await super().on_tick(counter)

    @property
    def _is_sent(self) -> bool:
        """Whether the clients have taken what was written, as far as this process can see."""
        connections: Any = self.server_state.connections
        return not any(connection.transport.get_write_buffer_size() for connection in connections)

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
    """A connection that is closed if the head of a request takes too long."""

    header_timeout = 10.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._begin_head()

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        is_head = before is not None and before.response_complete and before is not self._before_head
        super().data_received(data)
        if is_head and self.cycle is before:
            self._begin_head()

    def _begin_head(self) -> None:
        """Gives the head that now begins its time. What the connection sends in it gives it no more."""
        self._before_head = self.cycle
        self.loop.call_later(self.header_timeout, self._close_if_silent, self.cycle)

    def _close_if_silent(self, before: RequestResponseCycle | None) -> None:
        if self.cycle is before and not self.transport.is_closing():
            self.transport.close()


def _end_in(seconds: float) -> None:
    """Ends the process some time after it should have ended, whatever it waits for.

    The interpreter waits for its threads. One may be in the middle of a long pass, or of a text that is long to encode,
    and nobody can interrupt those.
    """
    threading.Thread(target=_end, args=(seconds + _PATIENCE,), name="mara-ending", daemon=True).start()


def _end(seconds: float) -> None:
    time.sleep(seconds)
    # In another thread, because nobody may be reading the log.
    threading.Thread(target=_log_what_runs, daemon=True).start()
    time.sleep(_LAST_WORDS)
    os._exit(0)


def _log_what_runs() -> None:
    _logger.warning("The server did not end by itself, so it is ended. This is what it was doing:")
    faulthandler.dump_traceback()


def _log_to_stderr() -> None:
    """Writes the server's own log to standard error, each record in a line of its own."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name in ("langchain_mara.server", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
