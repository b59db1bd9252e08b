"""A server in a thread, on a Unix socket, and clients of it: tests have no other sockets."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx2
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
    """

    def __init__(self, app: FastAPI, socket: Path) -> None:
        self.app, self.socket = app, str(socket)
        self.server = server_of(app, uds=self.socket)

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
        thread = threading.Thread(target=running.server.run, daemon=True)
        thread.start()
        wait_until(lambda: running.server.started)
        try:
            yield running
        finally:
            running.server.should_exit = True
            thread.join(20)


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
