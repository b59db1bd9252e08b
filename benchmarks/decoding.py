"""Tokens/s, passes per token and peak memory of aligned decoding, against its two yardsticks.

    generate   plain `model.generate(do_sample=False)`, the batch left-padded
    reference  one forward pass per candidate examined, batch 1, every layer's states kept: the
               reference implementation's loop (ALGORITHM.md section 3) on a cache that is rolled back
    engine     this library, `width` siblings (0: chosen by measuring) and `draft` drafted tokens per pass,
               continuous batching; its linear layers packed, as models loaded by name are on the CPU
    no agent   this library without agent
    compiled   each of this library's, its passes over siblings compiled (`--compile`)

The yardsticks run the model as transformers loads it, and `generate` the packed one, too.

All systems answer the same prompts of unequal length in one process, interleaved, so that a noisy
machine is noisy for all; ratios are formed within a repeat and their medians reported.

    python benchmarks/decoding.py --batch 1 --batch 8 --accept 50 --accept 90
    python benchmarks/decoding.py --copying --batch 1 --accept 90 --width 1 --draft 0 --draft 8
"""

import copy
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import torch
import typer
from memory import measured
from rich.progress import track
from rich.table import Table
from tables import Output, console, publish
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from langchain_mara.agents.agent import MaraAgent
from langchain_mara.decoding.candidates import candidate_sets
from langchain_mara.decoding.loop import decode
from langchain_mara.decoding.request import Request
from langchain_mara.options import BATCH_DEFAULTS, DecodingOptions
from langchain_mara.policy.model import PolicyModel
from langchain_mara.policy.packed_linear import pack

SHAPE_135M: dict[str, Any] = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
_REFERENCE_PROMPTS = 4

Run = Callable[[], int]


@dataclass
class Measured:
    """One system's figures over the repeats."""

    system: str
    tokens_per_second: list[float]
    passes_per_token: float = 0.0
    peak_bytes: int = 0


class PassCounter:
    """Counts forward passes: those of the engine and, through the whole model, those of its yardsticks."""

    def __init__(self, models: list[PreTrainedModel], policies: list[PolicyModel]) -> None:
        self._policies = policies
        self._calls = 0
        for model in {id(model): model for model in models}.values():
            model.register_forward_pre_hook(self._count)

    def _count(self, *_: object) -> None:
        self._calls += 1

    @property
    def passes(self) -> int:
        """Passes so far."""
        return self._calls + sum(policy.passes for policy in self._policies)


def load(model_id: str | None, device: str, dtype: torch.dtype) -> PreTrainedModel:
    """The model by name with its weights; a random one of the 135 M shape for `135m` or no name."""
    if model_id not in (None, "135m"):
        return placed(AutoModelForCausalLM.from_pretrained(model_id), device, dtype)
    torch.manual_seed(0)
    return placed(LlamaForCausalLM(LlamaConfig(**SHAPE_135M)), device, dtype)


def placed(model: PreTrainedModel, device: str, dtype: torch.dtype) -> PreTrainedModel:
    """The model itself, on a device, in a dtype, and in eval mode."""
    torch.nn.Module.to(model, device, dtype)
    model.eval()
    return model


def packed_twin(model: PreTrainedModel) -> PreTrainedModel:
    """A copy with packed linear layers; the model itself where there is nothing to pack."""
    if model.device.type != "cpu":
        return model
    twin = copy.deepcopy(model)
    return twin if pack(twin) else model


def copying_model(device: str, dtype: torch.dtype) -> PreTrainedModel:
    """A model of the 135 M shape, at its full cost, that copies its prompt.

    Attention and feed-forward layers compute and add nothing, and the head knows for every token what follows it
    in one long cycle. Where the agent rejects that token, the one behind it is next: an edit.
    """
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**SHAPE_135M, "tie_word_embeddings": False}))
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            torch.nn.init.zeros_(parameter)
    weights = model.model.embed_tokens.weight
    embeddings = torch.nn.functional.normalize(weights.data)
    weights.data = embeddings
    model.lm_head.weight.data = 0.5 * embeddings.roll(1, 0) + 0.41 * embeddings.roll(2, 0)
    return placed(model, device, dtype)


def repeating_prompts(batch: int, length: int, vocabulary: int) -> list[list[int]]:
    """Prompts that end where their repetition begins, of the lengths of `make_prompts`."""
    starts = [prompt[0] % (vocabulary // 2) for prompt in make_prompts(batch, length, vocabulary)]
    lengths = map(len, make_prompts(batch, length, vocabulary))
    return [[*range(start, start + n), start] for start, n in zip(starts, lengths, strict=True)]


def make_prompts(batch: int, length: int, vocabulary: int) -> list[list[int]]:
    """Prompts of unequal length, from a half to one and a half times `length` tokens."""
    generator = torch.Generator().manual_seed(batch)
    lengths = torch.linspace(0.5, 1.5, batch) * length if batch > 1 else torch.tensor([float(length)])
    return [torch.randint(5, vocabulary, (max(1, int(n)),), generator=generator).tolist() for n in lengths]


class CoinAgent(MaraAgent):
    """PassCosts what an agent costs, and accepts a fixed share of states whatever the context.

    A random network's verdicts hang on the context more than on the candidate: some rows would never
    accept anything. A hash of the state decides instead; accept probabilities are uniform in [0, 1).
    """

    def accept_probability(self, states: Tensor, accept_action: int = 1) -> Tensor:
        """(...,) float32: the network is run, and its answer replaced."""
        network = super().accept_probability(states, accept_action)
        return (states.float().sum(-1) * 1e3 + 0 * network).remainder(1.0)


@torch.inference_mode()
def reference_loop(model: PreTrainedModel, agent: MaraAgent, prompt: list[int], options: DecodingOptions) -> int:
    """The reference's loop: batch 1, a pass for every candidate examined; returns the tokens emitted."""
    cache = DynamicCache(config=model.config)
    ids = torch.tensor([prompt], device=model.device)
    logits = model(ids, past_key_values=cache, use_cache=True, output_hidden_states=True).logits[:, -1]
    for _ in range(options.max_new_tokens):
        sets = candidate_sets(logits, options.top_k, options.top_p)
        first: tuple[Tensor, list[tuple[Tensor, Tensor]]] | None = None
        for i in range(int(sets.counts[0])):
            token = sets.token_ids[:, i : i + 1]
            output = model(token, past_key_values=cache, use_cache=True, output_hidden_states=True)
            accept = agent.accept_probability(output.hidden_states[-1][:, -1]).item()
            if accept > options.accept_threshold:
                logits = output.logits[:, -1]
                break
            # The reference keeps the first candidate's cache for the fallback; so does this.
            if first is None:
                first = output.logits[:, -1], [last_token(layer) for layer in cache.layers]
            cache.crop(-1)
        else:
            if first is None:
                raise RuntimeError("A position had no candidates.")
            logits, last = first
            for i, (keys, values) in enumerate(last):
                cache.update(keys, values, i)
    return options.max_new_tokens


def last_token(layer: Any) -> tuple[Tensor, Tensor]:
    """Keys and values of the last token in a layer of a cache."""
    return layer.keys[..., -1:, :], layer.values[..., -1:, :]


def run_generate(model: PreTrainedModel, prompts: list[list[int]], new_tokens: int) -> int:
    """Plain generate on the left-padded batch; returns the tokens emitted."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    model.generate(  # type: ignore[operator]
        ids,
        attention_mask=mask.to(model.device),
        do_sample=False,
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        pad_token_id=0,
    )
    return new_tokens * len(prompts)


def run_engine(
    policy: PolicyModel,
    agent: MaraAgent | None,
    prompts: list[list[int]],
    options: DecodingOptions,
    width: int | None,
    draft: int,
) -> int:
    """This library; returns the tokens emitted."""
    requests = [Request(prompt, options, agent) for prompt in prompts]
    return sum(1 for _ in decode(policy, requests, batch_size=len(prompts), width=width, draft=draft))


def measure(systems: dict[str, Run], counter: PassCounter, repeats: int, device: str) -> list[Measured]:
    """Runs every system once unmeasured, then `repeats` times, interleaved."""
    found = {name: Measured(name, []) for name in systems}
    for repeat in range(repeats + 1):
        for name, run in systems.items():
            passes = counter.passes
            tokens, seconds, peak = measured(run, device)
            if repeat:
                found[name].tokens_per_second.append(tokens / seconds)
            found[name].passes_per_token = (counter.passes - passes) / tokens
            found[name].peak_bytes = max(found[name].peak_bytes, peak)
    return list(found.values())


def ratio(one: Measured, other: Measured) -> float:
    """Median over repeats of the ratio of tokens/s."""
    pairs = zip(one.tokens_per_second, other.tokens_per_second, strict=True)
    return statistics.median(a / b for a, b in pairs)


def systems(
    model: PreTrainedModel,
    policies: list[PolicyModel],
    agent: MaraAgent,
    prompts: list[list[int]],
    options: DecodingOptions,
    widths: list[int],
    drafts: list[int],
) -> dict[str, Run]:
    """What is compared, by name; the two yardsticks come first."""

    def reference() -> int:
        return sum(reference_loop(model, agent, one, options) for one in prompts[:_REFERENCE_PROMPTS])

    def engine(policy: PolicyModel, agent: MaraAgent | None, width: int, draft: int) -> Run:
        return lambda: run_engine(policy, agent, prompts, options, width or None, draft)

    def name(policy: PolicyModel, what: str, draft: int) -> str:
        engine = "compiled" if policy.compile else "engine"
        return f"{engine}, {what}, draft {draft}" if draft else f"{engine}, {what}"

    found: dict[str, Run] = {
        "generate": lambda: run_generate(model, prompts, options.max_new_tokens),
        "reference": reference,
    }
    if policies[0].model is not model:
        found["generate, packed"] = lambda: run_generate(policies[0].model, prompts, options.max_new_tokens)
    for policy in policies:
        kinds = [(f"width {width or 'chosen'}", agent, width) for width in widths] + [("no agent", None, 1)]
        found |= {
            name(policy, what, draft): engine(policy, who, width, draft)
            for what, who, width in kinds
            for draft in drafts
        }
    return found


def main(
    model: Annotated[str | None, typer.Option(help="Hub id or folder; a random 135 M shape if not given.")] = None,
    device: Annotated[str, typer.Option()] = "cuda" if torch.cuda.is_available() else "cpu",
    dtype: Annotated[str, typer.Option()] = "float32",
    batch: Annotated[list[int], typer.Option(help="Prompts at a time; repeatable.")] = [1, 8, 32],  # noqa: B006
    accept: Annotated[list[int], typer.Option(help="Percent accepted; repeatable.")] = [50, 70, 90],  # noqa: B006
    width: Annotated[list[int], typer.Option(help="Siblings per pass, 0 chooses; repeatable.")] = [0],  # noqa: B006
    draft: Annotated[list[int], typer.Option(help="Drafted tokens per pass; repeatable.")] = [BATCH_DEFAULTS.draft],  # noqa: B006
    packed: Annotated[bool, typer.Option(help="Whether the engine's linear layers are packed, on the CPU.")] = True,
    compile: Annotated[bool, typer.Option("--compile", help="Also with compiled passes; none is packed then.")] = False,  # noqa: A002
    copying: Annotated[bool, typer.Option(help="A model of the same shape that repeats its prompt.")] = False,
    prompt_tokens: Annotated[int, typer.Option()] = 64,
    new_tokens: Annotated[int, typer.Option()] = 24,
    repeats: Annotated[int, typer.Option()] = 3,
    output: Output = None,
) -> None:
    """Prints one table of ratios per batch size and accept share."""
    torch.set_flush_denormal(True)
    kind = getattr(torch, dtype)
    plain = copying_model(device, kind) if copying else load(model, device, kind)
    policy = PolicyModel(packed_twin(plain) if packed and not compile else plain)
    policies = [policy, *([PolicyModel(policy.model, compile=True)] if compile else [])]
    agent = CoinAgent(policy.hidden_size).to(policy.device).eval()
    counter = PassCounter([plain, policy.model], policies)
    cases = [(size, share) for size in batch for share in accept]
    for size, share in track(cases, console=console, transient=True):
        make = repeating_prompts if copying else make_prompts
        prompts = make(size, prompt_tokens, policy.vocabulary_size)
        options = DecodingOptions(max_new_tokens=new_tokens, accept_threshold=1 - share / 100)
        measured = measure(systems(plain, policies, agent, prompts, options, width, draft), counter, repeats, device)
        title = f"batch {size}, {share} % of states accepted, {device}, {dtype}"
        publish(_table(title, measured), output, [asdict(one) for one in measured])


def _table(title: str, measured: list[Measured]) -> Table:
    table = Table(
        "system",
        "tokens/s",
        "of generate",
        "of reference",
        "passes/token",
        "peak MiB over start",
        title=title,
    )
    generate, reference = measured[0], measured[1]
    for one in measured:
        table.add_row(
            one.system,
            f"{statistics.median(one.tokens_per_second):.1f}",
            f"{ratio(one, generate):.2f}",
            f"{ratio(one, reference):.2f}",
            f"{one.passes_per_token:.3f}",
            f"{one.peak_bytes / 2**20:.0f}",
        )
    return table


if __name__ == "__main__":
    typer.run(main)
