"""Options, rewards and files that the tests of jobs on run folders share."""

import json
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]

DATA = {"split": "train", "limit": None, "device": "cpu", "seed": 0, "model": None, "agent": None}
ROWS = {"too_long": "error", "on_bad_row": "error", **DATA}
PAIRS = {"labeler": "preference", "all_tokens": False, "top_k": 40, "top_p": 0.95, **ROWS}
ROLLOUTS = {
    "labeler": "rollout", "top_k": 10, "top_p": 0.9, "max_new_tokens": 6, "generations": 1, "positions": 2,
    "candidates": 3, "continuations": 1, "value": "policy", "margin": 0.0, "ties": "accept", "weighting": "uniform",
    "reward": ["rewards_of_test_jobs:vowels"], "reward_weight": [2.0], **ROWS,
}  # fmt: skip
FIT = {
    "width": 8, "epochs": 4, "batch_size": 64, "learning_rate": 1e-3, "early_stopping": False,
    "weight_decay": 0.01, "schedule": "linear", "dropout": 0.0, "input_dropout": 0.0,
    "class_weight": None, "mixed_precision": None,
    "validation_fraction": 0.25, "device": "cpu", "seed": 3,
}  # fmt: skip
EVALUATE = {
    **DATA, "reward": None, "reward_weight": None, "best_of": None, "threshold": 0.5, "batch_size": 32,
    "max_new_tokens": 6, "top_k": None, "top_p": None, "harmful": None, "prompt_column": None,
    "rescore": None, "tolerance": None,
}  # fmt: skip
REWARDS = """
def vowels(completions, **_):
    return [float(sum(text.count(letter) for letter in "aeiou")) for text in completions]

def many(completions, **_):
    return [one - 6 for one in vowels(completions)]

def constant(completions, **_):
    return [1.0] * len(completions)
"""


def write(file: Path, rows: Rows) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def events(folder: Path, command: str) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [record for record in records if record["command"] == command]
