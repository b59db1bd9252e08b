"""Clients that go away or read slowly, and answers that fail."""

import json
import socket
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from http_servers import Listening, app_of, listening, wait_until
from torch import Tensor

from langchain_mara import MaraAgent, MaraLLM

ASKED: Any = [{"role": "user", "content": "abc"}]


@pytest.fixture
def long(endless: MaraLLM) -> Iterator[Listening]:
    """A server whose answers take long, unless somebody ends them."""
    with listening(app_of(endless)) as running:
        yield running


def ask(server: Listening, **body: Any) -> socket.socket:
    """A connection that has asked and not read."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(server.socket)
    text = json.dumps({"messages": ASKED, **body})
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    connection.sendall(f"{head}content-length: {len(text)}\r\n\r\n{text}".encode())
    return connection


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_row(long: Listening, stream: bool) -> None:
    connection = ask(long, stream=stream)
    if stream:
        assert connection.recv(200).startswith(b"HTTP/1.1 200")
    wait_until(lambda: long.state.completions)
    [completion] = long.state.completions
    wait_until(lambda: completion.decisions > 3)
    connection.close()
    wait_until(lambda: long.state.is_idle)
    assert completion.request.cancelled
    assert completion.finish_reason is None
    assert not long.state.completions


def test_a_slow_reader_holds_nobody(long: Listening) -> None:
    with ask(long, stream=True, n=4, temperature=1) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        wait_until(lambda: long.state.completions)
        quick = long.openai().chat.completions.create(model="m", messages=ASKED, extra_body={"mara": {"regex": "abc"}})
        assert quick.choices[0].message.content == "abc"


def test_an_answer_that_fails(llm: MaraLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    judge = MaraAgent.accept_probability

    def fail_later(agent: MaraAgent, *args: Any) -> Tensor:
        calls.append(1)
        if len(calls) > 3:
            raise RuntimeError("secret")
        return judge(agent, *args)

    monkeypatch.setattr(MaraAgent, "accept_probability", fail_later)
    with listening(app_of(llm)) as running:
        client = running.openai().chat.completions
        stream = client.create(model="m+a", messages=ASKED, stream=True)
        with pytest.raises(openai.APIError, match="its log says why") as failed:
            list(stream)
        assert "secret" not in failed.value.message
        with pytest.raises(openai.InternalServerError, match="its log says why") as whole:
            client.create(model="m+a", messages=ASKED)
        assert whole.value.status_code == 500
        assert client.create(model="m", messages=ASKED).usage  # the plain model goes on


def test_an_answer_that_takes_too_long(endless: MaraLLM) -> None:
    with listening(app_of(endless._copied({"timeout": 0.2}))) as running, pytest.raises(openai.APIStatusError) as late:
        running.openai().chat.completions.create(model="m", messages=ASKED)
    assert late.value.status_code == 408


def test_answers_that_are_abandoned(long: Listening) -> None:
    stream = long.openai().chat.completions.create(model="m", messages=ASKED, stream=True)
    next(iter(stream))
    long.state.abandon()
    with pytest.raises(openai.APIError, match="shutting down"):
        list(stream)
