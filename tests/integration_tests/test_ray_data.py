"""`--engine ray`: labels, answers and comparisons are those of one process, and a killed worker loses nothing."""

from pathlib import Path
from typing import Any

import pytest
from ray_scripts import noted_by

pytestmark = pytest.mark.slow

# A separate process, because Ray needs sockets and this process has none. Ray itself is started once for all jobs.
SCRIPT = """
import json, os, signal, threading, time
from dataclasses import asdict
from functools import partial
from pathlib import Path
import psutil, ray, torch
from langchain_mara import MaraLLM
from langchain_mara.exceptions import MaraError
from langchain_mara_training import PreferenceLabeler, RolloutLabeler
from langchain_mara_training.commands.main import app
from langchain_mara_training.demo.corpus import preference_pairs
from langchain_mara_training.engines.ray_data import RayData
from langchain_mara.loading.models import DEMO_AGENT_FOLDER

torch.set_num_threads(1)
ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
PAIRS = [asdict(pair) for pair in preference_pairs("train", seed=0, per_topic=1)]
results = {}

def contents(folder):
    "Files of a folder, without what differs between any two runs: times, and the command line."
    found = {}
    for file in sorted(Path(folder).rglob("*")):
        if file.is_file() and not file.name.startswith("."):
            content = file.read_bytes()
            if file.suffix == ".jsonl" and file.parent.name == "answers":
                untimed = [json.loads(line) for line in content.splitlines()]
                content = [{k: v for k, v in line.items() if k not in ("seconds", "sha256")} for line in untimed]
            if file.name == "config.json":
                content = {k: v for k, v in json.loads(content).items() if k not in ("command", "sha256")}
            found[str(file.relative_to(folder))] = content
    return found

def workers():
    "Processes of Ray Data's actors, whose names differ between its versions."
    named = [(process, process.name()) for process in psutil.process_iter()]
    return [process for process, name in named if name.startswith("ray::") and "Map" in name]

def killing(name, file, least):
    "Kills a worker once a file has some lines."
    def kill():
        while True:
            lines = Path(file).read_bytes().count(b"\\n") if Path(file).exists() else 0
            if lines >= least and (found := workers()):
                found[0].send_signal(signal.SIGKILL)
                results[f"{name}: lines when killed"] = lines
                return
            time.sleep(0.01)
    threading.Thread(target=kill, daemon=True).start()

def mara(*arguments):
    try:
        app(list(arguments), standalone_mode=False)
    except SystemExit as end:
        assert not end.code, arguments

def labeler(kind):
    llm = MaraLLM.demo(device="cpu", max_new_tokens=6)
    if kind == "preference":
        return PreferenceLabeler(llm, shard_tokens=128)
    return RolloutLabeler(llm, vowels, prompts_per_shard=1, positions=2, candidates=3)

def vowels(completions, **_):
    return [float(sum(text.count(letter) for letter in "aeiou")) for text in completions]

def labels(kind, rows):
    here = labeler(kind)
    here.label(rows, f"here-{kind}")
    killing(kind, f"ray-{kind}/shards.jsonl", 2)
    here.label(rows, f"ray-{kind}", engine=RayData(partial(labeler, kind), 2))
    results[kind] = contents(f"here-{kind}") == contents(f"ray-{kind}")
    results[f"{kind}: left"] = [file.name for file in Path(f"ray-{kind}").glob(".*.tmp")]
    results[f"{kind}: shards"] = len(list(Path(f"ray-{kind}").glob("*.safetensors")))
"""


def run(script: str, folder: Path) -> dict[str, Any]:
    """Runs a script after the common one and returns what it noted."""
    return noted_by(f"{SCRIPT}\n{script}\nprint('results', json.dumps(results), flush=True)\nray.shutdown()", folder)


def test_labels_are_those_of_one_process_though_a_worker_is_killed(tmp_path: Path) -> None:
    found = run("labels('preference', PAIRS[:80])\nlabels('rollout', [p['prompt'] for p in PAIRS[:16]])", tmp_path)
    for kind in ("preference", "rollout"):
        assert found[kind]
        assert found[f"{kind}: left"] == []
        assert 2 <= found[f"{kind}: lines when killed"] < found[f"{kind}: shards"]


COMMANDS = """
from langchain_mara_training.jobs.generate import Answerer
from langchain_mara_training.evaluation.scoring import Scoring

JUDGE = "def vowels(completions, **_):\\n    return [float(sum(map(text.count, 'aeiou'))) for text in completions]"
Path("judge.py").write_text(JUDGE)
rows = [{"prompt": pair["prompt"], "number": number} for number, pair in enumerate(PAIRS[:29])]
Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
SMALL = ["--max-new-tokens", "6", "--batch-size", "1", "--device", "cpu"]
RAY = ["--engine", "ray", "--workers", "2"]
GENERATE = ["generate", "--input", "prompts.jsonl", *SMALL, "--output"]
JUDGED = ["--agent", str(DEMO_AGENT_FOLDER), "--reward", "judge:vowels", "--best-of", "2"]
EVALUATE = ["evaluate", "prompts.jsonl", *JUDGED, *SMALL, "--output"]

def interrupted(owner, name, calls, *command):
    "A command that is interrupted at one of its blocks."
    whole, left = getattr(owner, name), iter(range(calls))
    def until(self, block):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return whole(self, block)
    setattr(owner, name, until)
    try:
        mara(*command)
    except KeyboardInterrupt:
        pass
    setattr(owner, name, whole)

mara(*GENERATE, "here.jsonl")
interrupted(Answerer, "answer", 2, *GENERATE, "ray.jsonl")
killing("generate", "ray.jsonl.job/answers.jsonl", 12)
mara(*GENERATE, "ray.jsonl", *RAY)
results["generate"] = Path("here.jsonl").read_bytes() == Path("ray.jsonl").read_bytes()
results["rows"] = [json.loads(line) for line in Path("here.jsonl").read_text().splitlines()]
results["folders left"] = [str(path) for path in Path().glob("*.job")]

mara(*EVALUATE, "here")
interrupted(Scoring, "answers", 4, *EVALUATE, "ray")
killing("evaluate", "ray/answers/plain.jsonl", 12)
mara(*EVALUATE, "ray", *RAY)
results["evaluate"] = contents("here") == contents("ray")
"""


def test_what_one_process_began_workers_finish_though_one_is_killed(tmp_path: Path) -> None:
    found = run(COMMANDS, tmp_path)
    assert found["generate"]
    assert 12 <= found["generate: lines when killed"] < 29
    assert [row["number"] for row in found["rows"]] == list(range(29))
    assert len({row["completion"] for row in found["rows"]}) > 10
    assert found["folders left"] == []
    assert found["evaluate"]
    assert 12 <= found["evaluate: lines when killed"] < 29


FAULTS = """
def raises():
    raise DataError("there is no such file")

def dies():
    os.kill(os.getpid(), signal.SIGKILL)

def echo(worker, block):
    return block

from langchain_mara.exceptions import DataError

def failing(name, make, workers):
    try:
        list(RayData(make, workers).map(echo, [1, 2]))
    except MaraError as error:
        results[name] = [type(error).__name__, str(error), *error.__notes__] if make is raises else str(error)

failing("raises", raises, 1)
failing("dies", dies, 1)
failing("too many", int, 9)
results["nothing"] = list(RayData(int).map(echo, []))
results["first of three"] = next(RayData(int, 1).map(echo, [5, 6, 7]))
results["still runs"] = ray.is_initialized()
"""


def test_what_workers_raise_is_raised_here_and_endless_deaths_end(tmp_path: Path) -> None:
    found = run(FAULTS, tmp_path)
    kind, message, note = found["raises"]
    assert (kind, message) == ("DataError", "there is no such file")
    assert "in raises" in note
    assert found["dies"].startswith("Workers died 4 times over the same block")
    assert "9 workers with num_cpus=1 need more than the 4 that Ray has. Use fewer workers." in found["too many"]
    assert (found["nothing"], found["first of three"], found["still runs"]) == ([], 5, True)
