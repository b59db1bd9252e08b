"""The process in front of replicas passes on what they send, and clients hear of it when one dies."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import openai
import pytest
from fastapi import FastAPI
from http_servers import Listening, app_of, listening, wait_until
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import BackPressureError

from langchain_mara import MaraLLM
from langchain_mara.server.app import guard
from langchain_mara.server.ray_serve.figures import FrontMetrics
from langchain_mara.server.ray_serve.front import Front, FrontState
from langchain_mara.server.ray_serve.replica import Forwarded, Replica
from langchain_mara.server.settings import ServerSettings

ASKED: Any = [{"role": "user", "content": "How do I boil an egg?"}]


class Answers:
    """What Ray Serve's handle of one replica does, in this process.

    Attributes:
        dies_after: The replica dies after so many messages.
        fault: How.
        cancelled: How many calls ended before their last message.
    """

    def __init__(self, replica: Replica) -> None:
        self._replica, self.cancelled = replica, 0
        self.dies_after: int | None = None
        self.fault: Exception = ActorDiedError()

    def remote(self, request: Forwarded) -> "_Call":
        return _Call(self, self._replica.answer(request))


class _Call:
    def __init__(self, answers: Answers, messages: AsyncIterator[Any]) -> None:
        self._answers, self._messages, self._count, self._is_done = answers, messages, 0, False

    def __aiter__(self) -> "_Call":
        return self

    async def __anext__(self) -> Any:
        if self._count == self._answers.dies_after:
            self._is_done = True
            raise self._answers.fault
        self._count += 1
        try:
            return await anext(self._messages)
        except StopAsyncIteration:
            self._is_done = True
            raise

    def cancel(self) -> None:
        if not self._is_done:
            self._answers.cancelled += 1
            asyncio.ensure_future(self._messages.aclose())  # type: ignore[attr-defined]  # noqa: RUF006


@contextmanager
def front_of(llm: MaraLLM, **settings: Any) -> Iterator[tuple[Listening, Answers]]:
    answers = Answers(Replica(lambda: app_of(llm)))
    app = FastAPI()
    app.state.server = FrontState(settings=ServerSettings(**settings), metrics=FrontMetrics())
    app.mount("/", Front(answers, app.state.server))
    guard(app)
    with listening(app) as running:
        yield running, answers


@pytest.fixture(scope="module")
def front(demo: MaraLLM) -> Iterator[tuple[Listening, Answers]]:
    with front_of(demo) as running:
        yield running


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(model="m", messages=ASKED, **{"max_tokens": 6, **fields})


def test_answers_are_those_of_the_replica(front: tuple[Listening, Answers], demo: MaraLLM) -> None:
    client = front[0].openai()
    whole = ask(client).choices[0].message.content
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in ask(client, stream=True))
    with listening(app_of(demo)) as alone:
        assert whole == streamed == ask(alone.openai()).choices[0].message.content
    assert [model.id for model in client.models.list()] == ["m", "m+a"]
    with pytest.raises(openai.BadRequestError, match="temperature"):
        ask(client, temperature=-1)
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("another")


def test_probes_and_figures_are_its_own(front: tuple[Listening, Answers]) -> None:
    running = front[0]
    ask(running.openai())
    http = running.http()
    assert http.get("/health").json() == {"status": "ok"}
    assert http.get("/ready").json() == {"status": "ready"}
    wait_until(lambda: "mara_passes_total" in http.get("/metrics").text)
    lines = http.get("/metrics").text.splitlines()
    asked = [line for line in lines if line.startswith('mara_requests_total{path="/v1/chat/completions"')]
    assert len(asked) == len({line.split(" ")[0] for line in asked}) > 0
    assert not any("replica" in line for line in asked)
    assert any(line.startswith("mara_passes_total{replica=") for line in lines)
    assert not any(line.startswith("mara_queue") for line in lines)


def test_a_replica_that_dies_before_the_answer_gives_a_status(front: tuple[Listening, Answers]) -> None:
    running, answers = front
    for messages, fault, code in (
        (0, ActorDiedError(), "replica_ended"),
        (1, ActorDiedError(), "replica_ended"),  # after the head, which was held back
        (0, BackPressureError(num_queued_requests=9, max_queued_requests=8), "queue_full"),
    ):
        answers.dies_after, answers.fault = messages, fault
        for stream in (False, True):
            with pytest.raises(openai.InternalServerError) as caught:
                ask(running.openai(), stream=stream)
            assert (caught.value.status_code, caught.value.code) == (503, code)
            assert caught.value.response.headers["retry-after"] == "1"
    answers.dies_after, answers.fault = 0, ValueError("a secret")
    with pytest.raises(openai.InternalServerError) as caught:
        ask(running.openai())
    assert caught.value.status_code == 500
    assert "secret" not in str(caught.value)
    answers.dies_after = None
    assert ask(running.openai()).choices


def test_a_replica_that_dies_within_a_stream_gives_an_event(front: tuple[Listening, Answers]) -> None:
    running, answers = front
    answers.dies_after, answers.fault = 4, ActorDiedError()
    with running.http() as http:
        body = {"model": "m", "messages": ASKED, "stream": True, "max_tokens": 6}
        text = http.post("/v1/chat/completions", json=body).text
    answers.dies_after = None
    *_, last = [line for line in text.split("\n") if line]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "replica_ended"
    assert "[DONE]" not in text
    assert text.count("data: ") >= 4  # three pieces, of one or several events each, and the error


def test_a_client_that_goes_away_ends_the_call(endless: MaraLLM) -> None:
    with front_of(endless) as (running, answers):
        stream = ask(running.openai(), stream=True, max_tokens=30_000)
        next(iter(stream))
        assert not running.state.is_idle
        stream.close()
        wait_until(lambda: running.state.is_idle)
        assert answers.cancelled == 1


def test_what_outlasts_draining_ends_with_an_event(endless: MaraLLM) -> None:
    with front_of(endless, drain=0.1) as (running, _):
        stream = ask(running.openai(), stream=True, max_tokens=30_000)
        chunks = iter(stream)
        next(chunks)
        threading.Thread(target=running.server.handle_exit, args=(15, None)).start()
        with pytest.raises(openai.APIError, match="shutting down"):
            for _ in chunks:
                pass
        wait_until(lambda: running.state.is_idle)


def test_keys_and_limits_hold_in_front(demo: MaraLLM) -> None:
    with front_of(demo, api_keys=("secret",), body_limit=300) as (running, _):
        with pytest.raises(openai.AuthenticationError):
            ask(running.openai("wrong"))
        with pytest.raises(openai.APIStatusError) as caught:
            ask(running.openai("secret"), stop="x" * 300)
        assert caught.value.status_code == 413
        assert ask(running.openai("secret")).choices
