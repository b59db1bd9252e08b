"""Where the time of decoding goes: the model's matrices, the rest of the model, and this library.

    matrices    linear layers of the model, its head included
    attention   the rest of the model: attention, norms, activations, rotary embeddings
    cache       writing keys and values, and gathering those that attention reads
    mask        computing what each token can see
    candidates  cutting candidate sets, without the head
    agents      accept probabilities
    rest        accept/reject rule, Python, copies to the host

Time counts for the innermost of these kinds. The last lines compare with plain `generate` on the same model, where only
the matrices are measured separately. On CUDA, every change of kind waits for the device. That slows down the run, so
the shares there are shares of the work and not of a normal run.

    python benchmarks/overheads.py --batch 1 --batch 8
"""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Annotated, Any
from unittest.mock import patch

import torch
import typer
from decoding import CoinAgent, load, make_prompts, packed_twin, run_engine, run_generate
from rich.table import Table
from tables import Output, publish
from torch import nn

from langchain_mara import MaraLLM
from langchain_mara.decoding import batch
from langchain_mara.decoding import candidate_table as table
from langchain_mara.options import DecodingOptions
from langchain_mara.policy import cache
from langchain_mara.policy import model as policy
from langchain_mara.policy.model import PolicyModel
from langchain_mara.policy.packed_linear import PackedLinear

_KINDS = ("matrices", "attention", "cache", "mask", "candidates", "agents", "rest")
_PLACES: list[tuple[Any, str, str]] = [
    (cache._RaggedLayer, "update", "cache"),  # noqa: SLF001
    (policy, "attention_mask", "mask"),
    (policy, "visible_keys", "mask"),
    (policy, "visible_in_pass", "mask"),
    (table.CandidateTable, "_cut", "candidates"),
    (batch, "ask_after", "agents"),
    (table, "judge_before", "agents"),
]


class Clock:
    """Charges time to the innermost kind that is open.

    Args:
        device: Device to wait for at every change.
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._open = ["rest"]
        self._device = device
        self._since = time.perf_counter()

    def enter(self, kind: str) -> None:
        """Opens a kind inside the current one."""
        self.charge()
        self._open.append(kind)

    def leave(self) -> None:
        """Closes the current kind and returns to the one around it."""
        self.charge()
        self._open.pop()

    def charge(self) -> None:
        """Charges the time since the last change to the current kind."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self.seconds[self._open[-1]] += now - self._since
        self._since = now

    def around(self, kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wraps a function so that its time is charged to a kind."""

        def charged(*args: Any, **kwargs: Any) -> Any:
            self.enter(kind)
            try:
                return function(*args, **kwargs)
            finally:
                self.leave()

        return charged


@contextmanager
def charged(model: PolicyModel) -> Iterator[Clock]:
    """Charges the time of everything inside the context to kinds."""
    clock = Clock(model.device)
    linear = [layer for layer in model.model.modules() if isinstance(layer, (nn.Linear, PackedLinear))]
    with ExitStack() as stack:
        for module, kind in [(model.backbone, "attention"), *((layer, "matrices") for layer in linear)]:
            for hook in (
                module.register_forward_pre_hook(lambda *_, kind=kind: clock.enter(kind)),
                module.register_forward_hook(lambda *_: clock.leave()),
            ):
                stack.callback(hook.remove)
        for owner, name, kind in _PLACES:
            stack.enter_context(patch.object(owner, name, clock.around(kind, getattr(owner, name))))
        yield clock


def shares(model: PolicyModel, run: Callable[[], int], repeats: int) -> dict[str, list[float]]:
    """Seconds of every kind, and of all together, in each repeat."""
    run()
    seconds: dict[str, list[float]] = defaultdict(list)
    for _ in range(repeats):
        with charged(model) as clock:
            run()
            clock.charge()
        for kind in _KINDS:
            seconds[kind].append(clock.seconds[kind])
        seconds["all"].append(sum(clock.seconds.values()))
    return seconds


def main(
    model: Annotated[str, typer.Option(help="`demo`, hub id, folder, or `135m` for a random model.")] = "135m",
    device: Annotated[str, typer.Option()] = "cuda" if torch.cuda.is_available() else "cpu",
    dtype: Annotated[str, typer.Option()] = "float32",
    batch: Annotated[list[int], typer.Option(help="Prompts per batch; repeatable.")] = [1, 8, 32],  # noqa: B006
    accept: Annotated[int, typer.Option(help="Percent of states accepted.")] = 70,
    width: Annotated[int, typer.Option(help="Siblings per pass; 0 tunes it.")] = 0,
    packed: bool = True,
    prompt_tokens: int = 64,
    new_tokens: int = 48,
    repeats: int = 5,
    output: Output = None,
) -> None:
    """Prints the share of time of each kind, as medians of the repeats."""
    torch.set_flush_denormal(True)
    if model == "demo":
        loaded = MaraLLM.demo(device=device, packed=False).model
    else:
        loaded = load(model, device, getattr(torch, dtype))
    engine = PolicyModel(packed_twin(loaded) if packed else loaded)
    agent = CoinAgent(engine.hidden_size).to(engine.device).eval()
    options = DecodingOptions(max_new_tokens=new_tokens, accept_threshold=1 - accept / 100)
    report = Table("", *(f"batch {size}" for size in batch), title=f"% of time, {model}, {device}, {dtype}")
    columns = []
    for size in batch:
        prompts = make_prompts(size, prompt_tokens, engine.vocabulary_size)
        aligned = shares(engine, lambda: run_engine(engine, agent, prompts, options, width or None, 0), repeats)  # noqa: B023
        plain = shares(engine, lambda: run_generate(engine.model, prompts, new_tokens), repeats)  # noqa: B023
        columns.append((aligned, plain, new_tokens * size))
    for kind in _KINDS:
        report.add_row(kind, *(f"{_share(aligned, kind):.1f}" for aligned, _, _ in columns))
    report.add_row("ms per token", *(_milliseconds(aligned, tokens) for aligned, _, tokens in columns))
    report.add_row("matrices of generate", *(f"{_share(plain, 'matrices'):.1f}" for _, plain, _ in columns))
    report.add_row("ms per token of generate", *(_milliseconds(plain, tokens) for _, plain, tokens in columns))
    publish(report, output, [{"engine": aligned, "generate": plain} for aligned, plain, _ in columns])


def _share(seconds: dict[str, list[float]], kind: str) -> float:
    """Median percentage of the time that a kind takes."""
    return 100 * statistics.median(part / whole for part, whole in zip(seconds[kind], seconds["all"], strict=True))


def _milliseconds(seconds: dict[str, list[float]], tokens: int) -> str:
    return f"{1e3 * statistics.median(seconds['all']) / tokens:.2f}"


if __name__ == "__main__":
    typer.run(main)
