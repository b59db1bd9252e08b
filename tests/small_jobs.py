"""Every kind of job that keeps its results in a folder, small enough for tests: `JOBS[name](folder, llm, reward)`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from langchain_mara_training import (
    MaraAligner,
    MaraClassifier,
    MaraSAC,
    PreferenceLabeler,
    RolloutLabeler,
    compare,
)
from langchain_mara_training.evaluation.systems import BestOf, Decoding

from langchain_mara import MaraLLM

PAIRS = [
    {"prompt": "How do I boil an egg?", "chosen": "Boil it for ten minutes.", "rejected": "I do not know at all."},
    {"prompt": "How do I make tea?", "chosen": "Pour hot water on the leaves.", "rejected": "No idea, go away."},
    {"prompt": "How do I plant a tree?", "chosen": "Dig a hole, and water it.", "rejected": "Why would I tell you?"},
]
PROMPTS = [pair["prompt"] for pair in PAIRS]
Job = Callable[..., Any]


def contents(folder: Path) -> dict[str, bytes]:
    """The results of a job, without times and without what belongs to the lock."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file() and not file.name.startswith("."))
    return {str(file.relative_to(folder)): file.read_bytes() for file in files if file.name != "log.jsonl"}


def vowels(completions: list[str], **_: Any) -> list[float]:
    """A reward that nearly every token changes."""
    return [sum(text.count(letter) for letter in "aeiou") - 0.01 * len(text) for text in completions]


def label_pairs(folder: Path, llm: MaraLLM, _reward: Any = None, **options: Any) -> Any:
    return PreferenceLabeler(llm, **{"candidate_filter": False, "shard_tokens": 8, **options}).label(PAIRS, folder)


def label_rollouts(folder: Path, llm: MaraLLM, reward: Any = vowels, **options: Any) -> Any:
    small = {"prompts_per_shard": 1, "positions": 2, "candidates": 3}
    return RolloutLabeler(llm, reward, **{**small, **options}).label(PROMPTS, folder)


def fit(folder: Path, _llm: Any = None, _reward: Any = None, **options: Any) -> Any:
    states = np.random.default_rng(0).standard_normal((64, 6)).astype(np.float32)
    small = {"width": 8, "max_epochs": 2, "random_state": 0, "device": "cpu"}
    return MaraClassifier(**{**small, **options}, checkpoint_dir=folder).fit(states, (states[:, 0] > 0).astype(int))


def align(folder: Path, llm: MaraLLM, reward: Any = vowels, **options: Any) -> Any:
    small: dict[str, Any] = {"rounds": 1, "labeler_options": {"candidate_filter": False}}
    classifier = MaraClassifier(width=8, max_epochs=1, device="cpu")
    return MaraAligner(llm, reward, classifier=classifier, output=folder, **{**small, **options}).fit(PAIRS)


def reinforce(folder: Path, llm: MaraLLM, reward: Any = vowels, **options: Any) -> Any:
    small = {"episodes": 8, "parallel": 4, "width": 8, "batch_size": 8, "warm_up": 1, "buffer_size": 200}
    return MaraSAC(llm, reward, output=folder, **{**small, "evaluate_every": 4, **options}).fit(PROMPTS)


def compare_systems(folder: Path, llm: MaraLLM, reward: Any = vowels, **options: Any) -> Any:
    systems = [Decoding("plain", llm.with_agent(None)), Decoding("MARA", llm), BestOf(llm, reward, 2)]
    return compare(systems, PROMPTS, reward, folder, chunk=2, **options)


JOBS: dict[str, Job] = {
    "label_pairs": label_pairs,
    "label_rollouts": label_rollouts,
    "fit": fit,
    "align": align,
    "reinforce": reinforce,
    "compare": compare_systems,
}
SCORED = ("label_rollouts", "align", "reinforce", "compare")
"""Jobs whose results depend on a reward function."""
DECODED = ("label_rollouts", "align", "reinforce", "compare")
"""Jobs whose results depend on how the LLM decodes."""
