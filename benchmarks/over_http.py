"""The same calls over HTTP and in the same process: throughput, and time to the first token."""

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from langchain_mara import ChatMara

Call = Callable[[str], AsyncIterator[object]]
"""Streams the answer to a question, one item per piece of text."""


class Run(NamedTuple):
    """The times of many calls at once, in seconds from their common start.

    Attributes:
        first: Time of each call's first piece.
        last: Time of the last piece of all.
        tokens: Number of tokens in all answers.
    """

    first: list[float]
    last: float
    tokens: int


async def measure(call: Call, questions: Sequence[str], tokens: int) -> Run:
    """Asks all questions at once.

    Args:
        call: Streams the answer to a question.
        questions: The questions.
        tokens: Number of tokens of each answer.
    """
    start = time.perf_counter()
    first: list[float] = []

    async def ask(question: str) -> None:
        waited = False
        async for _ in call(question):
            if not waited:
                first.append(time.perf_counter() - start)
                waited = True

    await asyncio.gather(*map(ask, questions))
    return Run(first, time.perf_counter() - start, tokens * len(questions))


def in_process(chat: ChatMara) -> Call:
    """Calls of a model in this process."""

    async def call(question: str) -> AsyncIterator[object]:
        async for chunk in chat.astream(question):
            if chunk.text:
                yield chunk

    return call


def over_http(port: int, model: str, new_tokens: int) -> Call:
    """Calls of a server on this machine, by the official client."""
    http = DefaultAsyncHttpxClient(timeout=600)
    client = AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", http_client=http, max_retries=0)

    async def call(question: str) -> AsyncIterator[object]:
        stream = await client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": question}],
            max_tokens=new_tokens,
            stream=True,
        )
        async for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                yield chunk

    return call


@contextmanager
def serving(model: str, *arguments: str) -> Iterator[int]:
    """Runs this benchmark's server in a process of its own; gives its port.

    Args:
        model: Name of the model, as in the benchmark.
        *arguments: Further arguments of its command.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    script = Path(__file__).with_name("serving.py")
    command = [sys.executable, str(script), "http-server", "--model", model, "--port", str(port), *arguments]
    process = subprocess.Popen(command)  # noqa: S603
    try:
        _wait(process, port)
        yield port
    finally:
        process.terminate()
        process.wait(30)


def _wait(process: "subprocess.Popen[bytes]", port: int) -> None:
    end = time.monotonic() + 300
    while time.monotonic() < end and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise RuntimeError("The server did not start. Its own output says why.")
