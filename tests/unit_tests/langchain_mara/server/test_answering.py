"""Clients that go away or read slowly, and answers that fail."""

import asyncio
import json
import socket
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from callers import Gate
from http_servers import Listening, app_of, listening, wait_until
from torch import Tensor

from langchain_mara import MaraAgent, MaraLLM
from langchain_mara.policy.verification import policy_of
from langchain_mara.serving.completion import acomplete_together

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
    judge = MaraAgent.accept_probability
    app = app_of(llm)
    seen: set[Any] = set()

    def fail_later(agent: MaraAgent, *args: Any) -> Tensor:
        seen.update(app.state.server.completions)
        if any(completion.decisions > 2 for completion in seen):
            raise RuntimeError("secret")
        return judge(agent, *args)

    monkeypatch.setattr(MaraAgent, "accept_probability", fail_later)
    with listening(app) as running:
        client = running.openai().chat.completions
        stream = client.create(model="m+a", messages=ASKED, stream=True)
        with pytest.raises(openai.APIError, match="its log says why") as failed:
            list(stream)
        assert "secret" not in failed.value.message
        with pytest.raises(openai.InternalServerError, match="its log says why") as whole:
            client.create(model="m+a", messages=ASKED)
        assert whole.value.status_code == 500
        assert client.create(model="m", messages=ASKED).usage  # the plain model goes on


def test_a_stream_that_waits_long_for_its_turn_is_kept_alive(llm: MaraLLM) -> None:
    with listening(app_of(llm, keep_alive=0.05)) as running:
        policy = policy_of(llm.model)
        with Gate(policy) as gate, ask(running, stream=True, max_tokens=2) as connection:
            got = b""
            connection.settimeout(20)
            while b": ping" not in got:
                got += connection.recv(4096)
            assert got.startswith(b"HTTP/1.1 200")
            assert b"data:" not in got
            gate.open()
            while b"[DONE]" not in got:
                got += connection.recv(4096)
        assert got.index(b": waiting") < got.index(b": ping") < got.index(b"data:")


def test_a_client_that_goes_away_while_it_waits_frees_its_place(llm: MaraLLM) -> None:
    with listening(app_of(llm, keep_alive=0.05)) as running, Gate(policy_of(llm.model)) as gate:
        connection = ask(running, stream=True)
        assert b": waiting" in connection.recv(4096) + connection.recv(4096)
        [completion] = running.state.completions
        connection.close()
        wait_until(lambda: running.state.is_idle)
        assert completion.request.cancelled
        gate.open()


def test_what_waits_comes_together(llm: MaraLLM) -> None:
    """A reader that is slower than the model gets several events in one piece, and each of them."""
    job = MaraLLM._generation_job(llm, llm._completions([1, 2, 3], None))

    async def pieces() -> list[int]:
        sizes = []
        async for deltas in acomplete_together(job):
            sizes.append(len(deltas))
            await asyncio.to_thread(wait_until, lambda: job.completions[0].finish_reason)
        return sizes

    sizes = asyncio.run(pieces())
    assert len(sizes) <= 2
    assert sum(sizes) == job.completions[0].decisions > 2


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
