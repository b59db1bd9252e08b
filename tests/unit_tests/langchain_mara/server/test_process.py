"""`mara serve` as a process: it answers over TCP, and drains on SIGTERM."""

import json
import re
import signal
import socket
from typing import Any

import openai
import pytest
from http_servers import app_of, listening, mara_serve

from langchain_mara import MaraLLM


def ask_until_refused(client: openai.OpenAI) -> None:
    """Asks without a pause, because a fast machine has soon written what runs."""
    while True:
        client.models.list()


@pytest.mark.slow
@pytest.mark.enable_socket
def test_a_process_answers_and_drains() -> None:
    asked: Any = [{"role": "user", "content": "How do I boil an egg?"}]
    with mara_serve("--json-log", "--drain-s", "60") as (server, client):
        assert [model.id for model in client.models.list()] == ["mara-demo", "mara-demo+harmless"]
        settings: Any = {"model": "mara-demo", "messages": asked, "n": 8, "temperature": 1.5, "seed": 1}
        extra = {"mara": {"regex": "[a-z ]{400}"}}
        stream = client.chat.completions.create(**settings, max_tokens=500, extra_body=extra, stream=True)
        chunks = iter(stream)
        next(chunks)
        server.send_signal(signal.SIGTERM)
        with pytest.raises(openai.InternalServerError) as refused:
            ask_until_refused(client)
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
