"""Answers of a system with everything measured on them: rewards, harm, divergence from the plain model, cost."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from langchain_mara import MaraLLM
from langchain_mara.tracing.statistics import DecisionStatistics
from langchain_mara_training.data.readers import Row
from langchain_mara_training.evaluation.comparison_store import Answer
from langchain_mara_training.evaluation.divergence import divergence, share_vocabulary
from langchain_mara_training.evaluation.systems import System
from langchain_mara_training.generation.costs import CostedAnswer
from langchain_mara_training.generation.generate import (
    GeneratedAnswer,
    Rewards,
    prompt_seed,
    score_answers,
    score_each,
    weighted,
)
from langchain_mara_training.rewards.calling import RewardFunction
from langchain_mara_training.rewards.weighted import WeightedRewards
from langchain_mara_training.storage.identity.job_identity import describe_rewards

_ROUNDING = {"float32": 2.0**-18, "bfloat16": 2.0**-5, "float16": 2.0**-8}


class Judges:
    """Reward functions and a harm classifier, which score answers.

    Args:
        rewards: A `WeightedRewards`, or one or several reward functions.
        harmful: Classifier with the signature of a reward function; a value above 0 means harmful.
    """

    def __init__(self, rewards: Rewards, harmful: RewardFunction | None) -> None:
        self.rewards = weighted(rewards)
        self.harmful_function = harmful
        self.harmful = None if harmful is None else weighted(harmful)

    def describe(self) -> dict[str, Any]:
        """Everything that scores depend on except prompts and answers, and how they are rounded, as plain values."""
        scored_by = describe_rewards(self.rewards)
        functions = zip(self.rewards.names, self.rewards.functions, strict=True)
        return {
            "rewards": {name: described["weight"] for name, described in scored_by.items()},
            "scored by": scored_by,
            "rounding": {name: rounding_of(function) for name, function in functions},
            "harmful": None if self.harmful is None else self.harmful.names[0],
            "judged by": None if self.harmful is None else describe_rewards(self.harmful),
        }

    def verdicts(
        self, rows: Sequence[Row], answers: Sequence[GeneratedAnswer], known: Mapping[str, NDArray[np.float64]]
    ) -> list[dict[str, Any]]:
        """For each answer, the fields `rewards` and `harmful` of `Answer`; the latter only with a classifier.

        Args:
            rows: n rows with a `prompt`; their other columns go to the reward functions.
            answers: n answers, one to each row's prompt.
            known: Rewards (n,) that some of the functions gave these answers before, by the function's name. Functions
                whose rewards are known are not called again.

        Raises:
            RewardError: If a reward function fails.
        """
        functions = zip(self.rewards.names, self.rewards.functions, strict=True)
        missing = {name: function for name, function in functions if name not in known}
        computed = score_each(list(missing.values()), rows, answers).values() if missing else ()
        scores = {**known, **dict(zip(missing, computed, strict=True))}
        verdicts: list[dict[str, Any]] = [
            {"rewards": {name: _none_if_nan(scores[name][i]) for name in self.rewards.names}}
            for i in range(len(answers))
        ]
        if self.harmful is not None:
            for verdict, harm in zip(verdicts, score_answers(self.harmful, rows, answers), strict=True):
                verdict["harmful"] = None if np.isnan(harm) else bool(harm > 0)
        return verdicts


class Asked(NamedTuple):
    """Prompts that a system is to answer.

    Attributes:
        system: Name of the system.
        numbers: Numbers of the prompts.
        rows: The row of each prompt.
        ends_chunk: Whether it is the last system to be asked these prompts.
    """

    system: str
    numbers: Sequence[int]
    rows: Sequence[Row]
    ends_chunk: bool = True


class Scoring:
    """Asks systems for answers and scores them.

    Args:
        judges: Reward functions and harm classifier.
        systems: The systems, each with a name of its own.
        plain: LLM that divergence is measured from.
        random_state: Seed from which the seeds of all prompts are derived.
    """

    def __init__(self, judges: Judges, systems: Sequence[System], plain: MaraLLM, random_state: int) -> None:
        self.judges = judges
        self.systems = {system.name: system for system in systems}
        self.plain = plain
        self.random_state = random_state
        self._shared: dict[str, bool] = {}

    def answers(self, asked: Asked) -> list[Answer]:
        """A system's answers to some of the prompts. Every engine calls this method.

        Args:
            asked: System and prompts.

        Raises:
            PromptError: If a prompt is too long.
            RewardError: If a reward function fails.
        """
        system, rows = self.systems[asked.system], asked.rows
        costed_answers = system.answer(rows, [prompt_seed(self.random_state, number) for number in asked.numbers])
        answers = [costed.answer for costed in costed_answers]
        verdicts = self.judges.verdicts(rows, answers, _scored_already(self.judges.rewards, costed_answers))
        return [
            Answer(
                number=number,
                completion=costed.answer.text,
                token_ids=costed.answer.token_ids,
                divergence=self._divergence(system, row, costed.answer),
                **verdict,
                **_costs(costed),
            )
            for number, row, costed, verdict in zip(asked.numbers, rows, costed_answers, verdicts, strict=True)
        ]

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


def _scored_already(rewards: WeightedRewards, answers: Sequence[CostedAnswer]) -> dict[str, NDArray[np.float64]]:
    """The rewards by which answers were chosen, for each function that scored all of them."""
    known: dict[str, NDArray[np.float64]] = {}
    for name, function in zip(rewards.names, rewards.functions, strict=True):
        found = [[value for scorer, value in costed.scores if scorer is function][:1] for costed in answers]
        if all(found):
            known[name] = np.array(found, dtype=np.float64)[:, 0]
    return known


def rounding_of(function: RewardFunction) -> float:
    """How far rounding moves a reward, as a share of the rewards' usual size.

    A reward model rounds differently in every batch. The share is what about nine in ten rewards of a model of 16
    layers stay within, or an attribute `rounding` of the function.

    Args:
        function: Reward function. If it has a `model`, that model's dtype counts, otherwise float32.
    """
    own = getattr(function, "rounding", None)
    if isinstance(own, int | float):
        return float(own)
    dtype = getattr(getattr(function, "model", None), "dtype", None)
    return _ROUNDING.get(str(dtype).removeprefix("torch."), _ROUNDING["float32"])


def _none_if_nan(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
