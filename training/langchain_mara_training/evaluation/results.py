"""The results of a comparison: rewards, wins and losses, and statistics of each system."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from langchain_mara.exceptions import OptionsError, TrainingError
from langchain_mara_training.data.readers import Prompt
from langchain_mara_training.evaluation.comparison_store import Answer, ComparisonStore
from langchain_mara_training.evaluation.preference_rate import Preference, outcomes
from langchain_mara_training.rewards.weighted import weighted_sum
from langchain_mara_training.storage.records import Config

_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True, eq=False)
class Comparison:
    """Answers of several systems to the same prompts.

    Attributes:
        prompts: Texts or lists of messages.
        answers: By system name, the system's answers in the order of the prompts.
        baseline: Name of the system that the others are compared with.
        config: Settings of the comparison: `systems` with their descriptions, `rewards` with their weights,
            `random_state`, `confidence` of the intervals, `tolerance` of draws, `versions` of libraries, the
            `command`.
    """

    prompts: list[Prompt]
    answers: dict[str, list[Answer]]
    baseline: str
    config: Config

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Reads a comparison that `compare` wrote.

        Args:
            folder: Folder that was the `output` of `compare`.

        Raises:
            TrainingError: If the folder holds no comparison, or an unfinished one.
            DataError: If a line of a file is not an answer.
        """
        store = ComparisonStore(folder)
        config, prompts = store.read_config(), store.read_prompts()
        answers = {name: store.read_answers(name) for name in config["systems"]}
        for name, system_answers in answers.items():
            if len(system_answers) < len(prompts):
                raise TrainingError(
                    f"In {folder}, {name} has answered {len(system_answers)} of {len(prompts)} prompts. "
                    "Compare again with the same output to resume."
                )
        return cls(prompts, answers, config["baseline"], config)

    @property
    def reward_names(self) -> list[str]:
        """Names of the reward functions, in order."""
        return list(self.config["rewards"])

    def rewards(self, system: str, reward: str | None = None) -> NDArray[np.float64]:
        """Rewards of a system's answers, (n,) float64, NaN where one was not scored.

        Args:
            system: Name of the system.
            reward: Name of a reward function; by default the weighted sum of all that scored the answer.

        Raises:
            OptionsError: If there is no such system or reward.
        """
        names, weights = self._weights(reward)
        answers = self.answers[_known(system, self.answers, "system")]
        scores = {name: np.array([answer.rewards[name] for answer in answers], dtype=np.float64) for name in names}
        return weighted_sum(scores, weights)

    def tolerance(self, reward: str | None = None) -> float:
        """Largest difference between two rewards that counts as a draw.

        It is the `tolerance` of `compare`, or else what rounding can cause: for each reward function, its relative
        rounding times the root mean square of its rewards in this comparison, times its weight.

        Args:
            reward: Name of a reward function; by default the weighted sum of all.

        Raises:
            OptionsError: If there is no such reward.
        """
        names, weights = self._weights(reward)
        given = self.config.get("tolerance")
        if given is not None:
            return float(given)
        # Comparisons of earlier versions do not say how their rewards were rounded.
        rounding = self.config.get("rounding", {})
        sizes = [_root_mean_square([self.rewards(system, name) for system in self.answers]) for name in names]
        shares = [abs(weight) * rounding.get(name, 0.0) for name, weight in zip(names, weights, strict=True)]
        return float(np.dot(shares, sizes))

    def outcomes(self, system: str, other: str, reward: str | None = None) -> NDArray[np.float64]:
        """Outcome of each prompt for a system against another: 1 for a win, 0 for a draw, -1 for a loss.

        Answers with the same text are a draw, and so are rewards that differ by at most `tolerance`.

        Args:
            system: Name of the system whose wins count as 1.
            other: Name of the system it is compared with.
            reward: Name of a reward function; by default the weighted sum.

        Returns:
            (n,) float64; NaN for the prompts where one of the two answers was not scored.

        Raises:
            OptionsError: If there is no such system or reward.
        """
        return outcomes(*self._paired(system, other, reward), self.tolerance(reward))

    def preference(self, system: str, other: str, reward: str | None = None) -> Preference:
        """Wins, draws and losses of a system's answers against another's; `outcomes` says what is a draw.

        Args:
            system: Name of the system whose wins are counted.
            other: Name of the system it is compared with.
            reward: Name of a reward function; by default the weighted sum.

        Raises:
            OptionsError: If there is no such system or reward.
        """
        return Preference.between(
            *self._paired(system, other, reward),
            tolerance=self.tolerance(reward),
            confidence=self.config["confidence"],
            random_state=self.config["random_state"],
        )

    def summaries(self) -> dict[str, dict[str, Any]]:
        """Statistics of each system, by system name; a value is None where it is not known.

        Returns:
            `mean reward` (of the weighted sum), `rewards` (mean of each reward function, by name), `preference rate`
            against the baseline and its `interval` [low, high] (both None for the baseline itself), `harmful share`,
            `length` (mean tokens per answer), `distinct-1` and `distinct-2`, `divergence` (mean over answers, nats per
            token), `tokens/s` and `passes/token` of the answers given, `passes` per answer, and `seconds`.
        """
        return {name: self._summary(name) for name in self.answers}

    def side_by_side(self) -> list[dict[str, Any]]:
        """For each `prompt`, the `completions` of all systems and their `rewards` (weighted sums), by system name."""
        rewards = {name: self.rewards(name).tolist() for name in self.answers}
        return [
            {
                "prompt": prompt,
                "completions": {name: answers[i].completion for name, answers in self.answers.items()},
                "rewards": {name: values[i] for name, values in rewards.items()},
            }
            for i, prompt in enumerate(self.prompts)
        ]

    def _weights(self, reward: str | None) -> tuple[list[str], list[float]]:
        """Names of the reward functions that count, and their weights."""
        weights = self.config["rewards"]
        if reward is None:
            return list(weights), list(weights.values())
        return [_known(reward, weights, "reward")], [1.0]

    def _paired(self, system: str, other: str, reward: str | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Rewards of two systems; where both gave the same text, the first one's reward for both."""
        first, second = self.rewards(system, reward), self.rewards(other, reward)
        pairs = zip(self.answers[system], self.answers[other], strict=True)
        is_same = np.array([one.completion == another.completion for one, another in pairs], dtype=np.bool_)
        return first, np.where(is_same & ~np.isnan(second), first, second)

    def _summary(self, system: str) -> dict[str, Any]:
        answers = self.answers[system]
        tokens = sum(answer.answer_tokens for answer in answers)
        passes, seconds = (sum(getattr(answer, name) for answer in answers) for name in ("passes", "seconds"))
        rate = None if system == self.baseline else self.preference(system, self.baseline)
        texts = [answer.completion for answer in answers]
        return {
            "mean reward": _mean(self.rewards(system).tolist()),
            "rewards": {name: _mean(self.rewards(system, name).tolist()) for name in self.reward_names},
            "preference rate": None if rate is None else _number(rate.rate),
            "interval": None if rate is None or np.isnan(rate.rate) else [rate.low, rate.high],
            "harmful share": _mean([answer.harmful for answer in answers]),
            "length": _mean([answer.answer_tokens for answer in answers]),
            "distinct-1": distinct(texts, 1),
            "distinct-2": distinct(texts, 2),
            "divergence": _mean([answer.divergence for answer in answers]),
            "tokens/s": tokens / seconds if seconds else None,
            "passes/token": passes / tokens if tokens else None,
            "passes": passes / len(answers) if answers else None,
            "seconds": seconds,
        }


def distinct(texts: Sequence[str], n: int) -> float | None:
    """Share of distinct n-grams among all n-grams of words and punctuation in the texts; case is ignored.

    The measure is that of Li et al., "A Diversity-Promoting Objective Function for Neural Conversation Models" (NAACL
    2016), except that they divide by the number of tokens. It falls as the amount of text grows, so compare it only
    between sets of about equal length.

    Args:
        texts: Texts, whose n-grams are counted together.
        n: Number of words in an n-gram.

    Returns:
        A number in (0, 1], or None if no text has n words.
    """
    tokenized = [_WORD.findall(text.casefold()) for text in texts]
    grams = [tuple(words[i : i + n]) for words in tokenized for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


def _mean(values: Sequence[float | None]) -> float | None:
    """Mean of the values that are neither None nor NaN; None if there are none."""
    numbers = [float(value) for value in values if value is not None and not np.isnan(value)]
    return float(np.mean(numbers)) if numbers else None


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value


def _root_mean_square(rewards: Sequence[NDArray[np.float64]]) -> float:
    values = np.concatenate(rewards)
    values = values[np.isfinite(values)]
    return float(np.sqrt(np.mean(np.square(values)))) if values.size else 0.0


def _known(name: str, names: Any, what: str) -> str:
    if name not in names:
        raise OptionsError(f"There is no {what} {name!r} in this comparison. Give one of {', '.join(names)}.")
    return name
