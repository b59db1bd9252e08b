"""What a request passes before it is read."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from http_servers import Listening, app_of, listening, wait_until

from langchain_mara import MaraLLM

ASKED: Any = [{"role": "user", "content": "abc"}]
PATH = "/v1/chat/completions"


@pytest.fixture
def guarded(llm: MaraLLM) -> Iterator[Listening]:
    settings = {"api_keys": ("k1", "k2"), "body_limit": 2000, "body_timeout": 0.5, "requests_per_key": 1}
    with listening(app_of(llm, json_log=True, **settings)) as running:
        yield running


def test_keys(guarded: Listening) -> None:
    with pytest.raises(openai.AuthenticationError) as refused:
        guarded.openai("k3").models.list()
    assert refused.value.code == "invalid_api_key"
    assert refused.value.response.headers["www-authenticate"] == "Bearer"
    assert "k3" not in refused.value.message
    assert guarded.openai("k2").models.list().data
    http = guarded.http()
    assert http.get("/health").status_code == http.get("/ready").status_code == 200
    assert http.get("/metrics").status_code == 401
    assert http.get("/v1/models", headers={"authorization": "Basic k1"}).status_code == 401


def test_large_bodies(guarded: Listening) -> None:
    body = {"messages": [{"role": "user", "content": "a" * 3000}]}
    key = {"authorization": "Bearer k1"}
    known = guarded.http().post(PATH, json=body, headers=key)
    marked = {**key, "content-type": "application/json"}
    in_parts = guarded.http().post(PATH, content=iter([json.dumps(body).encode()] * 2), headers=marked)
    for response in (known, in_parts):
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "body_too_large"


def test_a_body_that_says_it_is_large_is_not_waited_for(guarded: Listening) -> None:
    assert begun(guarded, length=10**6).startswith("HTTP/1.1 413")


def test_slow_bodies(guarded: Listening) -> None:
    assert begun(guarded, length=99).startswith("HTTP/1.1 408")
    assert guarded.state.is_idle or wait_until(lambda: guarded.state.is_idle) is None


def begun(guarded: Listening, length: int) -> str:
    """The answer to a request of which only the first byte of the body is sent."""
    import socket  # noqa: PLC0415 -- a Unix socket, by hand

    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(guarded.socket)
        head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer k1\r\ncontent-type: application/json\r\n"
        connection.sendall(f"{head}content-length: {length}\r\n\r\n{{".encode())
        return connection.recv(10_000).decode()


def test_one_request_at_a_time(guarded: Listening) -> None:
    guarded.state.in_flight["k1"] = 1
    with pytest.raises(openai.RateLimitError) as refused:
        guarded.openai("k1").chat.completions.create(model="m", messages=ASKED)
    assert refused.value.response.headers["retry-after"] == "1"
    assert guarded.openai("k2").chat.completions.create(model="m", messages=ASKED).choices
    guarded.state.in_flight["k1"] = 0
    assert guarded.openai("k1").chat.completions.create(model="m", messages=ASKED).choices


def test_a_full_queue_and_a_draining_server(llm: MaraLLM) -> None:
    with listening(app_of(llm._copied({"queue_size": 1, "batch_size": 1}))) as running:
        # As many as may run and wait are accepted; what cannot ever be is the caller's mistake.
        with pytest.raises(openai.BadRequestError, match="but 2 may run and wait") as large:
            running.openai().chat.completions.create(model="m", messages=ASKED, n=3)
        assert large.value.param == "n"
        running.state.is_draining = True
        with pytest.raises(openai.InternalServerError) as refused:
            running.openai().chat.completions.create(model="m", messages=ASKED)
        assert (refused.value.status_code, refused.value.code) == (503, "draining")
        assert refused.value.response.headers["retry-after"] == "1"
        assert running.http().get("/ready").status_code == 503
        assert running.http().get("/health").status_code == 200


def test_request_ids_and_the_log(guarded: Listening, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="langchain_mara.server.requests")
    key = {"authorization": "Bearer k1"}
    http = guarded.http()
    given = http.post(PATH, json={"messages": ASKED}, headers={**key, "x-request-id": "mine-1"})
    assert given.headers["x-request-id"] == "mine-1"
    odd = http.get("/health", headers={"x-request-id": "a b\tc"})
    assert len(odd.headers["x-request-id"]) == 32
    wait_until(lambda: len(caplog.records) >= 2)
    line = json.loads(caplog.records[0].message)
    assert (line["request_id"], line["status"], line["path"]) == ("mine-1", 200, PATH)
    assert line["completion_tokens"] == 16
    assert line["seconds"] > 0
    assert "abc" not in caplog.text
    assert "k1" not in caplog.text


def test_names_of_other_sites(llm: MaraLLM) -> None:
    with listening(app_of(llm)) as running:
        http = running.http()
        assert http.get("/v1/models", headers={"host": "evil.example"}).status_code == 400
        for name in ("localhost:8000", "127.0.0.1", "[::1]:8000"):
            assert http.get("/v1/models", headers={"host": name}).status_code == 200


def test_other_origins(llm: MaraLLM) -> None:
    with listening(app_of(llm, allow_origins=("https://ours.example",))) as running:
        asks = {"access-control-request-method": "POST"}
        for origin, allowed in (("https://ours.example", True), ("https://evil.example", False)):
            got = running.http().options(PATH, headers={**asks, "origin": origin})
            assert ("access-control-allow-origin" in got.headers) is allowed
