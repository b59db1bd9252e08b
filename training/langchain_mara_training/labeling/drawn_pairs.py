"""Preference pairs from an LLM's own answers: of the answers drawn to a prompt, the best and the worst by reward."""

from collections.abc import Sequence

import numpy as np

from langchain_mara import MaraLLM
from langchain_mara.exceptions import DataError
from langchain_mara_training.data.readers import Row
from langchain_mara_training.generation.generate import AnswerStart, GeneratedAnswer, generate_answers, score_answers
from langchain_mara_training.rewards.weighted import WeightedRewards
from langchain_mara_training.storage.defaults import TRAINING_BATCH_SIZE

_DRAWN_ANSWERS = 4


def draw_pairs(llm: MaraLLM, rewards: WeightedRewards, rows: Sequence[Row], seed: int) -> list[Row]:
    """A pair for each prompt: the drawn answers with the highest and lowest reward, if these differ.

    Args:
        llm: Policy model, agent and options.
        rewards: Rewards that score the answers.
        rows: Rows with a `prompt`.
        seed: Seed of the draws.

    Raises:
        DataError: If no pair is left.
        RewardError: If a reward function fails.
    """
    repeated = [row for row in rows for _ in range(_DRAWN_ANSWERS)]
    answers = answer_rows(llm, repeated, seed)
    scores = score_answers(rewards, repeated, answers).reshape(-1, _DRAWN_ANSWERS)
    pairs = []
    for i, (row, row_scores) in enumerate(zip(rows, scores, strict=True)):
        if np.isnan(row_scores).all() or np.nanmax(row_scores) == np.nanmin(row_scores):
            continue
        best, worst = (
            answers[i * _DRAWN_ANSWERS + int(index)] for index in (np.nanargmax(row_scores), np.nanargmin(row_scores))
        )
        pairs.append({**row, "chosen": best.text, "rejected": worst.text})
    if not pairs:
        raise DataError("All answers drawn for a later round have the same reward. Set rounds=1.")
    return pairs


def answer_rows(llm: MaraLLM, rows: Sequence[Row], seed: int | None = None) -> list[GeneratedAnswer]:
    """An answer to each row's prompt; drawn if a seed is given."""
    encoded = [llm.encode(row["prompt"]) for row in rows]
    starts = [
        AnswerStart(ids, seed=(seed or 0) * len(rows) + i, sampled=seed is not None) for i, ids in enumerate(encoded)
    ]
    return generate_answers(llm, starts, TRAINING_BATCH_SIZE)


def distinct_prompts(rows: Sequence[Row]) -> list[Row]:
    """The first row of every prompt. Its number becomes the prompt's group."""
    first_rows: dict[str, Row] = {}
    for number, row in enumerate(rows):
        first_rows.setdefault(repr(row["prompt"]), {"group": number, **row})
    return list(first_rows.values())
