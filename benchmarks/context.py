"""Time and memory for large vocabularies and long prompts.

    vocabulary  cutting candidate sets, and log-probabilities of candidates, against versions that copy all logits
    prompt      prefill, and decoding at the end of a long prompt, against plain forward passes with a cache

Repeats are interleaved in one process; medians are reported. Peaks do not include the weights and, for prefill, the
keys and values of the tokens.

    python benchmarks/context.py vocabulary --dtype float32 --dtype bfloat16
    python benchmarks/context.py prompt --tokens 2048 --tokens 32768
"""

import ctypes
import gc
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Annotated

import torch
import typer
from decoding import placed
from memory import measured
from rich.table import Table
from tables import Output, publish
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from langchain_mara.decoding.candidates import candidate_sets, log_probabilities
from langchain_mara.policy.model import PolicyModel

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

app = typer.Typer(add_completion=False)


@dataclass
class Measured:
    """Figures of one kind of work.

    Attributes:
        what: Name of the work.
        seconds: Duration of each repeat.
        peak_bytes: Largest memory above what was in use at the start.
    """

    what: str
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0

    @property
    def median(self) -> float:
        """Median duration in seconds."""
        return statistics.median(self.seconds)


def measure(figures: Measured, work: Callable[[], object], device: str) -> None:
    """Does the work once and adds its figures."""
    gc.collect()
    _return_free_memory()
    repeat = measured(work, device)
    figures.seconds.append(repeat.seconds)
    figures.peak_bytes = max(figures.peak_bytes, repeat.peak_bytes)


def _return_free_memory() -> None:
    # Otherwise memory freed earlier counts as in use, and hides what the work takes from it.
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def cut_with_copies(logits: Tensor, top_k: int = 40, top_p: float = 0.95) -> Tensor:
    """Sizes of candidate sets, cut in the straightforward way."""
    scores = torch.where(logits.isfinite(), logits, -torch.inf).float().topk(top_k).values
    shares = scores.softmax(-1)
    return (shares.cumsum(-1) - shares < top_p).sum(-1)


def log_probabilities_with_copies(logits: Tensor, token_ids: Tensor) -> Tensor:
    """Log-probabilities of tokens, computed in the straightforward way."""
    return logits.float().log_softmax(-1).gather(1, token_ids)


@app.command()
def vocabulary(
    size: Annotated[int, typer.Option(help="Size of the vocabulary.")] = 151_936,
    rows: Annotated[int, typer.Option()] = 32,
    dtype: Annotated[list[str], typer.Option(help="Repeatable.")] = ["float32", "bfloat16"],  # noqa: B006
    device: Annotated[str, typer.Option()] = DEVICE,
    repeats: Annotated[int, typer.Option()] = 9,
    output: Output = None,
) -> None:
    """Cuts candidate sets from large vocabularies."""
    for dtype_name in dtype:
        generator = torch.Generator(device).manual_seed(0)
        logits = torch.randn(rows, size, device=device, generator=generator).to(getattr(torch, dtype_name))
        token_ids = logits.topk(40).indices
        work: dict[str, Callable[[], object]] = {
            "sets, with copies": partial(cut_with_copies, logits),
            "sets": partial(candidate_sets, logits),
            "log-probabilities, with copies": partial(log_probabilities_with_copies, logits, token_ids),
            "log-probabilities": partial(log_probabilities, logits, token_ids),
        }
        results = {name: Measured(name) for name in work}
        for repeat in range(repeats + 1):
            for name, run in work.items():
                measure(results[name] if repeat else Measured(name), run, device)
        table = Table("what", "ms", "peak MiB", title=f"vocabulary {size}, {rows} rows, {dtype_name}, {device}")
        for figures in results.values():
            table.add_row(figures.what, f"{figures.median * 1e3:.1f}", f"{figures.peak_bytes / 2**20:.1f}")
        publish(table, output, [asdict(figures) for figures in results.values()])


def long_model(tokens: int, device: str, dtype: torch.dtype) -> PreTrainedModel:
    """A small random model with grouped heads and a long context."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=max(40_000, tokens + 1024),
    )
    return placed(LlamaForCausalLM(config), device, dtype)


class Plain:
    """Forward passes of the model with transformers' cache: the prompt in one pass, then token by token."""

    def __init__(self, model: PreTrainedModel, prompt: Tensor) -> None:
        self.model, self.prompt = model, prompt
        self.cache = DynamicCache(config=model.config)

    def prefill(self) -> None:
        """Computes the prompt."""
        self.model(self.prompt, past_key_values=self.cache, use_cache=True, logits_to_keep=1)

    def decode(self, tokens: int) -> None:
        """Computes further tokens, one per pass."""
        for _ in range(tokens):
            self.model(self.prompt[:, :1], past_key_values=self.cache, use_cache=True)


class Engine:
    """The policy model's passes, as in decoding: each examines siblings, and the first one is emitted."""

    def __init__(self, policy: PolicyModel, prompt: Tensor, width: int) -> None:
        self.policy, self.prompt, self.width = policy, prompt, width
        self.cache = policy.new_cache()

    def prefill(self) -> None:
        """Computes the prompt."""
        self.policy.logits(self.policy.prefill(self.cache, 0, self.prompt.tolist()))

    def decode(self, tokens: int) -> None:
        """Computes further tokens, one per pass."""
        length = self.prompt.shape[1]
        scratch = list(range(length, length + self.width))
        for position in range(length, length + tokens):
            span = max(scratch) + 1
            self.cache.reserve(1, span)
            states = self.policy.siblings(self.cache, self.prompt[:, : self.width], [scratch], [position], span)
            candidate_sets(self.policy.logits(states[:, 0]))
            self.cache.commit([(0, scratch[0], position)])
            scratch = [*scratch[1:], span]


@app.command()
@torch.inference_mode()
def prompt(
    tokens: Annotated[list[int], typer.Option(help="Tokens of the prompt; repeatable.")] = [2048, 8192],  # noqa: B006
    new_tokens: Annotated[int, typer.Option()] = 32,
    width: Annotated[int, typer.Option(help="Siblings per pass.")] = 4,
    device: Annotated[str, typer.Option()] = DEVICE,
    dtype: Annotated[str, typer.Option()] = "float32",
    repeats: Annotated[int, typer.Option()] = 3,
    output: Output = None,
) -> None:
    """Prefills long prompts and decodes after them."""
    torch.set_flush_denormal(True)
    for length in tokens:
        model = long_model(length + new_tokens, device, getattr(torch, dtype))
        policy = PolicyModel(model)
        ids = torch.randint(0, policy.vocabulary_size, (1, length), generator=torch.Generator().manual_seed(0))
        names = [f"{name} {phase}" for name in ("plain", "engine") for phase in ("prefill", "decode")]
        results = {name: Measured(name) for name in names}
        for _ in range(repeats):
            for name, system in (
                ("plain", Plain(model, ids.to(device))),
                ("engine", Engine(policy, ids.to(device), width)),
            ):
                measure(results[f"{name} prefill"], system.prefill, device)
                measure(results[f"{name} decode"], partial(system.decode, new_tokens), device)
        cache_bytes = _cache_bytes(model, length)
        for name in ("plain prefill", "engine prefill"):
            results[name].peak_bytes = max(0, results[name].peak_bytes - cache_bytes)
        title = f"prompt of {length} tokens, cache of {cache_bytes / 2**20:.1f} MiB, width {width}, {dtype}, {device}"
        table = _prompt_table(title, results, length, new_tokens, cache_bytes)
        publish(table, output, [asdict(figures) for figures in results.values()])


def _cache_bytes(model: PreTrainedModel, tokens: int) -> int:
    config = model.config
    size = torch.empty(0, dtype=model.dtype).element_size()
    return int(2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * size * tokens)


def _prompt_table(title: str, results: dict[str, Measured], length: int, new_tokens: int, cache_bytes: int) -> Table:
    table = Table("what", "tokens/s", "ms per token", "of plain", "peak MiB", "% of the cache", title=title)
    for name, figures in results.items():
        phase = name.split()[1]
        tokens = length if phase == "prefill" else new_tokens
        plain = results[f"plain {phase}"]
        pairs = zip(plain.seconds, figures.seconds, strict=True)
        ratio = statistics.median(plain_seconds / seconds for plain_seconds, seconds in pairs)
        table.add_row(
            name,
            f"{tokens / figures.median:.0f}",
            f"{figures.median / tokens * 1e3:.3f}",
            f"{ratio:.2f}",
            f"{figures.peak_bytes / 2**20:.1f}",
            f"{100 * figures.peak_bytes / cache_bytes:.0f}",
        )
    return table


if __name__ == "__main__":
    app()
