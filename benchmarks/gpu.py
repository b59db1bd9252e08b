"""One GPU in eight minutes: plain decoding, both kinds of agents, compiled passes, vLLM, labeling and reinforcement.

    python benchmarks/gpu.py --output benchmarks/results/gpu.jsonl   all parts on the GPU; nothing without one
    python benchmarks/gpu.py --device cpu --part tiny                a rehearsal; vLLM takes a tiny model there, too

Each part runs in a process of its own, with a time limit. What it measured until it failed or was stopped is kept, and
the others go on; time that a part leaves unused goes to the next one. Random weights have the shapes of Llama 3; in
bfloat16. `SmolLM2` comes from the package index.

    over limit   time of a token of every sequence, over the time in which the weights are read at the bandwidth that
                 copying on the device reaches
    of generate  tokens/s over those of plain `model.generate` with as many sequences
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from decoding import CoinAgent, Run, load, make_prompts, run_engine, run_generate
from memory import measured
from rich.table import Table
from tables import Output, console, publish, read
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from langchain_mara.agents.look_ahead import LookAheadAgent
from langchain_mara.options import DecodingOptions
from langchain_mara.policy.model import PolicyModel

_LLAMA_3: dict[str, Any] = {
    "vocab_size": 128256,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
}
SHAPES: dict[str, dict[str, Any]] = {
    "1B": {**_LLAMA_3, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16},
    "3B": {**_LLAMA_3, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28},
    "8B": {**_LLAMA_3, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
    # Heads of 32, which is the smallest that vLLM knows on a CPU.
    "tiny": {
        **_LLAMA_3,
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    },
}
SHAPES["3B"]["num_attention_heads"] = 24
SHAPES["8B"]["tie_word_embeddings"] = False
_SHARE = 0.7  # of states that the state agent accepts
_COMPILED_WIDTH = 4  # siblings of a compiled pass; each width is compiled by itself
_PROMPT_TOKENS = 64
_REPEATS = 2
_PLUGIN = "langchain_mara.serving.vllm_plugin.processor:MaraLogitsProcessor"


class Settings(NamedTuple):
    """What all parts have in common.

    Attributes:
        device: Where to measure.
        new_tokens: Tokens of an answer.
        batch: Numbers of sequences.
        compile: Whether compiled passes are measured, and vLLM compiles its own.
        output: File of the tables.
    """

    device: str
    new_tokens: int
    batch: list[int]
    compile: bool
    output: Path | None


class Part(NamedTuple):
    """A part of the benchmark.

    Attributes:
        seconds: Its share of the time.
        run: Measures and publishes.
    """

    seconds: float
    run: Callable[[Settings], None]


def copy_bandwidth(device: str) -> float:
    """Bytes per second that copying on a device reads and writes; the best of five."""
    source = torch.empty(2**30 if device.startswith("cuda") else 2**26, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = min(measured(lambda: target.copy_(source), device).seconds for _ in range(6))
    return 2 * source.numel() / seconds


def random_model(shape: str, device: str) -> PreTrainedModel:
    """A model of a shape with random weights in bfloat16, made on the device."""
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPES[shape], dtype="bfloat16")
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model: PreTrainedModel = LlamaForCausalLM(config).eval()
            return model
    finally:
        torch.set_default_dtype(before)


def smollm2(device: str) -> PreTrainedModel:
    """SmolLM2-135M-Instruct in bfloat16."""
    from langchain_mara_training.demo.smollm2.model import smollm2_folder  # noqa: PLC0415 - only here

    return load(str(smollm2_folder(say=console.print)), device, torch.bfloat16)


def decoding(make: Callable[[str], PreTrainedModel], name: str, settings: Settings) -> None:
    """Decodes with and without agents, by several numbers of sequences, uncompiled and then compiled."""
    model = make(settings.device)
    weights = {weight.data_ptr(): weight for weight in model.parameters()}
    limit = sum(weight.nbytes for weight in weights.values()) / copy_bandwidth(settings.device)
    generated: dict[int, float] = {}
    for compiled in (False, True)[: 1 + settings.compile]:
        policy = PolicyModel(model, compile=compiled)
        for sequences in settings.batch:
            prompts = make_prompts(sequences, _PROMPT_TOKENS, policy.vocabulary_size)
            options = DecodingOptions(
                max_new_tokens=settings.new_tokens, min_new_tokens=settings.new_tokens, accept_threshold=1 - _SHARE
            )
            title = f"{name}, {sequences} sequences{', compiled' if compiled else ''}, {settings.device}, bfloat16"
            table = Table("system", "tokens/s", "ms per token of all", "over limit", "of generate", title=title)
            figures = {}
            for system, run in _systems(policy, prompts, options).items():
                figures[system] = speeds = _speeds(run, settings.device)
                speed = max(speeds)
                generated.setdefault(sequences, speed)  # the first system is generate
                seconds = sequences / speed
                over = f"{seconds / limit:.2f}", f"{speed / generated[sequences]:.2f}"
                table.add_row(system, f"{speed:.1f}", f"{seconds * 1e3:.2f}", *over)
            publish(table, settings.output, {"tokens_per_second": figures, "limit_seconds": limit})


def _systems(policy: PolicyModel, prompts: list[list[int]], options: DecodingOptions) -> dict[str, Run]:
    model = policy.model
    ahead = LookAheadAgent(policy.hidden_size).eval().to(policy.device)
    coin = CoinAgent(policy.hidden_size).eval().to(policy.device)
    width = _COMPILED_WIDTH if policy.compile else None
    engine: dict[str, Run] = {
        "no agent": lambda: run_engine(policy, None, prompts, options, 1, 0),
        "look-ahead agent": lambda: run_engine(policy, ahead, prompts, options, 1, 0),  # type: ignore[arg-type]
        f"state agent, {_SHARE:.0%}": lambda: run_engine(policy, coin, prompts, options, width, 0),
    }
    plain: dict[str, Run] = {"generate": lambda: run_generate(model, prompts, options.max_new_tokens)}
    return engine if policy.compile else plain | engine


def _speeds(run: Run, device: str) -> list[float]:
    """Tokens per second of some runs after a warm-up, which compiles."""
    run()
    results = [measured(run, device) for _ in range(_REPEATS)]
    return [result.result / result.seconds for result in results]


def training(settings: Settings) -> None:
    """Labels and plays episodes on the bundled model and the 135 M shape."""
    import labelling  # noqa: PLC0415 - the environment of vLLM need not have what training needs
    import reinforcement  # noqa: PLC0415

    labelling.speed(pairs=64, long_pairs=4, repeats=1, device=settings.device, output=settings.output)
    for shape in ("bundled", "135m")[: 1 if settings.device == "cpu" else 2]:
        reinforcement.steps(
            shape, parallel=16, new_tokens=8, looped=1, repeats=1, device=settings.device, output=settings.output
        )


def vllm(settings: Settings, *, aligned: bool) -> None:
    """Measures vLLM, alone or with the plugin, whose requests say whether they are aligned."""
    from vllm import LLM, SamplingParams  # noqa: PLC0415 - in an environment of its own

    on_gpu = settings.device.startswith("cuda")
    shape = "1B" if on_gpu else "tiny"
    with tempfile.TemporaryDirectory() as folder:
        model, agent = Path(folder, "model"), Path(folder, "agent")
        LlamaConfig(**SHAPES[shape], architectures=["LlamaForCausalLM"]).save_pretrained(model)
        LookAheadAgent(SHAPES[shape]["hidden_size"]).save_pretrained(agent)
        plugin = {"logits_processors": [_PLUGIN], "additional_config": {"mara": {"agent": str(agent)}}}
        llm = LLM(
            str(model),
            load_format="dummy",  # random weights, made where they are needed
            skip_tokenizer_init=True,
            dtype="bfloat16",
            max_model_len=1024,
            enforce_eager=not settings.compile,
            **({"gpu_memory_utilization": 0.8} if on_gpu else {"kv_cache_memory_bytes": 2**26}),
            **(plugin if aligned else {}),
        )
        asked = {"plain": {"mara": 0}, "look-ahead agent": {"mara": 1}} if aligned else {"vLLM alone": None}
        for sequences in settings.batch:
            prompts = make_prompts(sequences, _PROMPT_TOKENS, SHAPES[shape]["vocab_size"])
            table = Table("system", "tokens/s", title=f"vLLM, {shape}, {sequences} sequences, {settings.device}")
            for name, extra_args in asked.items():
                sampling = SamplingParams(
                    temperature=0.0,
                    max_tokens=settings.new_tokens,
                    ignore_eos=True,
                    detokenize=False,
                    extra_args=extra_args,
                )
                speeds = _speeds(partial(_answered, llm, prompts, sampling), settings.device)
                table.add_row(name, f"{max(speeds):.1f}")
            publish(table, settings.output)


def _answered(llm: Any, prompts: list[list[int]], sampling: Any) -> int:
    """Number of tokens that vLLM has answered."""
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], sampling, use_tqdm=False)
    return sum(len(output.outputs[0].token_ids) for output in outputs)


PARTS: dict[str, Part] = {
    "tiny": Part(60, lambda settings: decoding(lambda device: random_model("tiny", device), "tiny", settings)),
    "1B": Part(80, lambda settings: decoding(lambda device: random_model("1B", device), "1 B", settings)),
    "8B": Part(115, lambda settings: decoding(lambda device: random_model("8B", device), "8 B", settings)),
    "3B": Part(80, lambda settings: decoding(lambda device: random_model("3B", device), "3 B", settings)),
    "SmolLM2": Part(45, lambda settings: decoding(smollm2, "SmolLM2-135M", settings)),
    "training": Part(50, training),
    "vLLM": Part(50, lambda settings: vllm(settings, aligned=False)),
    "vLLM with the plugin": Part(50, lambda settings: vllm(settings, aligned=True)),
}
"""Parts by name; all but the first one are measured by default."""


class Outcome(NamedTuple):
    """How a part ended.

    Attributes:
        part: Its name.
        seconds: How long it took.
        outcome: `done`, or why not.
    """

    part: str
    seconds: float
    outcome: str


def run_parts(names: list[str], settings: Settings, seconds: float, vllm_python: str) -> Iterator[Outcome]:
    """Runs parts one after the other, each in a process of its own; copies the tables that they have written.

    Args:
        names: Names of the parts.
        settings: Settings.
        seconds: Time for all together.
        vllm_python: Interpreter for the parts about vLLM.
    """
    end, planned = time.monotonic() + seconds, sum(PARTS[name].seconds for name in names)
    for name in names:
        own = PARTS[name].seconds
        # What is left goes to the parts that are left by their shares.
        limit, planned = (end - time.monotonic()) * own / planned, planned - own
        with tempfile.TemporaryDirectory() as folder:
            file, start = Path(folder, "tables.jsonl"), time.monotonic()
            python = vllm_python if name.startswith("vLLM") else sys.executable
            outcome = _outcome(_command(python, name, settings._replace(output=file)), limit)
            for record in read(file) if file.exists() else ():
                table = Table(*record.columns, title=record.title)
                for row in record.rows:
                    table.add_row(*row)
                publish(table, settings.output, record.measured)
        yield Outcome(name, time.monotonic() - start, outcome)


def _command(python: str, name: str, settings: Settings) -> list[str]:
    batches = [word for size in settings.batch for word in ("--batch", str(size))]
    compiled = "--compile" if settings.compile else "--no-compile"
    options = ["--device", settings.device, "--new-tokens", str(settings.new_tokens), *batches, compiled]
    return [python, str(Path(__file__)), "--here", "--part", name, *options, "--output", str(settings.output)]


def _outcome(command: list[str], limit: float) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - this script
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            timeout=max(1.0, limit),
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"stopped after its {limit:.0f} seconds"
    except OSError as error:
        return f"failed: {error}"
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return "done" if done.returncode == 0 else f"failed: {lines[-1].strip() if lines else done.returncode}"


def main(
    device: Annotated[str | None, typer.Option(help="Where to measure; by default the GPU.")] = None,
    part: Annotated[list[str], typer.Option(help="Part; repeatable.")] = list(PARTS)[1:],
    batch: Annotated[list[int], typer.Option(help="Sequences at a time; repeatable.")] = [1, 8, 64],  # noqa: B006
    new_tokens: Annotated[int, typer.Option(help="Tokens of an answer.")] = 32,
    minutes: Annotated[float, typer.Option(help="Time for all parts.")] = 8.0,
    compile: Annotated[bool, typer.Option(help="Measure compiled passes, too.")] = True,  # noqa: A002
    vllm_python: Annotated[str, typer.Option(help="Interpreter that has vLLM.")] = sys.executable,
    here: Annotated[bool, typer.Option("--here", help="Run the parts in this process.", hidden=True)] = False,
    output: Output = None,
) -> None:
    """Measures all parts, and says of each how it ended."""
    if device is None and not torch.cuda.is_available():
        console.print("There is no GPU, so nothing was measured.")
        return
    settings = Settings(device or "cuda", new_tokens, batch, compile, output)
    if here:
        for name in part:
            PARTS[name].run(settings)
        return
    table = Table("part", "seconds", "outcome", title=f"Parts on {settings.device}")
    for outcome in run_parts(part, settings, minutes * 60, vllm_python):
        console.print(*outcome)
        table.add_row(outcome.part, f"{outcome.seconds:.0f}", outcome.outcome)
    publish(table, output)


if __name__ == "__main__":
    typer.run(main)
