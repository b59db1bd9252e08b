"""Labeling preference pairs: speed compared with plain passes, and jobs killed at random moments.

    python benchmarks/labelling.py speed   tokens/s of PreferenceLabeler, files included, against passes alone
    python benchmarks/labelling.py kill    SIGKILL at random moments; are the shards equal to the byte?

There are two yardsticks, over the same tokens in batches of the same size: the whole model, with logits of every token,
and its backbone alone, which computes only states. Repeats are interleaved. Ratios are computed within each repeat;
their medians are reported.
"""

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from decoding import load
from killing import Job
from langchain_mara_training import PreferenceLabeler
from langchain_mara_training.demo.corpus import preference_pairs
from rich.progress import track
from rich.table import Table
from tables import Output, console, publish
from torch import Tensor

from langchain_mara import MaraLLM

app = typer.Typer(add_completion=False, help=__doc__, rich_markup_mode=None)
Device = Annotated[str, typer.Option(help="Device of the model.")]
Row = dict[str, Any]


@app.command()
def speed(
    pairs: Annotated[int, typer.Option(help="Pairs for the bundled model.")] = 768,
    long_pairs: Annotated[
        int, typer.Option(help="Pairs for the 135 M model, each with answers ten times as long.")
    ] = 4,
    repeats: int = 3,
    device: Device = "cpu",
    output: Output = None,
) -> None:
    """Tokens/s of labeling, and its speed as a share of that of passes over the same tokens."""
    demo = MaraLLM.demo(agent=None, device=device)
    random_model = load(None, device, torch.float32 if device == "cpu" else torch.bfloat16)
    large = MaraLLM(model=random_model, tokenizer=demo.tokenizer, use_chat_template=False)
    short = [asdict(pair) for pair in preference_pairs("train", 0, 24)]
    table = Table("model", "labeled", "tokens/s", "share of the whole model", "share of the backbone")
    measured = []
    for name, llm, rows in (("bundled", demo, short[:pairs]), ("135 M shape", large, _long(short, long_pairs))):
        for filtered in (True, False):
            tokens, seconds = _measured(llm, rows, repeats, filtered)
            table.add_row(name, "candidates" if filtered else "all tokens", *_shares(tokens, seconds))
            measured.append({"tokens": tokens, "seconds": seconds})
    table.title = f"Labeling on {device}"
    publish(table, output, measured)


def _measured(llm: MaraLLM, rows: Sequence[Row], repeats: int, filtered: bool) -> tuple[int, dict[str, list[float]]]:
    """Number of tokens in the rows, and the seconds of each system in each repeat."""
    labeler = PreferenceLabeler(llm, candidate_filter=filtered)
    sequences = sorted((ids for row in rows for ids in _sequences(llm, row)), key=len)
    batches = [_padded(batch, llm.model.device) for batch in _batches(sequences, labeler.batch_tokens)]
    tokens = sum(map(len, sequences))
    systems: dict[str, Callable[[], object]] = {
        "labeling": lambda: _label(labeler, rows),
        "whole": lambda: [llm.model(input_ids=batch, use_cache=False).logits[0, 0, 0].item() for batch in batches],
        "backbone": lambda: [
            llm.model.base_model(input_ids=batch, use_cache=False).last_hidden_state[0, 0, 0].item()
            for batch in batches
        ],
    }
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    for _ in track(range(repeats + 1), "measuring", console=console):
        for name, run in systems.items():
            start = time.perf_counter()
            with torch.inference_mode():
                run()
            seconds[name].append(time.perf_counter() - start)
    return tokens, {name: values[1:] for name, values in seconds.items()}  # the first repeat is a warm-up


def _shares(tokens: int, seconds: dict[str, list[float]]) -> list[str]:
    labeling = seconds["labeling"]
    ratios = [_median_ratio(seconds[name], labeling) for name in ("whole", "backbone")]
    return [f"{tokens / statistics.median(labeling):,.0f}", *(f"{ratio:.2f}" for ratio in ratios)]


def _median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


def _label(labeler: PreferenceLabeler, rows: Sequence[Row]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        labeler.label(rows, folder)


def _sequences(llm: MaraLLM, row: Row) -> list[list[int]]:
    prompt = llm.encode(row["prompt"])
    end = llm.tokenizer.eos_token_id
    answers = [llm.tokenizer(row[side], add_special_tokens=False).input_ids for side in ("chosen", "rejected")]
    return [[*prompt, *ids, end] for ids in answers]


def _batches(sequences: Sequence[list[int]], batch_tokens: int) -> list[list[list[int]]]:
    batches: list[list[list[int]]] = [[]]
    for ids in sequences:
        if batches[-1] and (len(batches[-1]) + 1) * len(ids) > batch_tokens:
            batches.append([])
        batches[-1].append(ids)
    return batches


def _padded(batch: Sequence[list[int]], device: torch.device) -> Tensor:
    longest = max(map(len, batch))
    return torch.tensor([ids + [0] * (longest - len(ids)) for ids in batch], device=device)


def _long(rows: Sequence[Row], count: int, answers: int = 10) -> list[Row]:
    """Pairs that each join the texts of several pairs."""
    joined = []
    for start in range(0, answers * count, answers):
        parts = rows[start : start + answers]
        joined.append({key: " ".join(row[key] for row in parts) for key in ("prompt", "chosen", "rejected")})
    return joined


@app.command()
def kill(times: int = 10, pairs_per_topic: int = 4, seed: int = 0, output: Output = None) -> None:
    """Kills labeling at random moments, starts it again, and compares the folder with that of an uninterrupted run."""
    generator = random.Random(seed)  # noqa: S311
    table = Table("after", "the first run was", "shards then", "folder equal to the byte")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        job = Job(Path(__file__), "label-job", str(pairs_per_topic))
        seconds = job.finish(folder / "whole")
        whole = _content(folder / "whole")
        for number in track(range(times), "killing", console=console):
            moment = generator.uniform(0, seconds)
            outcome = job.kill(folder / str(number), moment)
            done = len(_content(folder / str(number)))
            job.finish(folder / str(number))
            equal = _content(folder / str(number)) == whole
            table.add_row(f"{moment:.2f} s", outcome, f"{max(0, done - 1)} of {len(whole) - 1}", str(equal))
    table.title = f"{len(whole) - 1} shards, {seconds:.1f} s uninterrupted"
    publish(table, output)


@app.command(hidden=True)
def label_job(folder: Path, pairs_per_topic: int) -> None:
    """Job that `kill` starts and kills."""
    rows = [asdict(pair) for pair in preference_pairs("train", 0, pairs_per_topic)]
    labeler = PreferenceLabeler(MaraLLM.demo(agent=None, device="cpu"), shard_tokens=400)
    sys.stdout.write("started\n")
    sys.stdout.flush()
    labeler.label(rows, folder)


def _content(folder: Path) -> dict[str, bytes]:
    """Content of each finished file; files that a killed process was still writing end with `.tmp`."""
    files = folder.iterdir() if folder.is_dir() else ()
    return {file.name: file.read_bytes() for file in files if not file.name.endswith(".tmp")}


if __name__ == "__main__":
    torch.set_flush_denormal(True)
    app()
