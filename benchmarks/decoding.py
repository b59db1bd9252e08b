"""Tokens/s, passes per token and peak memory of aligned decoding, against two yardsticks.

    generate   plain `model.generate(do_sample=False)` on the left-padded batch
    reference  the reference implementation's loop: batch 1, one pass for each examined candidate, all layers' states
               returned, on a cache that is rolled back
    engine     this library with continuous batching, `width` siblings (0: tuned by measuring) and `draft` drafted
               tokens per pass; on the CPU its linear layers are packed, as in models loaded by name
    no agent   this library without an agent
    compiled   this library with compiled passes over siblings (`--compile`)

The yardsticks run the model as transformers loads it; `generate` also runs the packed model.

All systems answer the same prompts of unequal length in one process, interleaved, so that noise on the machine affects
all of them. Ratios are computed within each repeat; their medians are reported.

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
    """Figures of one system.

    Attributes:
        system: Name of the system.
        tokens_per_second: Speed in each repeat.
        passes_per_token: Passes per emitted token.
        peak_bytes: Largest memory above what was in use at the start.
    """

    system: str
    tokens_per_second: list[float]
    passes_per_token: float = 0.0
    peak_bytes: int = 0


class PassCounter:
    """Counts passes: those of policy models, and those of whole models, which the yardsticks call.

    Args:
        models: Models of the yardsticks.
        policies: Policy models of the engine.
    """

    def __init__(self, models: list[PreTrainedModel], policies: list[PolicyModel]) -> None:
        self._policies = policies
        self._calls = 0
        for model in {id(model): model for model in models}.values():
            model.register_forward_pre_hook(self._count)

    def _count(self, *_: object) -> None:
        self._calls += 1

    @property
    def passes(self) -> int:
        """Number of passes so far."""
        return self._calls + sum(policy.passes for policy in self._policies)


def load(model_id: str | None, device: str, dtype: torch.dtype) -> PreTrainedModel:
    """Loads a model by name; for `135m` or None, makes a random model with the 135 M shape."""
    if model_id not in (None, "135m"):
        return placed(AutoModelForCausalLM.from_pretrained(model_id), device, dtype)
    torch.manual_seed(0)
    return placed(LlamaForCausalLM(LlamaConfig(**SHAPE_135M)), device, dtype)


def placed(model: PreTrainedModel, device: str, dtype: torch.dtype) -> PreTrainedModel:
    """Moves a model to a device and dtype, sets it to eval mode, and returns it."""
    torch.nn.Module.to(model, device, dtype)
    model.eval()
    return model


def packed_twin(model: PreTrainedModel) -> PreTrainedModel:
    """A copy with packed linear layers; the model itself if there is nothing to pack."""
    if model.device.type != "cpu":
        return model
    twin = copy.deepcopy(model)
    return twin if pack(twin) else model


def copying_model(device: str, dtype: torch.dtype) -> PreTrainedModel:
    """A model with the 135 M shape, and its full cost, that copies its prompt.

    Attention and feed-forward layers run but add nothing. The head predicts, for every token, its successor in one long
    cycle. Where the agent rejects that token, the token after it is next, which makes an edit.
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
    """Prompts with the lengths of `make_prompts` that end with the first token of their own repetition."""
    random_prompts = make_prompts(batch, length, vocabulary)
    starts = [(prompt[0] % (vocabulary // 2), len(prompt)) for prompt in random_prompts]
    return [[*range(start, start + count), start] for start, count in starts]


def make_prompts(batch: int, length: int, vocabulary: int) -> list[list[int]]:
    """Random prompts of unequal length, from half to one and a half times `length` tokens."""
    generator = torch.Generator().manual_seed(batch)
    lengths = torch.linspace(0.5, 1.5, batch) * length if batch > 1 else torch.tensor([float(length)])
    return [torch.randint(5, vocabulary, (max(1, int(count)),), generator=generator).tolist() for count in lengths]


class CoinAgent(MaraAgent):
    """Costs as much as an agent, and accepts a fixed share of states, whatever the context.

    A random network's decisions depend more on the context than on the candidate, so some rows would never accept
    anything. Here a hash of the state decides; accept probabilities are uniform in [0, 1).
    """

    def accept_probability(self, states: Tensor, accept_action: int = 1) -> Tensor:
        """Accept probabilities, (...,) float32. The network runs, and its result is replaced."""
        network = super().accept_probability(states, accept_action)
        return (states.float().sum(-1) * 1e3 + 0 * network).remainder(1.0)


@torch.inference_mode()
def reference_loop(model: PreTrainedModel, agent: MaraAgent, prompt: list[int], options: DecodingOptions) -> int:
    """The reference's loop: batch 1, one pass for each examined candidate. Returns the number of emitted tokens."""
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
            # Like the reference, keep the first candidate's cache for the fallback.
            if first is None:
                first = output.logits[:, -1], [last_token(layer) for layer in cache.layers]
            cache.crop(-1)
        else:
            if first is None:
                raise RuntimeError("A position has no candidates. Check the logits for NaN.")
            logits, last_tokens = first
            for i, (keys, values) in enumerate(last_tokens):
                cache.update(keys, values, i)
    return options.max_new_tokens


def last_token(layer: Any) -> tuple[Tensor, Tensor]:
    """Keys and values of the last token in a cache layer."""
    return layer.keys[..., -1:, :], layer.values[..., -1:, :]


def run_generate(model: PreTrainedModel, prompts: list[list[int]], new_tokens: int) -> int:
    """Plain `generate` on the left-padded batch. Returns the number of emitted tokens."""
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
    """This library's decode loop. Returns the number of emitted tokens."""
    requests = [Request(prompt, options, agent) for prompt in prompts]
    return sum(1 for _ in decode(policy, requests, batch_size=len(prompts), width=width, draft=draft))


def measure(systems: dict[str, Run], counter: PassCounter, repeats: int, device: str) -> list[Measured]:
    """Runs every system once as a warm-up, then `repeats` times, interleaved."""
    results = {name: Measured(name, []) for name in systems}
    for repeat in range(repeats + 1):
        for name, run in systems.items():
            passes_before = counter.passes
            tokens, seconds, peak = measured(run, device)
            if repeat:
                results[name].tokens_per_second.append(tokens / seconds)
            results[name].passes_per_token = (counter.passes - passes_before) / tokens
            results[name].peak_bytes = max(results[name].peak_bytes, peak)
    return list(results.values())


def ratio(system: Measured, yardstick: Measured) -> float:
    """Median over the repeats of the ratio of tokens/s."""
    pairs = zip(system.tokens_per_second, yardstick.tokens_per_second, strict=True)
    return statistics.median(speed / reference for speed, reference in pairs)


def systems(
    model: PreTrainedModel,
    policies: list[PolicyModel],
    agent: MaraAgent,
    prompts: list[list[int]],
    options: DecodingOptions,
    widths: list[int],
    drafts: list[int],
) -> dict[str, Run]:
    """The systems to compare, by name; the two yardsticks come first."""

    def reference() -> int:
        return sum(reference_loop(model, agent, prompt, options) for prompt in prompts[:_REFERENCE_PROMPTS])

    def engine(policy: PolicyModel, agent: MaraAgent | None, width: int, draft: int) -> Run:
        return lambda: run_engine(policy, agent, prompts, options, width or None, draft)

    def name(policy: PolicyModel, variant: str, draft: int) -> str:
        engine = "compiled" if policy.compile else "engine"
        return f"{engine}, {variant}, draft {draft}" if draft else f"{engine}, {variant}"

    runs: dict[str, Run] = {
        "generate": lambda: run_generate(model, prompts, options.max_new_tokens),
        "reference": reference,
    }
    if policies[0].model is not model:
        runs["generate, packed"] = lambda: run_generate(policies[0].model, prompts, options.max_new_tokens)
    for policy in policies:
        variants = [(f"width {width or 'chosen'}", agent, width) for width in widths] + [("no agent", None, 1)]
        runs |= {
            name(policy, variant, draft): engine(policy, variant_agent, width, draft)
            for variant, variant_agent, width in variants
            for draft in drafts
        }
    return runs


def main(
    model: Annotated[str | None, typer.Option(help="Hub id or folder; by default a random model, 135 M.")] = None,
    device: Annotated[str, typer.Option()] = "cuda" if torch.cuda.is_available() else "cpu",
    dtype: Annotated[str, typer.Option()] = "float32",
    batch: Annotated[list[int], typer.Option(help="Prompts per batch; repeatable.")] = [1, 8, 32],  # noqa: B006
    accept: Annotated[list[int], typer.Option(help="Percent accepted; repeatable.")] = [50, 70, 90],  # noqa: B006
    width: Annotated[list[int], typer.Option(help="Siblings per pass, 0 tunes; repeatable.")] = [0],  # noqa: B006
    draft: Annotated[list[int], typer.Option(help="Drafted tokens per pass; repeatable.")] = [BATCH_DEFAULTS.draft],  # noqa: B006
    packed: Annotated[bool, typer.Option(help="Pack the engine's linear layers, on the CPU.")] = True,
    compile: Annotated[bool, typer.Option("--compile", help="Add compiled passes; turns packing off.")] = False,  # noqa: A002
    copying: Annotated[bool, typer.Option(help="Use a model of the same shape that repeats its prompt.")] = False,
    prompt_tokens: Annotated[int, typer.Option()] = 64,
    new_tokens: Annotated[int, typer.Option()] = 24,
    repeats: Annotated[int, typer.Option()] = 3,
    output: Output = None,
) -> None:
    """Prints one table of ratios per batch size and accept share."""
    torch.set_flush_denormal(True)
    torch_dtype = getattr(torch, dtype)
    plain = copying_model(device, torch_dtype) if copying else load(model, device, torch_dtype)
    policy = PolicyModel(packed_twin(plain) if packed and not compile else plain)
    policies = [policy, *([PolicyModel(policy.model, compile=True)] if compile else [])]
    agent = CoinAgent(policy.hidden_size).to(policy.device).eval()
    counter = PassCounter([plain, policy.model], policies)
    cases = [(size, share) for size in batch for share in accept]
    for size, share in track(cases, console=console, transient=True):
        make = repeating_prompts if copying else make_prompts
        prompts = make(size, prompt_tokens, policy.vocabulary_size)
        options = DecodingOptions(max_new_tokens=new_tokens, accept_threshold=1 - share / 100)
        results = measure(systems(plain, policies, agent, prompts, options, width, draft), counter, repeats, device)
        title = f"batch {size}, {share} % of states accepted, {device}, {dtype}"
        publish(_table(title, results), output, [asdict(result) for result in results])


def _table(title: str, results: list[Measured]) -> Table:
    table = Table(
        "system",
        "tokens/s",
        "of generate",
        "of reference",
        "passes/token",
        "peak MiB over start",
        title=title,
    )
    generate, reference = results[0], results[1]
    for result in results:
        table.add_row(
            result.system,
            f"{statistics.median(result.tokens_per_second):.1f}",
            f"{ratio(result, generate):.2f}",
            f"{ratio(result, reference):.2f}",
            f"{result.passes_per_token:.3f}",
            f"{result.peak_bytes / 2**20:.0f}",
        )
    return table


if __name__ == "__main__":
    typer.run(main)
