"""A server in a thread, on a Unix socket, and clients of it: tests have no other sockets."""

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx2
import psutil
from fastapi import FastAPI
from openai import AsyncOpenAI, OpenAI

from langchain_mara import MaraLLM
from langchain_mara.server.app import create_app
from langchain_mara.server.process import server_of
from langchain_mara.server.served import ServedModels
from langchain_mara.server.settings import ServerSettings

HOST = "http://127.0.0.1"


def app_of(llm: MaraLLM, agents: dict[str, Any] | None = None, **settings: Any) -> FastAPI:
    """The app of a model called `m`; by default its own agent is called `a`."""
    given = {"a": llm.agent} if agents is None and llm.agent is not None else agents or {}
    return create_app(ServedModels(llm, "m", given), ServerSettings(**settings))


class Listening:
    """A server that listens.

    Attributes:
        app: Its app.
        socket: Path of its socket.
        server: The server.
        thread: The thread that runs it.
    """

    def __init__(self, app: FastAPI, socket: Path) -> None:
        self.app, self.socket = app, str(socket)
        self.server = server_of(app, uds=self.socket)
        self.thread = threading.Thread(target=self.server.run, daemon=True)

    @property
    def state(self) -> Any:
        return self.app.state.server

    def http(self, **kwargs: Any) -> httpx2.Client:
        """A plain client."""
        transport = httpx2.HTTPTransport(uds=self.socket)
        return httpx2.Client(base_url=HOST, transport=transport, timeout=60, **kwargs)

    def openai(self, key: str = "none", **kwargs: Any) -> OpenAI:
        """The official client, which does not try again."""
        settings = {"max_retries": 0, **kwargs}
        return OpenAI(base_url=f"{HOST}/v1", api_key=key, http_client=self.http(), **settings)

    def async_openai(self) -> AsyncOpenAI:
        """The official client for event loops."""
        client = httpx2.AsyncClient(transport=httpx2.AsyncHTTPTransport(uds=self.socket), timeout=60)
        return AsyncOpenAI(base_url=f"{HOST}/v1", api_key="none", http_client=client, max_retries=0)


@contextmanager
def listening(app: FastAPI) -> Iterator[Listening]:
    """Runs a server while the context is open."""
    with TemporaryDirectory() as folder:
        running = Listening(app, Path(folder) / "s")
        running.thread.start()
        wait_until(lambda: running.server.started)
        try:
            yield running
        finally:
            running.server.should_exit = True
            running.thread.join(20)


CODE = "from langchain_mara_training.commands.main import app; app(prog_name='mara')"


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@contextmanager
def mara_serve(
    *arguments: str, seconds: float = 120, code: str = CODE
) -> Iterator[tuple[subprocess.Popen[str], OpenAI]]:
    """A process of `mara serve` and a client of it. What it started ends with the context.

    Args:
        *arguments: Arguments of the command, but the port.
        seconds: Most seconds until it answers or has ended.
        code: What it runs instead of the command alone.
    """
    port = free_port()
    command = [sys.executable, "-c", code, "serve", "--port", str(port), *arguments]
    started = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
    try:
        wait_until(lambda: _answers(port) or started.poll() is not None, seconds)
        yield started, client
    finally:
        if started.poll() is None:
            for process in psutil.Process(started.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            started.kill()
        started.wait(20)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_until(is_so: Any, seconds: float = 20) -> None:
    """Waits until something is so."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "it did not become so in time"
        time.sleep(0.01)


def events_of(text: str) -> list[dict[str, Any]]:
    """The objects of a stream of server-sent events, which has to end properly."""
    lines = [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]
