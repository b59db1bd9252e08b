"""Answers of a system with everything measured on them: rewards, harm, divergence from the plain model, cost."""

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
from langchain_mara_training.generation.generate import GeneratedAnswer, Rewards, score_answers, score_each, weighted
from langchain_mara_training.rewards.calling import RewardFunction


class Scoring:
    """Asks systems for answers and scores them.

    Args:
        rewards: A `WeightedRewards`, or one or several reward functions.
        harmful: Classifier with the signature of a reward function; a value above 0 means harmful.
        plain: LLM that divergence is measured from.
        random_state: Seed from which the seeds of all prompts are derived.
    """

    def __init__(self, rewards: Rewards, harmful: RewardFunction | None, plain: MaraLLM, random_state: int) -> None:
        self.rewards = weighted(rewards)
        self.harmful = None if harmful is None else weighted(harmful)
        self.plain = plain
        self.random_state = random_state
        self._shared: dict[str, bool] = {}

    @property
    def harmful_name(self) -> str | None:
        """Name of the harm classifier."""
        return None if self.harmful is None else self.harmful.names[0]

    def answers(self, system: System, rows: Sequence[Row], numbers: Sequence[int]) -> list[Answer]:
        """A system's answers to some of the prompts.

        Args:
            system: System to ask.
            rows: Rows of all prompts.
            numbers: Numbers of the prompts to answer.

        Raises:
            PromptError: If a prompt is too long.
            RewardError: If a reward function fails.
        """
        asked = [rows[number] for number in numbers]
        costed_answers = system.answer(asked, [self._seed(number) for number in numbers])
        answers = [costed.answer for costed in costed_answers]
        rewards = score_each(self.rewards, asked, answers)
        harm = np.full(len(asked), np.nan) if self.harmful is None else score_answers(self.harmful, asked, answers)
        return [
            Answer(
                number=number,
                completion=costed.answer.text,
                rewards={name: _none_if_nan(values[i]) for name, values in rewards.items()},
                harmful=None if np.isnan(harm[i]) else bool(harm[i] > 0),
                divergence=self._divergence(system, asked[i], costed.answer),
                **_costs(costed),
            )
            for i, (number, costed) in enumerate(zip(numbers, costed_answers, strict=True))
        ]

    def _seed(self, number: int) -> int:
        """Seed of a prompt's draws. Every prompt has a different one; otherwise all prompts would draw alike."""
        return int(np.random.SeedSequence([self.random_state, number]).generate_state(1)[0])

    def _divergence(self, system: System, row: Row, answer: GeneratedAnswer) -> float | None:
        if system.name not in self._shared:
            self._shared[system.name] = share_vocabulary(self.plain, system.answering)
        token_ids = answer.token_ids if self._shared[system.name] else self.plain.get_token_ids(answer.text)
        return divergence(self.plain, row["prompt"], token_ids)


def _costs(costed: CostedAnswer) -> dict[str, Any]:
    decisions = DecisionStatistics.of(costed.answer.decisions).as_info()
    return {
        "tokens": costed.tokens,
        "answer_tokens": len(costed.answer.token_ids),
        "passes": costed.passes,
        "seconds": costed.seconds,
        "accepted_index": decisions["accepted_index"],
        "fallbacks": decisions["fallbacks"],
    }


def _none_if_nan(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
