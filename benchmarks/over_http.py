"""The same calls over HTTP and in the same process: throughput, and time to the first token."""

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
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


class Server(NamedTuple):
    """A server in a process of its own.

    Attributes:
        port: Its port.
        process: Its process.
    """

    port: int
    process: "subprocess.Popen[bytes]"

    @property
    def cpu_seconds(self) -> float:
        """Processor time of the process so far, on Linux."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def resident_bytes(self) -> int:
        """Memory of the process, on Linux."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def serving(model: str, *arguments: str) -> Iterator[Server]:
    """Runs this benchmark's server.

    Args:
        model: Name of the model, as in the benchmark.
        *arguments: Further arguments of its command.
    """
    script = str(Path(__file__).with_name("serving.py"))
    with _listening(sys.executable, script, "http-server", "--model", model, *arguments) as server:
        yield server


@contextmanager
def transformers_serving(folder: Path, new_tokens: int, *arguments: str) -> Iterator[tuple[Server, str]]:
    """Runs `transformers serve` for a model whose answers are all of one length; gives the server and its model's name.

    Args:
        folder: Folder of the model.
        new_tokens: Number of tokens of each answer.
        *arguments: Further arguments of its command.
    """
    with TemporaryDirectory() as copy:
        shutil.copytree(folder, copy, dirs_exist_ok=True)
        config = Path(copy, "generation_config.json")
        lengths = {"min_new_tokens": new_tokens, "max_new_tokens": new_tokens}
        config.write_text(json.dumps({**json.loads(config.read_text()), **lengths}))
        command = str(Path(sys.executable).with_name("transformers"))
        with _listening(command, "serve", copy, "--device", "cpu", "--dtype", "float32", *arguments) as server:
            yield server, copy


@contextmanager
def _listening(*command: str) -> Iterator[Server]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen([*command, "--port", str(port)], env=environment)  # noqa: S603
    try:
        _wait(process, port)
        yield Server(port, process)
    finally:
        process.terminate()
        process.wait(120)  # longer than the server drains


def _wait(process: "subprocess.Popen[bytes]", port: int) -> None:
    end = time.monotonic() + 300
    while time.monotonic() < end and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise RuntimeError("The server did not start. Its own output says why.")
