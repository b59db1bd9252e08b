"""A soak of one loaded model: good calls, poisoned ones, cancelled ones and ones with a timeout, all at random times.

`python benchmarks/serving.py chaos` runs it. A good answer that is lost or changed, a thread, or memory that stays is
a fault.
"""

import gc
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from rich.progress import track
from rich.table import Table
from tables import console
from torch import Tensor

from langchain_mara import MaraAgent, MaraLLM
from langchain_mara.decoding.request import Request
from langchain_mara.decoding.sequence import SequenceState
from langchain_mara.policy.loaded_model import LoadedModel
from langchain_mara.serving.completion import Completion, complete

_LENGTHS = (4, 12, 24)
_REPORT_SECONDS = 5.0


class Escape(BaseException):
    """Not an `Exception`, so that `except Exception` does not catch it."""


class PoisonedAgent(MaraAgent):
    """An agent that answers by a function."""

    answer: Callable[[Tensor], Any]

    def accept_probability(self, states: Tensor, accept_action: int = 1) -> Any:  # noqa: ARG002
        """What the function says."""
        return self.answer(states)


def _raising(kind: type[BaseException]) -> Callable[..., Any]:
    def function(*_: Any) -> Any:
        raise kind("mine")  # a new one each time, for an error holds on to the frames it passed

    return function


def _poisoned_agents(hidden_size: int) -> list[MaraAgent]:
    answers: list[Callable[..., Any]] = [
        lambda states: states[..., 0] * torch.nan,
        lambda states: states[..., :2],
        lambda _: None,
        _raising(ValueError),
        _raising(Escape),
        _raising(SystemExit),
        _raising(torch.OutOfMemoryError),
    ]
    agents: list[MaraAgent] = [MaraAgent(hidden_size + 1, width=16)]
    for answer in answers:
        agent = PoisonedAgent(hidden_size, width=16)
        agent.answer = answer
        agents.append(agent.eval())
    return agents


_OPTIONS: list[dict[str, Any]] = [
    {"seed": -1}, {"seed": 2**70}, {"n": 10_000_000, "order": "sampled"}, {"top_k": 0}, {"temperature": float("nan")},
]  # fmt: skip
_PROCESSORS: list[Callable[..., Any]] = [
    lambda _, scores: scores * torch.nan,
    lambda _, scores: scores[:, 1:],
    lambda _, scores: scores - torch.inf,
    lambda *_: None,
    _raising(Escape),
]


class Call(NamedTuple):
    """A call to make.

    Attributes:
        kind: `good`, `poisoned`, `cancelled` or `timeout`.
        prompt: The prompt.
        tokens: Most tokens of the answer.
        arrival: Seconds from the start of the run.
        draw: Number in [0, 1) that decides the details.
    """

    kind: str
    prompt: str
    tokens: int
    arrival: float
    draw: float


def plan(prompts: list[str], requests: int, seconds: float, seed: int) -> list[Call]:
    """Calls at random times: a tenth poisoned, a tenth cancelled, a tenth with a timeout, the others good."""
    generator = random.Random(seed)  # noqa: S311
    kinds = ["poisoned", "cancelled", "timeout"] * (requests // 10)
    kinds += ["good"] * (requests - len(kinds))
    generator.shuffle(kinds)
    arrivals = sorted(generator.uniform(0, seconds) for _ in kinds)
    return [
        Call(kind, generator.choice(prompts), generator.choice(_LENGTHS), arrival, generator.random())
        for kind, arrival in zip(kinds, arrivals, strict=True)
    ]


class Soak:
    """Makes calls and judges what comes back.

    Args:
        llm: The LLM.
        prompts: All prompts of the calls.
    """

    def __init__(self, llm: MaraLLM, prompts: list[str]) -> None:
        self.llm = llm
        self.outcomes: Counter[str] = Counter()
        self._agents = _poisoned_agents(int(llm.model.config.hidden_size))
        work = [(prompt, tokens) for prompt in prompts for tokens in _LENGTHS]
        self._expected = {
            job: llm.invoke(job[0], max_new_tokens=job[1])
            for job in track(work, "answering alone", console=console, transient=True)
        }

    def run(self, calls: list[Call], threads: int) -> float:
        """Makes the calls from threads; returns the seconds it took."""
        start = time.perf_counter()

        def make(call: Call) -> None:
            time.sleep(max(0.0, start + call.arrival - time.perf_counter()))
            self.outcomes[f"{call.kind}: {self._judge(call)}"] += 1

        with ThreadPoolExecutor(threads) as pool:
            for _ in track(pool.map(make, calls), "soaking", len(calls), console=console, transient=True):
                pass
        return time.perf_counter() - start

    def _judge(self, call: Call) -> str:
        whole = self._expected[call.prompt, call.tokens]
        try:
            if call.kind == "poisoned":
                return self._poisoned(call)
            if call.kind == "cancelled":
                return self._cancelled(call, whole)
            options: dict[str, Any] = {"max_new_tokens": call.tokens}
            if call.kind == "timeout":
                options["timeout"] = 0.001 + 0.3 * call.draw
            return "right" if self.llm.invoke(call.prompt, **options) == whole else "changed"
        except TimeoutError:
            return "timed out"
        except BaseException as error:  # noqa: BLE001 - it is what a soak looks for
            console.print(f"{call}: {type(error).__name__}: {error}", markup=False)
            return f"lost ({type(error).__name__})"

    def _cancelled(self, call: Call, whole: str) -> str:
        stream = self.llm.stream(call.prompt, max_new_tokens=call.tokens)
        received = "".join(text for text, _ in zip(stream, range(1 + int(3 * call.draw)), strict=False))
        stream.close()  # type: ignore[attr-defined]
        return "right" if whole.startswith(received) else "changed"

    def _poisoned(self, call: Call) -> str:
        ways: list[Callable[[], object]] = [
            *(lambda agent=agent: self.llm.invoke(call.prompt, agent=agent) for agent in self._agents),
            *(lambda options=options: self.llm.generate([call.prompt], **options) for options in _OPTIONS),
            *(lambda processor=processor: self._processed(call, processor) for processor in _PROCESSORS),
            lambda: self.llm.invoke(call.prompt * 5000),
        ]
        try:
            ways[int(call.draw * len(ways))]()
        except BaseException:  # noqa: BLE001 - every poison is to be refused
            return "refused"
        return "accepted"

    def _processed(self, call: Call, processor: Callable[..., Any]) -> None:
        (completion,) = self.llm._answers([call.prompt], None)  # noqa: SLF001
        completion.request.logits_processor = processor
        for _ in complete(self.llm._generation_job([completion])):  # noqa: SLF001
            pass


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of memory that the poison causes."""
    import warnings  # noqa: PLC0415

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def soak(llm: MaraLLM, prompts: list[str], requests: int, seconds: float, threads: int, seed: int, title: str) -> Table:
    """Runs a soak.

    Args:
        llm: The LLM.
        prompts: Prompts to choose from.
        requests: Number of calls.
        seconds: Time over which they arrive.
        threads: Threads that call.
        seed: Seed of the plan.
        title: Title of the table.

    Returns:
        Outcomes by kind of call, and what is left when all calls have ended.
    """
    work = Soak(llm, prompts)
    seconds_taken, held = 0.0, []
    # Two rounds, so that what the first one builds up for good does not count.
    for i in range(2):
        with quiet():
            seconds_taken += work.run(plan(prompts, requests // 2, seconds / 2, seed + i), threads)
        held.append(Held.now(llm))
    faults = sum(count for name, count in work.outcomes.items() if "lost" in name or "changed" in name)
    before, after = held
    tensors, blocks = ((now - then) * 2 / requests for then, now in zip(before[-2:], after[-2:], strict=True))
    rows = {
        "seconds": f"{seconds_taken:.0f}",
        **{name: str(count) for name, count in sorted(work.outcomes.items())},
        "good calls lost or changed": str(faults),
        "decoding threads that remain": str(after.threads),
        "requests, sequences and completions that remain": str(after.requests),
        "bytes of tensors more after the second half, per call": f"{tensors:.1f}",
        "blocks of Python more, per call": f"{blocks:.1f}",
    }
    table = Table("measure", "value", title=title)
    for name, value in rows.items():
        table.add_row(name, value)
    return table


class Held(NamedTuple):
    """What the process holds while nothing runs.

    Attributes:
        threads: Number of decoding threads.
        requests: Number of requests, sequences and completions.
        tensors: Bytes of all tensors.
        blocks: Blocks that Python has allocated.
    """

    threads: int
    requests: int
    tensors: int
    blocks: int

    @classmethod
    def now(cls, llm: MaraLLM) -> "Held":
        """What is held when the decoding thread has ended and kept prefixes are forgotten."""
        end = time.monotonic() + _REPORT_SECONDS
        while time.monotonic() < end and any(thread.name == "mara-decoding" for thread in threading.enumerate()):
            time.sleep(0.01)
        if (kept := LoadedModel.of(llm.model).prefix_cache(1)) is not None:
            kept.clear()
        gc.collect()
        threads = sum(thread.name == "mara-decoding" for thread in threading.enumerate())
        items = gc.get_objects()
        requests = sum(type(item) in (Request, SequenceState, Completion) for item in items)
        tensors = sum(item.nbytes for item in items if isinstance(item, Tensor))
        del items
        return cls(threads, requests, tensors, sys.getallocatedblocks())
