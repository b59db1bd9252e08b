"""`mara serve` as a process: it answers over TCP, and drains on SIGTERM."""

import json
import re
import signal
import socket
import time
from contextlib import suppress
from typing import Any

import openai
import pytest
from http_servers import CODE, Listening, app_of, listening, mara_serve, wait_until
from sse_starlette.sse import AppStatus

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


HELD_UP = {
    "a pass": "from langchain_mara import MaraAgent as Slow; name = 'accept_probability'",
    "a prompt": "from langchain_mara import MaraLLM as Slow; name = 'encode'",
}


@pytest.mark.slow
@pytest.mark.enable_socket
@pytest.mark.parametrize("what", HELD_UP)
def test_a_process_ends_whatever_its_threads_do(what: str) -> None:
    slow = f"{HELD_UP[what]}; import time; setattr(Slow, name, lambda *_: time.sleep(300))"
    soon = "from langchain_mara.server import process; process._PATIENCE = 1"
    code = f"{slow}\n{soon}\n{CODE}"
    with mara_serve("--drain-s", "1", code=code) as (server, client):
        waiting = raw_connection(int(client.base_url.port or 0))
        ask(waiting, prompt="abc")
        time.sleep(1)
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
        assert server.stderr is not None
        said = server.stderr.read()
        waiting.close()
    # What the log says of the threads tells what they were doing.
    assert "did not end by itself" in said
    assert "in <lambda>" in said


@pytest.mark.slow
@pytest.mark.enable_socket
def test_a_process_ends_although_nobody_reads_its_log() -> None:
    code = f"from langchain_mara.server import process; process._PATIENCE = 1\n{CODE}"
    with mara_serve("--json-log", "--drain-s", "1", code=code) as (server, client):
        with pytest.raises(openai.APITimeoutError):
            ask_until_refused(client.with_options(timeout=3))
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0


def raw_connection(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port))


def ask(connection: socket.socket, path: str = "/v1/completions", **body: Any) -> None:
    """Asks, and does not read the answer."""
    text = json.dumps(body)
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    connection.sendall(f"{head}content-length: {len(text)}\r\n\r\n{text}".encode())


def end(running: Listening) -> None:
    """What SIGTERM does."""
    running.server.handle_exit(signal.SIGTERM, None)


def ask_for_much(running: Listening, connection: socket.socket) -> None:
    """Asks for more than what the system keeps for a reader, and waits until the answer waits for its reader."""
    ask(connection, "/tokenize", prompt="a b " * 100_000)
    connections = running.server.server_state.connections
    wait_until(lambda: any(each.transport.get_write_buffer_size() for each in connections))


def test_a_slow_reader_gets_the_rest_while_the_server_drains(llm: MaraLLM) -> None:
    with listening(app_of(llm, drain=60)) as running, socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(running.socket)
        ask_for_much(running, connection)
        end(running)
        time.sleep(2.5)  # longer than a server waits for what is not sent, once it ends
        got = b""
        while part := connection.recv(2**20):
            got += part
        head, _, body = got.partition(b"\r\n\r\n")
        assert f"content-length: {len(body)}".encode() in head
        wait_until(lambda: not running.thread.is_alive())


def test_a_reader_who_never_reads_holds_the_end_no_longer_than_others(llm: MaraLLM) -> None:
    with listening(app_of(llm, drain=0.5)) as running, socket.socket(socket.AF_UNIX) as connection:
        connection.connect(running.socket)
        ask_for_much(running, connection)
        end(running)
        wait_until(lambda: not running.thread.is_alive(), 10)


def test_a_stream_that_nobody_reads_holds_the_end_no_longer_than_others(endless: MaraLLM) -> None:
    with listening(app_of(endless, drain=0.5)) as running, socket.socket(socket.AF_UNIX) as connection:
        connection.connect(running.socket)
        ask(connection, prompt="abc", logprobs=20, stream=True)
        connections = running.server.server_state.connections
        wait_until(lambda: any(each.flow.write_paused for each in connections), 60)
        end(running)
        wait_until(lambda: not running.thread.is_alive(), 10)


@pytest.mark.parametrize("sent", [b"", b"POST /v1/compl", b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n\r\n{"])
def test_who_sends_nothing_more_holds_the_end_no_longer_than_others(llm: MaraLLM, sent: bytes) -> None:
    with listening(app_of(llm, drain=0.5)) as running, socket.socket(socket.AF_UNIX) as connection:
        connection.connect(running.socket)
        connection.sendall(sent)
        wait_until(lambda: running.server.server_state.connections)
        end(running)
        wait_until(lambda: not running.thread.is_alive(), 10)


def test_a_second_signal_ends_at_once(endless: MaraLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    # It ends the streams of all servers in this process, also of those that later tests make.
    monkeypatch.setattr(AppStatus, "should_exit", False)
    with listening(app_of(endless, drain=600)) as running, socket.socket(socket.AF_UNIX) as connection:
        connection.connect(running.socket)
        ask(connection, prompt="abc")
        wait_until(lambda: running.state.completions)
        end(running)
        time.sleep(0.5)
        assert running.thread.is_alive()
        end(running)
        wait_until(lambda: not running.thread.is_alive(), 10)


def test_a_connection_that_says_nothing_is_closed(llm: MaraLLM) -> None:
    with listening(app_of(llm, header_timeout=0.3)) as running:
        for beginning in (b"", b"GET /health HTT"):
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(20)
                connection.connect(running.socket)
                connection.sendall(beginning)
                assert connection.recv(100) == b""
        assert running.http().get("/health").status_code == 200


def test_a_later_request_has_no_more_time_for_its_head(llm: MaraLLM) -> None:
    with listening(app_of(llm, header_timeout=0.5)) as running, socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(running.socket)
        for _ in range(3):
            connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert connection.recv(1000)
            time.sleep(0.3)
        start = time.monotonic()
        with suppress(BrokenPipeError, ConnectionResetError):
            while time.monotonic() - start < 10:  # drop by drop, so that it never rests
                connection.sendall(b"G")
                time.sleep(0.05)
        assert time.monotonic() - start < 10


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
