"""Many callers on one loaded model: throughput, latency, prefix reuse, and a stress run.

    python benchmarks/serving.py throughput   concurrent `ainvoke` calls against the same calls one after another
    python benchmarks/serving.py arrivals     calls that arrive at random: latency at shares of the capacity
    python benchmarks/serving.py prefix       questions behind a common prefix, with and without reuse
    python benchmarks/serving.py stress       threads, random cancellations and stop strings; memory and mix-ups

`--model demo` is the embedded model, the default a random one of the 135 M shape. Ratios are formed
within a repeat, interleaved, and their medians reported.
"""

import asyncio
import gc
import random
import statistics
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from decoding import CoinAgent, load
from memory import resident_bytes
from rich.progress import track
from rich.table import Table
from tables import Output, console, publish

from langchain_mara import MaraLLM
from langchain_mara.policy.model import PolicyModel
from langchain_mara.policy.packed_linear import pack

_WORDS = "how can I tell my neighbour that the garden house needs a new roof before winter comes"
app = typer.Typer(add_completion=False, help=__doc__, rich_markup_mode=None)
Model = Annotated[str, typer.Option(help="`demo`, a hub id or folder, or `135m` for a random model of that shape.")]
NewTokens = Annotated[int, typer.Option(help="Tokens per answer, or per question.")]


def make_llm(name: str, **kwargs: Any) -> MaraLLM:
    """An LLM with an agent that accepts half of the states."""
    torch.set_flush_denormal(True)
    if name == "demo":
        return MaraLLM.demo(device="cpu", **kwargs)
    demo = MaraLLM.demo(device="cpu")
    model = load(name, "cuda" if torch.cuda.is_available() else "cpu", torch.float32)
    pack(model)  # as models loaded by name are on the CPU
    agent = CoinAgent(model.config.hidden_size).to(model.device).eval()
    # The answers' text is noise: any tokenizer will do, as long as a stream has some text for every token.
    demo.tokenizer.add_tokens([f" word{number}" for number in range(len(demo.tokenizer), model.config.vocab_size)])
    return MaraLLM(model=model, tokenizer=demo.tokenizer, agent=agent, model_id=name, **kwargs)


def questions(count: int, words: int = 12) -> list[str]:
    """Prompts of unequal length about nothing."""
    draw = random.Random(count)  # noqa: S311
    vocabulary = _WORDS.split()
    lengths = [draw.randint(words // 2, words * 3 // 2) for _ in range(count)]
    return [f"Question {i}: " + " ".join(draw.choices(vocabulary, k=length)) for i, length in enumerate(lengths)]


@app.command()
def throughput(
    model: Model = "135m",
    calls: int = 32,
    new_tokens: NewTokens = 24,
    width: Annotated[int, typer.Option(help="Siblings per pass; 0 chooses.")] = 0,
    repeats: int = 3,
    output: Output = None,
) -> None:
    """Concurrent calls against the same calls one after another, and the latency of one among many."""
    llm = make_llm(model, max_new_tokens=new_tokens, min_new_tokens=new_tokens, batch_size=calls, width=width or None)
    prompts = questions(calls)

    async def alone() -> list[str]:
        return [await llm.ainvoke(prompt) for prompt in prompts]

    async def together() -> list[str]:
        return list(await asyncio.gather(*(llm.ainvoke(prompt) for prompt in prompts)))

    async def among() -> float:
        others = [asyncio.create_task(llm.ainvoke(prompt)) for prompt in prompts[1:]]
        await asyncio.sleep(0.2)
        start = time.perf_counter()
        await llm.ainvoke(prompts[0], max_new_tokens=8, min_new_tokens=8)
        seconds = time.perf_counter() - start
        await asyncio.gather(*others)
        return seconds

    async def single() -> float:
        start = time.perf_counter()
        await llm.ainvoke(prompts[0], max_new_tokens=8, min_new_tokens=8)
        return time.perf_counter() - start

    rows: dict[str, list[float]] = {"alone": [], "together": [], "single": [], "among": []}
    for repeat in range(repeats + 1):
        texts = {}
        for name, run in {"alone": alone, "together": together}.items():
            start = time.perf_counter()
            texts[name] = asyncio.run(run())
            rows[name].append(time.perf_counter() - start)
        rows["single"].append(asyncio.run(single()))
        rows["among"].append(asyncio.run(among()))
        if texts["alone"] != texts["together"]:
            differing = sum(a != b for a, b in zip(texts["alone"], texts["together"], strict=True))
            console.print(f"repeat {repeat}: {differing} of {calls} answers differ (rounding in float32)")
    pace = f"width {width or 'chosen'}"
    table = Table("measure", "median", title=f"{calls} calls of {new_tokens} tokens on {model}, {pace}")
    measured = {name: values[1:] for name, values in rows.items()}
    for name in ("alone", "together"):
        rate = statistics.median(calls * new_tokens / seconds for seconds in measured[name])
        table.add_row(f"tokens/s, calls {name}", f"{rate:.1f}")
    table.add_row("ratio of throughput", f"{_ratio(measured['alone'], measured['together']):.2f}")
    for name, text in {"single": "nothing else running", "among": f"{calls - 1} others decoding"}.items():
        table.add_row(f"seconds for 8 tokens, {text}", f"{statistics.median(measured[name]):.3f}")
    publish(table, output, measured)


_HEARD = (
    "calls/s",
    "tokens/s",
    "ms to the first token",
    "ms per further token",
    "ms to the whole answer",
    "waiting, running as the last call comes",
)


class Heard(NamedTuple):
    """When a call came, was first answered and had its answer, in seconds from the first call; and its tokens."""

    came: float
    first: float
    last: float
    tokens: int


@app.command()
def arrivals(
    model: Model = "135m",
    calls: int = 100,
    new_tokens: NewTokens = 24,
    share: Annotated[list[float], typer.Option(help="Of the capacity; repeatable.")] = [0.25, 0.5, 0.8, 1.2],  # noqa: B006
    batch_size: int = 8,
    width: Annotated[int, typer.Option(help="Siblings per pass; 0 chooses.")] = 0,
    seed: int = 0,
    output: Output = None,
) -> None:
    """Latency of streamed calls that come at random, whether or not earlier ones are answered (Poisson, open loop).

    Prompts and answers have unequal lengths, a half to one and a half times the mean. The capacity is what is
    answered in a second where all calls come at once, measured before every rate; the rhythm is the same for all.
    """
    # A later rate must not find the prompts of an earlier one.
    llm = make_llm(model, batch_size=batch_size, width=width or None, prefix_memory=0)
    draw = np.random.default_rng(seed)
    lengths = draw.integers(max(2, new_tokens // 2), new_tokens * 3 // 2, calls, endpoint=True).tolist()
    # A Poisson process whose number of calls is known: they are spread evenly at random.
    moments = np.sort(draw.uniform(0, calls, calls))
    jobs = list(zip(questions(calls, 40), lengths, strict=True))
    asyncio.run(_all_heard(llm, jobs[:batch_size], [0.0] * batch_size))  # warms up
    measured = []
    for one in track(share, "measuring", console=console, transient=True):
        at_once = asyncio.run(_all_heard(llm, jobs, [0.0] * calls))
        capacity = calls / max(call.last for call in at_once)
        heard = asyncio.run(_all_heard(llm, jobs, (moments / (one * capacity)).tolist()))
        measured += [("at once", at_once), (f"{one:g}", heard)]
    pace = f"{batch_size} rows, width {width or 'chosen'}"
    title = f"{calls} calls of about {new_tokens} tokens on {model}, {pace}; p50 / p95 / p99"
    table = Table("rate over capacity", *_HEARD, title=title)
    for name, heard in measured:
        table.add_row(name, *_heard_cells(heard))
    publish(table, output, measured)


async def _all_heard(llm: MaraLLM, jobs: Sequence[tuple[str, int]], moments: Sequence[float]) -> list[Heard]:
    """Calls, each at its moment, in seconds."""
    start = time.perf_counter()

    async def heard(prompt: str, tokens: int, moment: float) -> Heard:
        await asyncio.sleep(start + moment - time.perf_counter())
        answer = llm.astream(prompt, max_new_tokens=tokens, min_new_tokens=tokens)
        times = [time.perf_counter() - start async for _ in answer]
        # From the moment it should have come, or a late load generator would hide waiting.
        return Heard(moment, times[0], times[-1], tokens)

    return await asyncio.gather(*(heard(*job, moment) for job, moment in zip(jobs, moments, strict=True)))


def _heard_cells(heard: Sequence[Heard]) -> list[str]:
    end = max(one.last for one in heard)
    last_call = max(one.came for one in heard)
    waiting = sum(one.first > last_call for one in heard)
    running = sum(one.first <= last_call < one.last for one in heard)
    return [
        f"{len(heard) / last_call:.2f}" if last_call else "",
        f"{sum(one.tokens for one in heard) / end:.1f}",
        _percentiles([one.first - one.came for one in heard]),
        _percentiles([(one.last - one.first) / (one.tokens - 1) for one in heard]),
        _percentiles([one.last - one.came for one in heard]),
        f"{waiting}, {running}",
    ]


def _percentiles(seconds: Sequence[float]) -> str:
    return " / ".join(f"{1000 * one:.0f}" for one in np.percentile(seconds, [50, 95, 99]))


@app.command()
def prefix(
    model: Model = "135m",
    tokens: int = 512,
    count: int = 64,
    new_tokens: NewTokens = 4,
    repeats: int = 1,
    output: Output = None,
) -> None:
    """Questions behind a common prefix, with and without reuse: prefilled tokens, time, identical answers."""
    base = make_llm(model, max_new_tokens=new_tokens, batch_size=8, width=2, use_chat_template=False)
    header = ("You answer briefly and kindly. " * tokens)[: 6 * tokens]
    ids = base.get_token_ids(header)[:tokens]
    header = str(base.tokenizer.decode(ids))
    prompts: list[Any] = [header + question for question in questions(count, 8)]
    table = Table("", "prefilled tokens", "seconds", title=f"{count} questions behind {tokens} tokens on {model}")
    answers, seconds = {}, {}
    for memory in [0, 512 * 2**20] * repeats:
        prefilled = _Prefilled()
        start = time.perf_counter()
        answers[memory] = base.batch(prompts, prefix_memory=memory)
        seconds[memory] = time.perf_counter() - start
        table.add_row(f"prefix_memory={memory}", str(prefilled.tokens), f"{seconds[memory]:.1f}")
        prefilled.close()
    publish(table, output)
    console.print("answers identical:", len(set(map(tuple, answers.values()))) == 1)


class _Prefilled:
    """Counts prompt tokens that are computed, over all policy models, while it is open."""

    _passes = ("extend", "_prefill_packed")

    def __init__(self) -> None:
        self.tokens = 0
        self._originals = {name: getattr(PolicyModel, name) for name in self._passes}
        for name, original in self._originals.items():
            setattr(PolicyModel, name, self._counted(original))

    def _counted(self, original: Any) -> Any:
        def counted(policy: PolicyModel, *args: Any, **kwargs: Any) -> Any:
            before = policy.prefilled
            result = original(policy, *args, **kwargs)
            self.tokens += policy.prefilled - before
            return result

        return counted

    def close(self) -> None:
        for name, original in self._originals.items():
            setattr(PolicyModel, name, original)


@app.command()
def stress(
    model: Model = "demo", requests: int = 1000, threads: int = 16, seed: int = 0, output: Output = None
) -> None:
    """Requests of mixed length under threads: none lost, none mixed up, memory flat, no thread left."""
    llm = make_llm(model, batch_size=16, width=2)
    draw = random.Random(seed)  # noqa: S311
    prompts = questions(50)
    lengths = [4, 12, 24]
    expected = {(p, n): llm.invoke(p, max_new_tokens=n) for p in prompts for n in lengths}
    jobs = [
        (draw.choice(prompts), draw.choice(lengths), draw.choice(["whole", "stop", "cancel"]), draw.random())
        for _ in range(requests)
    ]
    memory: list[int] = []
    outcome = {"whole": 0, "stop": 0, "cancel": 0, "wrong": 0}

    def answer(job: tuple[str, int, str, float]) -> None:
        prompt, length, kind, share = job
        whole = expected[prompt, length]
        if kind == "cancel":
            stream = llm.stream(prompt, max_new_tokens=length)
            heard = "".join(text for text, _ in zip(stream, range(1 + int(3 * share)), strict=False))
            stream.close()  # type: ignore[attr-defined]
            good = whole.startswith(heard)
        elif kind == "stop" and len(whole) > 2:  # noqa: PLR2004
            place = int(share * (len(whole) - 2))
            stop = whole[place : place + 2]
            good = llm.invoke(prompt, max_new_tokens=length, stop=[stop]) == whole[: whole.index(stop)]
        else:
            good = llm.invoke(prompt, max_new_tokens=length) == whole
        outcome[kind if good else "wrong"] += 1
        memory.append(resident_bytes())

    start = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(answer, jobs))
    seconds = time.perf_counter() - start
    gc.collect()
    end = time.monotonic() + 5
    while time.monotonic() < end and any(one.name == "mara-decoding" for one in threading.enumerate()):
        time.sleep(0.01)
    quarter = requests // 4
    first, last = statistics.median(memory[:quarter]), statistics.median(memory[-quarter:])
    table = Table("measure", "value", title=f"{requests} requests under {threads} threads on {model}")
    table.add_row("seconds", f"{seconds:.0f}")
    for name, value in outcome.items():
        table.add_row(name, str(value))
    table.add_row("lost", str(requests - sum(outcome.values())))
    table.add_row("resident MiB, median of first and last quarter", f"{first / 2**20:.0f}, {last / 2**20:.0f}")
    left = [one.name for one in threading.enumerate() if one is not threading.main_thread()]
    table.add_row("threads left", str(left))
    publish(table, output)


def _ratio(slow: list[float], fast: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


if __name__ == "__main__":
    app()
