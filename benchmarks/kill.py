"""Jobs killed at random moments, and files damaged by one bit: is a result ever lost, changed or wrongly used?

    python benchmarks/kill.py kills   SIGKILL at random moments in label, fit, rl, compare and evaluate; then resume
    python benchmarks/kill.py flips   one flipped bit in a file that a job left; then read, and resume

The jobs are small and use the bundled model. Each runs in a process of its own.
"""

import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from killing import Job
from langchain_mara_training import run_folder
from langchain_mara_training.demo.corpus import preference_pairs
from langchain_mara_training.evaluation.comparison import Comparison, compare
from langchain_mara_training.evaluation.systems import BestOf, Decoding, System
from langchain_mara_training.jobs import evaluate, fit, label, rl
from langchain_mara_training.reinforcement.recipe import Recipe
from langchain_mara_training.rewards.preference_reward import PreferenceReward
from langchain_mara_training.storage.records import write_json
from rich.progress import track
from rich.table import Table
from tables import Output, console, publish

from langchain_mara import MaraAgent, MaraLLM
from langchain_mara.exceptions import MaraError

app = typer.Typer(add_completion=False, help=__doc__, rich_markup_mode=None)
Kind = Annotated[list[str] | None, typer.Option(help="Job; repeatable, all by default.")]
_HEADER_BYTES = 128  # of a numpy file
# Nothing is computed from these; people read them.
_FOR_PEOPLE = {"log.jsonl", "versions.json", "README.md"}


class _Work(NamedTuple):
    """A kind of job.

    Attributes:
        run: Runs it in a folder, or resumes it there.
        result: What the job is for, from its folder.
        read: What a reader of the folder gets.
    """

    run: Callable[[Path], object]
    result: Callable[[Path], object]
    read: Callable[[Path], object]


@app.command()
def kills(times: int = 10, seed: int = 0, job: Kind = None, output: Output = None) -> None:
    """Kills each job at random moments, starts it again, and compares its result with an uninterrupted one."""
    generator = random.Random(seed)  # noqa: S311
    columns = ("job", "seconds uninterrupted", "runs", "killed at work", "resumed to the same result")
    table = Table(*columns, title=f"SIGKILL at random moments, {times} runs of each job")
    measured = {}
    with tempfile.TemporaryDirectory() as name:
        for kind in job or _WORK:
            folder, killed_job = Path(name, kind), Job(Path(__file__), "work", kind)
            seconds = killed_job.finish(folder / "whole")
            whole = _WORK[kind].result(folder / "whole")
            runs = []
            for number in track(range(times), f"killing {kind}", console=console):
                moment = generator.uniform(0, seconds)
                outcome = killed_job.kill(folder / str(number), moment)
                killed_job.finish(folder / str(number))
                runs.append((moment, outcome, _WORK[kind].result(folder / str(number)) == whole))
            killed, same = (sum(run[place] in ("killed", True) for run in runs) for place in (1, 2))
            table.add_row(kind, f"{seconds:.1f}", str(times), str(killed), str(same))
            measured[kind] = runs
    publish(table, output, measured)


@app.command()
def flips(count: int = 20, seed: int = 0, job: Kind = None, output: Output = None) -> None:
    """Flips a bit of a file that each job left, reads the folder, resumes the job, and says who noticed."""
    generator = random.Random(seed)  # noqa: S311
    kinds = list(job or _WORK)
    outcomes: dict[str, Counter[str]] = {kind: Counter() for kind in kinds}
    measured = []
    with tempfile.TemporaryDirectory() as name:
        for kind in track(kinds, "running the jobs", console=console):
            _WORK[kind].run(Path(name, kind))
            intact = Path(shutil.copytree(Path(name, kind), Path(name, f"{kind}-intact")))
            if _outcome(_WORK[kind], Path(name, kind), intact) != "computed again":
                raise RuntimeError(f"An intact folder of {kind} is refused, so refusals say nothing.")
        for number in track(range(count), "flipping", console=console):
            kind = kinds[number % len(kinds)]
            damaged = Path(shutil.copytree(Path(name, kind), Path(name, f"{kind}-{number}")))
            where = _flip(damaged, generator)
            outcome = _outcome(_WORK[kind], Path(name, kind), damaged)
            outcomes[kind][outcome] += 1
            measured.append((kind, *where, outcome))
    names = ("refused by the reader", "refused by the resume", "computed again", "unnoticed")
    table = Table("job", "flips", *names, title=f"{count} flipped bits in files of finished jobs")
    for kind, counted in outcomes.items():
        table.add_row(kind, str(counted.total()), *(str(counted[outcome]) for outcome in names))
    publish(table, output, measured)


@app.command(hidden=True)
def work(folder: Path, kind: str) -> None:
    """Job that `kills` starts and kills."""
    sys.stdout.write("started\n")
    sys.stdout.flush()
    _WORK[kind].run(folder)


def _flip(folder: Path, generator: random.Random) -> tuple[str, int]:
    """Flips a bit of one of a folder's files; returns the file's name and the place of the byte."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.stat().st_size]
    file = generator.choice([file for file in files if file.name not in _FOR_PEOPLE])
    content = bytearray(file.read_bytes())
    # A buffer has room for rows that were never written; nobody reads them.
    start, end = (_HEADER_BYTES, int(np.flatnonzero(content)[-1]) + 1) if file.suffix == ".npy" else (0, len(content))
    place = generator.randrange(start, end)
    content[place] ^= 1 << generator.randrange(8)
    file.write_bytes(content)
    return str(file.relative_to(folder)), place


def _outcome(kind: _Work, intact: Path, damaged: Path) -> str:
    """Who noticed the damage."""
    try:
        if kind.read(damaged) != kind.read(intact):
            return "unnoticed"
    except MaraError:
        return "refused by the reader"
    try:
        kind.run(damaged)
    except MaraError:
        return "refused by the resume"
    return "computed again" if kind.result(damaged) == kind.result(intact) else "unnoticed"


def _label(folder: Path) -> object:
    options = {"labeler": "preference", "all_tokens": False, "top_k": 40, "top_p": 0.95, "seed": 0, "model": None}
    source = {"data": str(_pairs(folder)), "split": "train", "limit": None, "device": "cpu", "agent": None}
    return label.label(folder, {**options, **source})


def _fit(folder: Path) -> object:
    labels = folder.with_name("labels-of-fit")
    if not (labels / "log.jsonl").exists() or "labeled" not in (labels / "log.jsonl").read_text(encoding="utf-8"):
        _label(labels)
    options: dict[str, Any] = {
        "width": 128, "epochs": 12, "batch_size": 64, "learning_rate": 1e-3, "early_stopping": False,
        "weight_decay": 0.01, "schedule": "linear", "class_weight": None, "mixed_precision": None,
        "validation_fraction": 0.25, "device": "cpu", "seed": 0,
    }  # fmt: skip
    return fit.fit(labels, folder, options)


def _rl(folder: Path) -> object:
    pairs = str(_pairs(folder))
    given = {"data": pairs, "reward": [f"pairs:{pairs}"], "device": "cpu", "episodes": 40, "parallel": 8, "width": 32}
    small = {"batch_size": 16, "warm_up": 2, "max_new_tokens": 8, "buffer_size": 4000, "evaluate_every": 8}
    return rl.reinforce(folder, rl.resolve_options(Recipe(), {**given, **small}))


def _compare(folder: Path) -> object:
    rows = _rows()
    reward = PreferenceReward().fit(rows)
    llm = MaraLLM.demo(max_new_tokens=16, batch_size=4)
    systems: list[System] = [Decoding("plain", llm.with_agent(None)), Decoding("MARA", llm), BestOf(llm, reward, 4)]
    return compare(systems, [row["prompt"] for row in rows], reward, folder, chunk=4)


def _evaluate(folder: Path) -> object:
    agent = folder.with_name("agent-of-evaluate")
    if not agent.exists():
        MaraLLM.demo().agent.save_pretrained(agent)  # type: ignore[union-attr]
    pairs = str(_pairs(folder))
    options = {
        "data": pairs, "split": "train", "limit": None, "device": "cpu", "seed": 0, "model": None, "agent": str(agent),
        "reward": [f"pairs:{pairs}"], "reward_weight": None, "best_of": [4], "threshold": 0.5, "batch_size": 1,
        "max_new_tokens": 16, "top_k": None, "top_p": None, "harmful": None, "prompt_column": None,
    }  # fmt: skip
    return evaluate.evaluate(None, folder, options)


def _rows() -> list[dict[str, Any]]:
    return [asdict(pair) for pair in preference_pairs("train", seed=0, per_topic=1)][:12]


def _pairs(folder: Path) -> Path:
    """A file of pairs beside a job's folder."""
    file = folder.with_name("pairs.json")
    if not file.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, _rows())
    return file


def _shards(folder: Path) -> dict[str, bytes]:
    files = sorted(file for file in (folder / "features").iterdir() if not file.name.startswith("."))
    return {file.name: file.read_bytes() for file in files}


def _labels(folder: Path) -> list[Any]:
    labels = run_folder.read_labels(folder)
    return [np.asarray(column).tolist() for column in labels]


def _agent_files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / "agent" / name).read_bytes() for name in ("model.safetensors", "config.json")}


def _agent(folder: Path) -> str:
    run_folder.agent_config(str(folder))
    return MaraAgent.from_pretrained(folder / "agent").fingerprint


def _answers(folder: Path) -> dict[str, list[Any]]:
    """The answers, without the times they took; the share of a chunk's passes depends on where it was interrupted."""
    kept = Comparison.load(folder).answers
    return {
        name: [answer.model_dump(exclude={"seconds", "passes"}) for answer in answers] for name, answers in kept.items()
    }


_WORK = {
    "label": _Work(_label, _shards, _labels),
    "fit": _Work(_fit, _agent_files, _agent),
    "rl": _Work(_rl, _agent_files, _agent),
    "compare": _Work(_compare, _answers, _answers),
    "evaluate": _Work(_evaluate, _answers, _answers),
}


if __name__ == "__main__":
    app()
