"""Where the time of decoding goes: the model's own matrices, the rest of the model, and what this library adds.

    matrices    linear layers of the model, its head included
    attention   the rest of the model: attention, norms, activations, rotary embeddings
    cache       writing keys and values, and what attention reads of them
    mask        what each token may see
    candidates  cutting candidate sets, the head excluded
    agents      accept probabilities
    rest        the rule, Python, copies to the host

Every stretch of time counts once, for the innermost of these. The last line compares with plain `generate` on the same
model, of which only the matrices are told apart. On CUDA the device is waited for at every change, which makes
everything slower: there the shares are of work, not of a run.

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
    (batch, "ask_agents", "agents"),
]


class Clock:
    """Gives every stretch of time to the innermost kind that is open."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._open = ["rest"]
        self._device = device
        self._since = time.perf_counter()

    def enter(self, kind: str) -> None:
        """Opens a kind inside the one that is open."""
        self.charge()
        self._open.append(kind)

    def leave(self) -> None:
        """Goes back to the kind around the one that is open."""
        self.charge()
        self._open.pop()

    def charge(self) -> None:
        """Gives the time since the last change to what is open."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self.seconds[self._open[-1]] += now - self._since
        self._since = now

    def around(self, kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its time charged to a kind."""

        def charged(*args: Any, **kwargs: Any) -> Any:
            self.enter(kind)
            try:
                return function(*args, **kwargs)
            finally:
                self.leave()

        return charged


@contextmanager
def charged(model: PolicyModel) -> Iterator[Clock]:
    """Charges all that happens inside to kinds."""
    clock = Clock(model.device)
    linear = [one for one in model.model.modules() if isinstance(one, (nn.Linear, PackedLinear))]
    with ExitStack() as stack:
        for module, kind in [(model.backbone, "attention"), *((one, "matrices") for one in linear)]:
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
    found: dict[str, list[float]] = defaultdict(list)
    for _ in range(repeats):
        with charged(model) as clock:
            run()
            clock.charge()
        for kind in _KINDS:
            found[kind].append(clock.seconds[kind])
        found["all"].append(sum(clock.seconds.values()))
    return found


def main(
    model: Annotated[str, typer.Option(help="`demo`, a hub id or folder, or `135m` for a random one.")] = "135m",
    device: Annotated[str, typer.Option()] = "cuda" if torch.cuda.is_available() else "cpu",
    dtype: Annotated[str, typer.Option()] = "float32",
    batch: Annotated[list[int], typer.Option(help="Prompts at a time; repeatable.")] = [1, 8, 32],  # noqa: B006
    accept: Annotated[int, typer.Option(help="Percent of states accepted.")] = 70,
    width: Annotated[int, typer.Option(help="Siblings per pass; 0 chooses.")] = 0,
    packed: bool = True,
    prompt_tokens: int = 64,
    new_tokens: int = 48,
    repeats: int = 5,
    output: Output = None,
) -> None:
    """Prints shares of time, medians of the repeats."""
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
        found = shares(engine, lambda: run_engine(engine, agent, prompts, options, width or None, 0), repeats)  # noqa: B023
        plain = shares(engine, lambda: run_generate(engine.model, prompts, new_tokens), repeats)  # noqa: B023
        columns.append((found, plain, new_tokens * size))
    for kind in _KINDS:
        report.add_row(kind, *(f"{_share(found, kind):.1f}" for found, _, _ in columns))
    report.add_row("ms a token", *(f"{1e3 * statistics.median(one['all']) / tokens:.2f}" for one, _, tokens in columns))
    report.add_row("matrices of generate", *(f"{_share(plain, 'matrices'):.1f}" for _, plain, _ in columns))
    report.add_row(
        "ms a token of generate", *(f"{1e3 * statistics.median(one['all']) / tokens:.2f}" for _, one, tokens in columns)
    )
    publish(report, output, [{"engine": found, "generate": plain} for found, plain, _ in columns])


def _share(found: dict[str, list[float]], kind: str) -> float:
    return 100 * statistics.median(one / whole for one, whole in zip(found[kind], found["all"], strict=True))


if __name__ == "__main__":
    typer.run(main)
