"""Many callers of one loaded model: throughput, latency, prefix reuse, and a stress run.

    python benchmarks/serving.py throughput   concurrent `ainvoke` calls against the same calls one after another
    python benchmarks/serving.py arrivals     calls that arrive at random: latency at shares of the capacity
    python benchmarks/serving.py prefix       questions after a common prefix, with and without reuse
    python benchmarks/serving.py stress       threads, random cancellations and stop strings; memory and mix-ups
    python benchmarks/serving.py http         many clients over HTTP against the same calls in this process
    python benchmarks/serving.py http-soak    clients that ask over HTTP for an hour; what is lost, and memory
    python benchmarks/serving.py chaos        good, poisoned, cancelled and late calls at random times; what is lost

`--model demo` is the bundled model, `--model demo-gguf` the same in float32 on llama.cpp; the default is a random model
with the 135 M shape. Answers of other GGUF files depend on who shares a pass, so `chaos` may find them changed.
Repeats are interleaved. Ratios are computed within each repeat; their medians are reported.
"""

import asyncio
import gc
import random
import statistics
import tempfile
import threading
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from chaos import soak
from decoding import CoinAgent, load
from http_soak import soak_over_http
from memory import resident_bytes
from over_http import Call, Run, Server, in_process, measure, over_http, serving, transformers_serving
from rich.progress import track
from rich.table import Table
from tables import Output, console, publish
from transformers.utils.import_utils import is_serve_available

from langchain_mara import MaraAgent, MaraLLM
from langchain_mara.loading.models import DEMO_MODEL_FOLDER
from langchain_mara.policy.model import PolicyModel
from langchain_mara.policy.packed_linear import pack

_WORDS = "how can I tell my neighbor that the garden house needs a new roof before winter comes"
_DEMO_GGUF = "demo-gguf"
app = typer.Typer(add_completion=False, help=__doc__, rich_markup_mode=None)
Model = Annotated[
    str, typer.Option(help="`demo`, `demo-gguf`, a GGUF file, a hub id or folder, or `135m` for a random model.")
]
NewTokens = Annotated[int, typer.Option(help="Tokens per answer.")]


def make_llm(name: str, **kwargs: Any) -> MaraLLM:
    """An LLM with an agent that accepts half of the states."""
    torch.set_flush_denormal(True)
    if name == "demo":
        return MaraLLM.demo(device="cpu", **kwargs)
    demo = MaraLLM.demo(device="cpu", packed=False)
    if "gguf" in name:
        return _on_llama_cpp(name, demo, **kwargs)
    model = load(name, "cuda" if torch.cuda.is_available() else "cpu", torch.float32)
    pack(model)  # like models loaded by name, on the CPU
    agent = CoinAgent(model.config.hidden_size).to(model.device).eval()
    # The answers' text is meaningless, so any tokenizer will do if every token has some text to stream.
    demo.tokenizer.add_tokens([f" word{number}" for number in range(len(demo.tokenizer), model.config.vocab_size)])
    return MaraLLM(model=model, tokenizer=demo.tokenizer, agent=agent, model_id=name, **kwargs)


def _on_llama_cpp(name: str, demo: MaraLLM, **kwargs: Any) -> MaraLLM:
    """A GGUF file, or the bundled model as one, with its agent."""
    if name != _DEMO_GGUF:
        llm = MaraLLM.from_gguf(name, **kwargs)
        return llm.with_agent(CoinAgent(llm.model.config.hidden_size).eval())
    from in_gguf import in_gguf  # noqa: PLC0415 - needs the package gguf

    folder = tempfile.TemporaryDirectory()
    file = in_gguf(demo.model, demo.tokenizer, Path(folder.name, "demo.gguf"))
    llm = MaraLLM.from_gguf(file, agent=demo.agent, **kwargs)
    weakref.finalize(llm.model, folder.cleanup)  # some weights are read from the file when they are first needed
    return llm


def questions(count: int, words: int = 12) -> list[str]:
    """Random prompts of unequal length, from half to one and a half times `words` words."""
    generator = random.Random(count)  # noqa: S311
    vocabulary = _WORDS.split()
    lengths = [generator.randint(words // 2, words * 3 // 2) for _ in range(count)]
    return [f"Question {i}: " + " ".join(generator.choices(vocabulary, k=length)) for i, length in enumerate(lengths)]


@app.command()
def throughput(
    model: Model = "135m",
    calls: int = 32,
    new_tokens: NewTokens = 24,
    width: Annotated[int, typer.Option(help="Siblings per pass; 0 tunes it.")] = 0,
    repeats: int = 3,
    output: Output = None,
) -> None:
    """Concurrent calls against the same calls one after another, and the latency of one call among many."""
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
    title = f"{calls} calls of {new_tokens} tokens on {model}, width {width or 'chosen'}"
    table = Table("measure", "median", title=title)
    measured = {name: values[1:] for name, values in rows.items()}
    for name in ("alone", "together"):
        rate = statistics.median(calls * new_tokens / seconds for seconds in measured[name])
        table.add_row(f"tokens/s, calls {name}", f"{rate:.1f}")
    table.add_row("ratio of throughput", f"{_ratio(measured['alone'], measured['together']):.2f}")
    for name, text in {"single": "nothing else running", "among": f"{calls - 1} others decoding"}.items():
        table.add_row(f"seconds for 8 tokens, {text}", f"{statistics.median(measured[name]):.3f}")
    publish(table, output, measured)


_LATENCY_COLUMNS = (
    "calls/s",
    "tokens/s",
    "ms to the first token",
    "ms per further token",
    "ms to the whole answer",
    "waiting, running when the last call arrives",
)


class TimedCall(NamedTuple):
    """A call with its times, in seconds from the start of the run.

    Attributes:
        arrival: Time of the call.
        first: Time of its first text.
        last: Time of its last text.
        tokens: Number of tokens in its answer.
    """

    arrival: float
    first: float
    last: float
    tokens: int


@app.command()
def arrivals(
    model: Model = "135m",
    calls: int = 100,
    new_tokens: NewTokens = 24,
    share: Annotated[list[float], typer.Option(help="Share of the capacity; repeatable.")] = [0.25, 0.5, 0.8, 1.2],  # noqa: B006
    batch_size: int = 8,
    width: Annotated[int, typer.Option(help="Siblings per pass; 0 tunes it.")] = 0,
    seed: int = 0,
    output: Output = None,
) -> None:
    """Latency of streamed calls that arrive at random, whether or not earlier ones are answered (Poisson, open loop).

    Prompts and answers have unequal lengths, from half to one and a half times the mean. The capacity is the number of
    calls answered per second when all calls arrive at once; it is measured before every rate. The pattern of arrivals
    is the same for all rates.
    """
    # Without prefix memory, so that a later rate does not reuse the prompts of an earlier one.
    llm = make_llm(model, batch_size=batch_size, width=width or None, prefix_memory=0)
    generator = np.random.default_rng(seed)
    lengths = generator.integers(max(2, new_tokens // 2), new_tokens * 3 // 2, calls, endpoint=True).tolist()
    # Given their number, the arrivals of a Poisson process are independent and uniform.
    arrival_times = np.sort(generator.uniform(0, calls, calls))
    jobs = list(zip(questions(calls, 40), lengths, strict=True))
    asyncio.run(_timed_calls(llm, jobs[:batch_size], [0.0] * batch_size))  # warm-up
    measured = []
    for rate in track(share, "measuring", console=console, transient=True):
        at_once = asyncio.run(_timed_calls(llm, jobs, [0.0] * calls))
        capacity = calls / max(call.last for call in at_once)
        spread_out = asyncio.run(_timed_calls(llm, jobs, (arrival_times / (rate * capacity)).tolist()))
        measured += [("at once", at_once), (f"{rate:g}", spread_out)]
    rows = f"{batch_size} rows, width {width or 'chosen'}"
    title = f"{calls} calls of about {new_tokens} tokens on {model}, {rows}; p50 / p95 / p99"
    table = Table("rate over capacity", *_LATENCY_COLUMNS, title=title)
    for name, timed_calls in measured:
        table.add_row(name, *_latency_cells(timed_calls))
    publish(table, output, measured)


async def _timed_calls(
    llm: MaraLLM, jobs: Sequence[tuple[str, int]], arrival_times: Sequence[float]
) -> list[TimedCall]:
    """Makes each call (prompt, tokens) at its arrival time, in seconds from now."""
    start = time.perf_counter()

    async def timed_call(prompt: str, tokens: int, arrival: float) -> TimedCall:
        await asyncio.sleep(start + arrival - time.perf_counter())
        answer = llm.astream(prompt, max_new_tokens=tokens, min_new_tokens=tokens)
        times = [time.perf_counter() - start async for _ in answer]
        # With the planned arrival time: a load generator that is late would otherwise hide waiting.
        return TimedCall(arrival, times[0], times[-1], tokens)

    return await asyncio.gather(*(timed_call(*job, arrival) for job, arrival in zip(jobs, arrival_times, strict=True)))


def _latency_cells(calls: Sequence[TimedCall]) -> list[str]:
    end = max(call.last for call in calls)
    last_arrival = max(call.arrival for call in calls)
    waiting = sum(call.first > last_arrival for call in calls)
    running = sum(call.first <= last_arrival < call.last for call in calls)
    return [
        f"{len(calls) / last_arrival:.2f}" if last_arrival else "",
        f"{sum(call.tokens for call in calls) / end:.1f}",
        _percentiles([call.first - call.arrival for call in calls]),
        _percentiles([(call.last - call.first) / (call.tokens - 1) for call in calls]),
        _percentiles([call.last - call.arrival for call in calls]),
        f"{waiting}, {running}",
    ]


def _percentiles(seconds: Sequence[float]) -> str:
    return " / ".join(f"{1000 * value:.0f}" for value in np.percentile(seconds, [50, 95, 99]))


@app.command()
def prefix(
    model: Model = "135m",
    tokens: int = 512,
    count: int = 64,
    new_tokens: NewTokens = 4,
    repeats: int = 1,
    output: Output = None,
) -> None:
    """Questions after a common prefix, with and without reuse: prefilled tokens, time, identical answers."""
    base = make_llm(model, max_new_tokens=new_tokens, batch_size=8, width=2, use_chat_template=False)
    header = ("You answer briefly and kindly. " * tokens)[: 6 * tokens]
    ids = base.get_token_ids(header)[:tokens]
    header = str(base.tokenizer.decode(ids))
    prompts: list[Any] = [header + question for question in questions(count, 8)]
    table = Table("", "prefilled tokens", "seconds", title=f"{count} questions after {tokens} tokens on {model}")
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
    """Counts the prompt tokens that all policy models compute, until it is closed."""

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
    """Requests of mixed length from many threads: lost or mixed-up answers, growth of memory, threads that remain."""
    llm = make_llm(model, batch_size=16, width=2)
    generator = random.Random(seed)  # noqa: S311
    prompts = questions(50)
    lengths = [4, 12, 24]
    expected = {(prompt, length): llm.invoke(prompt, max_new_tokens=length) for prompt in prompts for length in lengths}
    kinds = ["whole", "stop", "cancel"]
    jobs = [
        (generator.choice(prompts), generator.choice(lengths), generator.choice(kinds), generator.random())
        for _ in range(requests)
    ]
    memory: list[int] = []
    outcome = {"whole": 0, "stop": 0, "cancel": 0, "wrong": 0}

    def answer(job: tuple[str, int, str, float]) -> None:
        prompt, length, kind, share = job
        whole = expected[prompt, length]
        if kind == "cancel":
            stream = llm.stream(prompt, max_new_tokens=length)
            received = "".join(text for text, _ in zip(stream, range(1 + int(3 * share)), strict=False))
            stream.close()  # type: ignore[attr-defined]
            correct = whole.startswith(received)
        elif kind == "stop" and len(whole) > 2:  # noqa: PLR2004
            start = int(share * (len(whole) - 2))
            stop = whole[start : start + 2]
            correct = llm.invoke(prompt, max_new_tokens=length, stop=[stop]) == whole[: whole.index(stop)]
        else:
            correct = llm.invoke(prompt, max_new_tokens=length) == whole
        outcome[kind if correct else "wrong"] += 1
        memory.append(resident_bytes())

    start = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(answer, jobs))
    seconds = time.perf_counter() - start
    gc.collect()
    end = time.monotonic() + 5
    while time.monotonic() < end and any(thread.name == "mara-decoding" for thread in threading.enumerate()):
        time.sleep(0.01)
    quarter = requests // 4
    first, last = statistics.median(memory[:quarter]), statistics.median(memory[-quarter:])
    table = Table("measure", "value", title=f"{requests} requests from {threads} threads on {model}")
    table.add_row("seconds", f"{seconds:.0f}")
    for name, value in outcome.items():
        table.add_row(name, str(value))
    table.add_row("lost", str(requests - sum(outcome.values())))
    table.add_row("resident MiB, median of first and last quarter", f"{first / 2**20:.0f}, {last / 2**20:.0f}")
    remaining = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    table.add_row("threads that remain", str(remaining))
    publish(table, output)


@app.command()
def chaos(
    model: Model = "demo",
    requests: int = 1000,
    seconds: Annotated[float, typer.Option(help="Time over which the calls arrive.")] = 240.0,
    threads: int = 32,
    seed: int = 0,
    output: Output = None,
) -> None:
    """Calls at random times, three tenths poisoned, cancelled or with a timeout: what is lost, changed, left."""
    # The poison that lacks memory is tried with the whole width first.
    llm = make_llm(model, batch_size=16, width=2, prefix_memory=2**22)  # soon full
    if model not in ("demo", _DEMO_GGUF):
        # A coin's answers hang on the last bits of the states, and so on who shares the batch.
        llm = llm.with_agent(MaraAgent(llm.model.config.hidden_size, width=64).eval())
    title = f"{requests} calls over {seconds:.0f} s from {threads} threads on {model}"
    publish(soak(llm, questions(20), requests, seconds, threads, seed, title), output)


@app.command()
def http(
    model: Model = "demo",
    clients: Annotated[int, typer.Option(help="Clients that ask at the same time.")] = 64,
    new_tokens: NewTokens = 64,
    repeats: int = 5,
    transformers: Annotated[
        bool, typer.Option(help="Also ask `transformers serve`, which has the plain bundled model.")
    ] = True,
    output: Output = None,
) -> None:
    """Many clients over HTTP, against the same calls in this process, and against `transformers serve`."""
    chat = _fixed_length(model, clients, new_tokens).as_chat()
    asked = questions(clients)
    calls: dict[str, Call] = {"in this process": in_process(chat)}
    with ExitStack() as stack:
        ours = stack.enter_context(serving(model, "--clients", str(clients), "--new-tokens", str(new_tokens)))
        servers = {"over HTTP": ours, "over HTTP, plain": ours}
        calls |= {name: over_http(ours.port, {"over HTTP": "m+a"}.get(name, "m"), new_tokens) for name in servers}
        if transformers and model == "demo" and is_serve_available():
            theirs, named = stack.enter_context(transformers_serving(DEMO_MODEL_FOLDER, new_tokens))
            servers["transformers serve, plain"] = theirs
            calls["transformers serve, plain"] = over_http(theirs.port, named, new_tokens)
        # One event loop for all, because connections that a client keeps belong to theirs.
        runner = stack.enter_context(asyncio.Runner())
        runs: dict[str, list[Run]] = {name: [] for name in calls}
        cpu: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(repeats + 1):
            for name, call in calls.items():
                before = _cpu_seconds(servers.get(name))
                runs[name].append(runner.run(measure(call, asked, new_tokens)))
                cpu[name].append((_cpu_seconds(servers.get(name)) - before) / runs[name][-1].tokens)
    measured = {name: each[1:] for name, each in runs.items()}
    title = f"{clients} clients, {new_tokens} tokens each, on {model}"
    columns = "calls", "tokens/s", "s to the first token (p50 / p95 / p99)", "ratio of tokens/s", "CPU ms/token, median"
    table = Table(*columns, title=title)
    rates = {name: [run.tokens / run.last for run in each] for name, each in measured.items()}
    for name, each in measured.items():
        waits = np.percentile([wait for run in each for wait in run.first], [50, 95, 99])
        ratio = _ratio(rates[name], rates["in this process"])
        shown = " / ".join(f"{wait:.2f}" for wait in waits)
        spent = f"{1000 * statistics.median(cpu[name][1:]):.2f}"
        table.add_row(name, f"{statistics.median(rates[name]):.0f}", shown, f"{ratio:.2f}", spent)
    publish(table, output, {"runs": measured, "cpu": cpu})


def _cpu_seconds(server: Server | None) -> float:
    """Processor time so far of a server, or of this process."""
    return time.process_time() if server is None else server.cpu_seconds


@app.command()
def http_soak(
    model: Model = "demo",
    seconds: Annotated[float, typer.Option(help="How long to ask.")] = 3600,
    clients: int = 16,
    seed: int = 0,
    output: Output = None,
) -> None:
    """Clients that ask over HTTP without a pause: whole, streamed and given up answers. What is lost, and memory."""
    with serving(model, "--clients", str(clients), "--new-tokens", "16") as server:
        table = asyncio.run(soak_over_http(server, questions(8), seconds, clients, seed))
    publish(table, output)


@app.command(hidden=True)
def http_server(model: Model = "demo", clients: int = 64, new_tokens: NewTokens = 64, port: int = 8000) -> None:
    """The server of `http`."""
    from langchain_mara.server.app import create_app  # noqa: PLC0415 - the other benchmarks do without its libraries
    from langchain_mara.server.process import serve  # noqa: PLC0415
    from langchain_mara.server.served import ServedModels  # noqa: PLC0415
    from langchain_mara.server.settings import ServerSettings  # noqa: PLC0415

    llm = _fixed_length(model, clients, new_tokens)
    agents = {} if llm.agent is None else {"a": llm.agent}
    serve(create_app(ServedModels(llm, "m", agents), ServerSettings(port=port)))


def _fixed_length(model: str, clients: int, new_tokens: int) -> MaraLLM:
    """A model whose answers are all of one length, and whose batch takes all clients."""
    return make_llm(model, max_new_tokens=new_tokens, min_new_tokens=new_tokens, batch_size=clients)


def _ratio(numerators: list[float], denominators: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


if __name__ == "__main__":
    app()
