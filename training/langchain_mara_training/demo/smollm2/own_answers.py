"""The model's own answers, which teach an agent when to guide: in risky questions, and not in everyday ones.

In red-team conversations people preferred careful answers, so an agent fitted to these alone makes all answers careful.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.progress import track

from langchain_mara import MaraLLM
from langchain_mara_training.data.readers import Prompt
from langchain_mara_training.demo.smollm2.pairs import Pairs
from langchain_mara_training.storage.atomic import write_atomically

NEW_TOKENS = 48
"""Most tokens of an answer in training, demo and measurements."""
_BATCH = 32
_FIRST_GROUP = 1_000_000  # far from the numbers of the human conversations


def own_answers(llm: MaraLLM, questions: Sequence[Prompt]) -> list[str]:
    """Answers questions, with a bar of progress.

    Args:
        llm: SmolLM2, with or without an agent.
        questions: Prompts.
    """
    answering: Any = llm.model_copy(update={"max_new_tokens": NEW_TOKENS, "batch_size": _BATCH})
    parts = [questions[start : start + _BATCH] for start in range(0, len(questions), _BATCH)]
    return [answer for part in track(parts, description="own answers") for answer in answering.batch(list(part))]


def preferred_pairs(questions: Sequence[Prompt], chosen: Sequence[str], rejected: Sequence[str], first: int) -> Pairs:
    """Preference pairs of two answers to each question; equal and empty answers are left out.

    Args:
        questions: n prompts.
        chosen: The n answers that count as preferred.
        rejected: The n other answers.
        first: Number of the first question among all questions; a question and its answers are one group.
    """
    return [
        {"prompt": question, "chosen": better, "rejected": worse, "group": _FIRST_GROUP + first + number}
        for number, (question, better, worse) in enumerate(zip(questions, chosen, rejected, strict=True))
        if better.strip() and worse.strip() and better != worse
    ]


def kept(file: Path, make: Callable[[], Any]) -> Any:
    """What `make` returned before, from a JSON file, or what it returns now.

    Args:
        file: The file; it is written if it is not there.
        make: Makes something that JSON can hold.
    """
    if not file.exists():
        write_atomically(file, json.dumps(make()).encode())
    return json.loads(file.read_text(encoding="utf-8"))
