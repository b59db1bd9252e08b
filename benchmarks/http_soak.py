"""Clients that ask a server without a pause, whole, streamed and given up: what is lost, and what memory grows.

`python benchmarks/serving.py http-soak` runs it.
"""

import asyncio
import random
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from openai import AsyncOpenAI, DefaultAsyncHttpxClient
from over_http import Server
from rich.table import Table

_KINDS = ("whole", "streamed", "given up", "text")
_MODELS = ("m", "m+a")
_SAMPLE_SECONDS = 1.0
_PATIENCE = 10


class _Soak:
    def __init__(self, server: Server, questions: Sequence[str], seed: int) -> None:
        self._http = http = DefaultAsyncHttpxClient(timeout=600)
        url = f"http://127.0.0.1:{server.port}/v1"
        self._client = AsyncOpenAI(base_url=url, api_key="none", http_client=http, max_retries=0)
        self._server, self._questions = server, questions
        self._random = random.Random(seed)  # noqa: S311
        self._expected: dict[tuple[str, str, str], str] = {}
        self.outcomes: Counter[str] = Counter()
        self.memory: list[int] = []

    async def ask(self, model: str, question: str, kind: str) -> str:
        """The answer, or its beginning."""
        if kind == "text":
            completion = await self._client.completions.create(model=model, prompt=question, max_tokens=16)
            return completion.choices[0].text
        messages = [{"role": "user", "content": question}]
        if kind == "whole":
            answer = await self._client.chat.completions.create(model=model, messages=messages)  # type: ignore[arg-type]
            return answer.choices[0].message.content or ""
        most = self._random.randint(1, 6) if kind == "given up" else None
        pieces: list[str] = []
        stream: Any = await self._client.chat.completions.create(model=model, messages=messages, stream=True)  # type: ignore[arg-type]
        async with stream:
            async for chunk in stream:
                pieces.append((chunk.choices[0].delta.content or "") if chunk.choices else "")
                if most is not None and len(pieces) > most:
                    break
        return "".join(pieces)

    async def learn(self) -> None:
        """Asks each question once, alone, as what later answers are compared with."""
        for model in _MODELS:
            for question in self._questions:
                for kind in ("whole", "text"):
                    self._expected[model, question, kind] = await self.ask(model, question, kind)

    async def client(self, until: float) -> None:
        """Asks one question after another."""
        while time.monotonic() < until:
            kind = self._random.choice(_KINDS)
            model, question = self._random.choice(_MODELS), self._random.choice(self._questions)
            expected = self._expected[model, question, "text" if kind == "text" else "whole"]
            try:
                answer = await self.ask(model, question, kind)
            except Exception as error:  # noqa: BLE001 - whatever it is, an answer was lost
                self.outcomes[f"lost: {type(error).__name__}"] += 1
                continue
            correct = expected.startswith(answer) if kind == "given up" else answer == expected
            self.outcomes[kind if correct else "changed"] += 1

    async def left(self) -> float:
        """Number of requests that the server still answers, though nobody asks any more."""
        for _ in range(_PATIENCE):
            text = (await self._http.get(f"http://127.0.0.1:{self._server.port}/metrics")).text
            [line] = [line for line in text.splitlines() if line.startswith("mara_requests_in_flight ")]
            if (count := float(line.split()[1]) - 1) <= 0:  # this request is one
                break
            await asyncio.sleep(1)
        return count

    async def watch(self, until: float) -> None:
        """Notes the server's memory."""
        while time.monotonic() < until:
            self.memory.append(self._server.resident_bytes)
            await asyncio.sleep(_SAMPLE_SECONDS)


async def soak_over_http(server: Server, questions: Sequence[str], seconds: float, clients: int, seed: int) -> Table:
    """Asks for some time; the table says what became of the answers.

    Args:
        server: The server, which has the models `m` and `m+a`, both without chance.
        questions: What is asked.
        seconds: How long.
        clients: Number of clients.
        seed: Seed of what is asked and how.
    """
    soak = _Soak(server, questions, seed)
    await soak.learn()
    until = time.monotonic() + seconds
    await asyncio.gather(soak.watch(until), *(soak.client(until) for _ in range(clients)))
    left = await soak.left()
    table = Table("measure", "value", title=f"{clients} clients for {seconds:.0f} s")
    table.add_row("answers", str(soak.outcomes.total()))
    for name in (*_KINDS, "changed", *sorted(set(soak.outcomes) - {*_KINDS, "changed"})):
        table.add_row(name, str(soak.outcomes[name]))
    lost = sum(count for name, count in soak.outcomes.items() if name.startswith("lost"))
    table.add_row("lost", str(lost))
    table.add_row("requests that remain", f"{left:.0f}")
    quarter = max(1, len(soak.memory) // 4)
    parts = [soak.memory[place : place + quarter] for place in range(0, 4 * quarter, quarter)]
    medians = ", ".join(f"{statistics.median(part) / 2**20:.0f}" for part in parts if part)
    table.add_row("resident MiB of the server, medians of four quarters", medians)
    return table
