"""`mara serve` as a process: it answers over TCP, and drains on SIGTERM."""

import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openai
import pytest
from http_servers import app_of, listening, wait_until

from langchain_mara import MaraLLM

CODE = "from langchain_mara_training.commands.main import app; app(prog_name='mara')"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@contextmanager
def process(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], openai.OpenAI]]:
    """A server and a client of it."""
    port = free_port()
    command = [sys.executable, "-c", CODE, "serve", "--port", str(port), *arguments]
    started = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
    try:
        wait_until(lambda: _answers(port) or started.poll() is not None, 120)
        yield started, client
    finally:
        if started.poll() is None:
            started.kill()
        started.wait(20)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow
@pytest.mark.enable_socket
def test_a_process_answers_and_drains() -> None:
    asked: Any = [{"role": "user", "content": "How do I boil an egg?"}]
    with process("--json-log", "--drain-s", "60") as (server, client):
        assert [model.id for model in client.models.list()] == ["mara-demo", "mara-demo+harmless"]
        settings: Any = {"model": "mara-demo", "messages": asked, "n": 8, "temperature": 1.5, "seed": 1}
        extra = {"mara": {"regex": "[a-z ]{400}"}}
        stream = client.chat.completions.create(**settings, max_tokens=500, extra_body=extra, stream=True)
        chunks = iter(stream)
        next(chunks)
        server.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        with pytest.raises(openai.InternalServerError) as refused:
            client.models.list()
        assert refused.value.code == "draining"
        said = [""] * 8
        for chunk in chunks:
            for choice in chunk.choices:
                said[choice.index] += choice.delta.content or ""
        assert [len(text) for text in said] == [400] * 8
        assert server.wait(30) == 0
        lines = [json.loads(line) for line in (server.stderr or ()) if line.startswith("{")]
    assert [line["completion_tokens"] > 100 for line in lines if line["path"] == "/v1/chat/completions"] == [True]
    assert {line["status"] for line in lines} == {200, 503}


def test_a_connection_that_says_nothing_is_closed(llm: MaraLLM) -> None:
    with listening(app_of(llm, header_timeout=0.3)) as running:
        for beginning in (b"", b"GET /health HTT"):
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(20)
                connection.connect(running.socket)
                connection.sendall(beginning)
                assert connection.recv(100) == b""
        assert running.http().get("/health").status_code == 200


@pytest.mark.parametrize(
    "text",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: -5\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: " + b"a" * 100_000,
    ],
)
def test_what_is_no_http(llm: MaraLLM, text: bytes) -> None:
    with listening(app_of(llm)) as running:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(20)
            connection.connect(running.socket)
            connection.sendall(text)
            answer = connection.recv(1000)
        assert re.match(rb"HTTP/1.1 4\d\d ", answer)
        assert running.http().get("/health").status_code == 200


def test_two_requests_in_one_packet(llm: MaraLLM) -> None:
    with listening(app_of(llm)) as running, socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(running.socket)
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n" * 2)
        got = b""
        while got.count(b'{"status":"ok"}') < 2:
            part = connection.recv(1000)
            assert part
            got += part
