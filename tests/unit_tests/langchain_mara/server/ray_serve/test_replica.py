"""A replica gives what its app sends, and lets an answer go once nobody listens. Ray itself is not needed for that."""

import json
from typing import Any

from http_servers import app_of, wait_until

from langchain_mara import MaraLLM
from langchain_mara.server.ray_serve.replica import Ended, Forwarded, Replica


def request(path: str, body: Any = None, method: str = "POST") -> Forwarded:
    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
    return Forwarded(method, path, b"", headers, b"" if body is None else json.dumps(body).encode())


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "How do I boil an egg?"}], **fields}


async def test_what_the_app_sends_comes_message_by_message(demo: MaraLLM) -> None:
    replica = Replica(lambda: app_of(demo))
    for stream in (False, True):
        asked = request("/v1/chat/completions", chat(stream=stream, max_tokens=5))
        start, *bodies, end = [message async for message in replica.answer(asked)]
        assert (start["type"], start["status"]) == ("http.response.start", 200)
        assert isinstance(end, Ended)
        assert end.noted["completion_tokens"] == 5
        assert 'mara_tokens_total{kind="answer",model="m"}' in end.figures
        text = b"".join(message["body"] for message in bodies)
        if stream:
            assert text.endswith(b"data: [DONE]\n\n")
            assert len(bodies) > 4
        else:
            assert json.loads(text)["usage"]["completion_tokens"] == 5
        assert end.replica == replica._name


async def test_errors_are_responses(demo: MaraLLM) -> None:
    replica = Replica(lambda: app_of(demo))
    start, *_ = [message async for message in replica.answer(request("/v1/chat/completions", chat(n=0)))]
    assert start["status"] == 400
    start, *_ = [message async for message in replica.answer(request("/nowhere", method="GET"))]
    assert start["status"] == 404


async def test_an_answer_leaves_the_batch_once_nobody_listens(endless: MaraLLM) -> None:
    app = app_of(endless)
    messages = Replica(lambda: app).answer(request("/v1/chat/completions", chat(stream=True)))
    async for message in messages:
        if message["type"] == "http.response.body":
            break
    assert app.state.server.completions
    await messages.aclose()  # type: ignore[attr-defined]
    wait_until(lambda: not app.state.server.completions)
