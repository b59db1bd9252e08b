"""Answers of a system with all that is said of them: rewards, harm, divergence from the plain model, cost."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from langchain_mara import MaraLLM
from langchain_mara.tracing.statistics import DecisionStatistics
from langchain_mara_training.data.readers import Row
from langchain_mara_training.evaluation.comparison_store import Answer
from langchain_mara_training.evaluation.divergence import divergence, share_vocabulary
from langchain_mara_training.evaluation.systems import System
from langchain_mara_training.generation.costs import CostedAnswer
from langchain_mara_training.generation.generate import Rewards, score_answers, score_each, weighted
from langchain_mara_training.rewards.calling import RewardFunction


class Scoring:
    """Asks systems, and scores what they answer.

    Args:
        rewards: Reward functions.
        harmful: Classifier in their form, above 0 where an answer is harmful.
        plain: What divergence is measured from.
        random_state: Of the seeds of prompts.
    """

    def __init__(self, rewards: Rewards, harmful: RewardFunction | None, plain: MaraLLM, random_state: int) -> None:
        self.rewards = weighted(rewards)
        self.harmful = None if harmful is None else weighted(harmful)
        self.plain = plain
        self.random_state = random_state
        self._shared: dict[str, bool] = {}

    @property
    def harmful_name(self) -> str | None:
        """Of the classifier."""
        return None if self.harmful is None else self.harmful.names[0]

    def answers(self, system: System, rows: Sequence[Row], numbers: Sequence[int]) -> list[Answer]:
        """A system's answers to some of the prompts.

        Args:
            system: Which is asked.
            rows: All prompts.
            numbers: Of those to answer.

        Raises:
            PromptError: If a prompt is too long.
            RewardError: If a reward function fails.
        """
        some = [rows[number] for number in numbers]
        given = system.answer(some, [self._seed(number) for number in numbers])
        said = [one.answer for one in given]
        rewards = score_each(self.rewards, some, said)
        harm = np.full(len(some), np.nan) if self.harmful is None else score_answers(self.harmful, some, said)
        return [
            Answer(
                number=number,
                completion=one.answer.text,
                rewards={name: _known(values[i]) for name, values in rewards.items()},
                harmful=None if np.isnan(harm[i]) else bool(harm[i] > 0),
                divergence=self._divergence(system, some[i], one),
                **_costs(one),
            )
            for i, (number, one) in enumerate(zip(numbers, given, strict=True))
        ]

    def _seed(self, number: int) -> int:
        """Of a prompt's draws: as different as prompts are, or all would draw alike."""
        return int(np.random.SeedSequence([self.random_state, number]).generate_state(1)[0])

    def _divergence(self, system: System, row: Row, one: CostedAnswer) -> float | None:
        if system.name not in self._shared:
            self._shared[system.name] = share_vocabulary(self.plain, system.answering)
        own = one.answer.token_ids if self._shared[system.name] else self.plain.get_token_ids(one.answer.text)
        return divergence(self.plain, row["prompt"], own)


def _costs(one: CostedAnswer) -> dict[str, Any]:
    decisions = DecisionStatistics.of(one.answer.decisions).as_info()
    return {
        "tokens": one.tokens,
        "answer_tokens": len(one.answer.token_ids),
        "passes": one.passes,
        "seconds": one.seconds,
        "accepted_index": decisions["accepted_index"],
        "fallbacks": decisions["fallbacks"],
    }


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
