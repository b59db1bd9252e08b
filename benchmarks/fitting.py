"""Fitting an agent: speed against scikit-learn, data larger than memory, jobs killed at random moments.

    python benchmarks/fitting.py speed    the same network fitted by MaraClassifier and by MLPClassifier
    python benchmarks/fitting.py memory   shards four times larger than the process's memory limit
    python benchmarks/fitting.py kill     SIGKILL at random moments; are the agents equal to the byte?

Repeats are interleaved. Ratios are computed within each repeat; their medians are reported.
"""

import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from killing import Job
from langchain_mara_training.fitting.classifier import MaraClassifier
from langchain_mara_training.labeling.shard_list import write_shard
from langchain_mara_training.labeling.token_labels import TokenLabels
from rich.progress import track
from rich.table import Table
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from tables import Output, console, publish

_MIB = 2**20
app = typer.Typer(add_completion=False, help=__doc__, rich_markup_mode=None)
Device = Annotated[str, typer.Option(help="Device of MaraClassifier.")]


@app.command()
def speed(
    rows: int = 200_000,
    hidden_size: int = 576,
    width: int = 1024,
    batch_size: int = 512,
    epochs: int = 2,
    repeats: int = 3,
    device: Device = "cpu",
    output: Output = None,
) -> None:
    """Seconds to fit float32 states, against MLPClassifier with the same layers, batches, epochs and Adam."""
    warnings.simplefilter("ignore", ConvergenceWarning)
    states, labels = _synthetic(rows, hidden_size)
    ours: dict[str, Any] = {"width": width, "weight_decay": 0.0, "schedule": "constant", "device": device}
    common: dict[str, Any] = {"batch_size": batch_size, "random_state": 0}
    makers: dict[str, Callable[[], Any]] = {
        "MLPClassifier": lambda: MLPClassifier((width, width // 4), alpha=0.0, tol=0.0, max_iter=epochs, **common),
        "MaraClassifier": lambda: MaraClassifier(max_epochs=epochs, **ours, **common),
        "MaraClassifier, bf16": lambda: MaraClassifier(max_epochs=epochs, mixed_precision="bf16", **ours, **common),
    }
    seconds: dict[str, list[float]] = {name: [] for name in makers}
    accuracy: dict[str, float] = {}
    for repeat in range(repeats + 1):
        used = slice(None) if repeat else slice(4 * batch_size)  # the first repeat is a warm-up
        for name, make in makers.items():
            start = time.perf_counter()
            fitted = make().fit(states[used], labels[used])
            seconds[name].append(time.perf_counter() - start)
            accuracy[name] = fitted.score(states[:8192], labels[:8192])
    title = f"Fitting ({rows}, {hidden_size}) float32 states, {epochs} epochs, on {device}"
    table = Table("", "seconds", "rows/s", "faster than MLPClassifier", "accuracy", title=title)
    for name, (_, *measured) in seconds.items():
        ratios = [slow / fast for slow, fast in zip(seconds["MLPClassifier"][1:], measured, strict=True)]
        median = statistics.median(measured)
        rate, ratio = f"{epochs * rows / median:,.0f}", f"{statistics.median(ratios):.2f}"
        table.add_row(name, f"{median:.2f}", rate, ratio, f"{accuracy[name]:.3f}")
    publish(table, output, seconds)


@app.command()
def memory(limit_mib: int = 1024, hidden_size: int = 4096, shard_mib: int = 128, epochs: int = 1) -> None:
    """Fits shards four times larger than the limit on the process's private memory, and prints its peak."""
    with tempfile.TemporaryDirectory() as folder:
        shards = 4 * limit_mib // shard_mib
        for number in track(range(shards), "writing shards", console=console):
            _write_shard(Path(folder), number, shard_mib * _MIB // (2 * hidden_size), hidden_size)
        arguments = [sys.executable, __file__, "limited", folder, str(limit_mib), str(epochs)]
        subprocess.run(arguments, check=True)  # noqa: S603


@app.command(hidden=True)
def limited(folder: Path, limit_mib: int, epochs: int) -> None:
    """Job that `memory` starts: it fits under the limit, then shows that loading all states exceeds the limit."""
    labels = TokenLabels.load(folder)
    before = _private_mib()
    resource.setrlimit(resource.RLIMIT_DATA, (limit_mib * _MIB, limit_mib * _MIB))
    start = time.perf_counter()
    classifier = MaraClassifier(max_epochs=epochs, width=256, random_state=0, device="cpu").fit(*labels)
    seconds = time.perf_counter() - start
    size = labels.X.shape[0] * labels.X.shape[1] * 2 / _MIB
    table = Table("measure", "value", title=f"{size:,.0f} MiB of states under a limit of {limit_mib} MiB")
    table.add_row("rows/s", f"{epochs * len(labels) / seconds:,.0f}")
    table.add_row("last loss", f"{classifier.loss_curve_[-1]:.3f}")
    table.add_row("private MiB before fitting", f"{before:,.0f}")
    table.add_row("private MiB after fitting", f"{_private_mib():,.0f}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    table.add_row("peak resident MiB, with pages of the mapped shards", f"{peak:,.0f}")
    try:
        np.asarray(labels.X)
        table.add_row("loading all states", "fits: the limit has no effect here")
    except MemoryError:
        table.add_row("loading all states", "MemoryError, as expected")
    console.print(table)


@app.command()
def kill(times: int = 10, rows: int = 20_000, epochs: int = 20, seed: int = 0, output: Output = None) -> None:
    """Kills fitting at random moments, starts it again, and compares the agent with that of an uninterrupted run."""
    generator = random.Random(seed)  # noqa: S311
    table = Table("after", "the first run was", "agent equal to the byte")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        job = Job(Path(__file__), "fit-job", str(rows), str(epochs))
        seconds = job.finish(folder / "whole")
        whole = _agent(folder / "whole")
        for number in track(range(times), "killing", console=console):
            moment = generator.uniform(0, seconds)
            outcome = job.kill(folder / str(number), moment)
            job.finish(folder / str(number))
            table.add_row(f"{moment:.2f} s", outcome, str(_agent(folder / str(number)) == whole))
    table.title = f"{rows} rows, {epochs} epochs, {seconds:.1f} s uninterrupted"
    publish(table, output)


@app.command(hidden=True)
def fit_job(folder: Path, rows: int, epochs: int) -> None:
    """Job that `kill` starts and kills."""
    states, labels = _synthetic(rows, 64)
    classifier = MaraClassifier(
        width=128, max_epochs=epochs, early_stopping=True, random_state=0, device="cpu", checkpoint_dir=folder
    )
    classifier.set_params(n_iter_no_change=epochs)
    sys.stdout.write("started\n")
    sys.stdout.flush()
    classifier.fit(states, labels).agent_.save_pretrained(folder)


def _synthetic(rows: int, hidden_size: int, seed: int = 0) -> tuple[Any, Any]:
    states = np.random.default_rng(seed).standard_normal((rows, hidden_size), dtype=np.float32)
    direction = np.random.default_rng(0).standard_normal(hidden_size)
    return states, (states @ direction.astype(np.float32) > 0).astype(np.int64)


def _write_shard(folder: Path, number: int, rows: int, hidden_size: int) -> None:
    states, labels = _synthetic(rows, hidden_size, number + 1)
    constant = {"groups": np.int32, "token_ids": np.int32, "positions": np.int32, "ranks": np.int16}
    columns = {
        "states": states.astype(np.float16),
        "labels": labels.astype(np.int8),
        "weights": np.ones(rows, np.float32),
        **{name: np.full(rows, number, dtype) for name, dtype in constant.items()},
    }
    write_shard(folder, number, {name: torch.from_numpy(column) for name, column in columns.items()})


def _agent(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def _private_mib() -> float:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmData"))) / 1024


if __name__ == "__main__":
    app()
