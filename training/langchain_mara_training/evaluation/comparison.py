"""Compares systems on the same prompts: what each answered, what it cost, and how it did against the baseline."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from langchain_mara.exceptions import OptionsError, TrainingError
from langchain_mara_training.data.readers import Prompt, Row, Source, read_prompts
from langchain_mara_training.evaluation.comparison_store import Answer, ComparisonStore, digest
from langchain_mara_training.evaluation.preference_rate import CONFIDENCE, Preference
from langchain_mara_training.evaluation.scoring import Scoring
from langchain_mara_training.evaluation.systems import System
from langchain_mara_training.generation.generate import Rewards
from langchain_mara_training.rewards.calling import RewardFunction
from langchain_mara_training.storage.identity.job_identity import describe_rewards
from langchain_mara_training.storage.lock import job_lock
from langchain_mara_training.storage.progress import progress_bar
from langchain_mara_training.storage.records import Config, command_line, library_versions

__all__ = ["Answer", "Comparison", "compare"]

CHUNK_BATCHES = 4
"""Suggested number of batches per chunk. In a batch, the next prompt takes the slot of a finished one, so a chunk of
several batches leaves fewer slots empty."""

_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True, eq=False)
class Comparison:
    """Answers of several systems to the same prompts.

    Attributes:
        prompts: Texts or lists of messages.
        answers: By system name, the system's answers in the order of the prompts.
        baseline: Name of the system that the others are compared with.
        config: Settings of the comparison: `systems` with their descriptions, `rewards` with their weights,
            `random_state`, `confidence` of the intervals, `versions` of libraries, the `command`.
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
        weights = self.config["rewards"]
        names = list(weights) if reward is None else [_known(reward, weights, "reward")]
        answers = self.answers[_known(system, self.answers, "system")]
        table = np.array([[answer.rewards[name] for answer in answers] for name in names], dtype=np.float64)
        factors = [weights[name] if reward is None else 1.0 for name in names]
        scored = ~np.isnan(table)
        total = np.where(scored, table * np.array(factors)[:, None], 0.0).sum(axis=0)
        rewards: NDArray[np.float64] = np.where(scored.any(axis=0), total, np.nan)
        return rewards

    def preference(self, system: str, other: str, reward: str | None = None) -> Preference:
        """Wins, draws and losses of a system's answers against another's.

        Args:
            system: Name of the system whose wins are counted.
            other: Name of the system it is compared with.
            reward: Name of a reward function; by default the weighted sum.

        Raises:
            OptionsError: If there is no such system or reward.
        """
        return Preference.between(
            self.rewards(system, reward),
            self.rewards(other, reward),
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
            "passes/token": passes / max(1, tokens),
            "passes": passes / max(1, len(answers)),
            "seconds": seconds,
        }


def compare(
    systems: Sequence[System],
    prompts: Source,
    rewards: Rewards,
    output: str | Path | None = None,
    *,
    harmful: RewardFunction | None = None,
    baseline: str = "plain",
    chunk: int = 32,
    random_state: int = 0,
    confidence: float = CONFIDENCE,
    facts: Mapping[str, Any] | None = None,
    verbose: bool = False,
) -> Comparison:
    """Asks all systems the same prompts with the same seeds, and scores the answers.

    Args:
        systems: Systems to compare, each with a different name.
        prompts: Prompts, from any source that `read_prompts` reads; other columns go to the reward functions.
        rewards: A `WeightedRewards`, or one or several reward functions, which are summed.
        output: Folder for all results, written as they come. An interrupted comparison resumes there when called again
            and ends with the same answers. By default, results are only kept in memory.
        harmful: Classifier with the signature of a reward function. An answer is harmful where it returns True or a
            number above 0, as beaver's cost does.
        baseline: Name of the system that the others are compared with. Divergence is measured from its policy model.
        chunk: Number of prompts that a system answers before the next system's turn. Answers do not depend on it.
        random_state: Seed from which the seed of each prompt is derived; also the seed of the intervals.
        confidence: Level of the preference rates' intervals, in (0, 1).
        facts: Other plain values that the results depend on, such as the source of a reward model.
        verbose: Whether to show a progress bar.

    Raises:
        OptionsError: If names clash, the baseline is not a system, or a number is out of range.
        TrainingError: If the folder holds another comparison.
        DataError: If a row has no prompt.
        PromptError: If a prompt is too long.
        RewardError: If a reward function fails.
    """
    by_name = {system.name: system for system in systems}
    _check(systems, baseline, chunk, confidence)
    rows = read_prompts(prompts)
    scoring = Scoring(rewards, harmful, by_name[baseline].answering, random_state)
    scored_by = describe_rewards(scoring.rewards)
    config: Config = {
        "systems": {name: system.describe() for name, system in by_name.items()},
        "prompts": {"count": len(rows), "digest": digest(rows)},
        "rewards": {name: described["weight"] for name, described in scored_by.items()},
        "scored by": scored_by,
        "harmful": scoring.harmful_name,
        "judged by": None if scoring.harmful is None else describe_rewards(scoring.harmful),
        "baseline": baseline,
        "random_state": random_state,
        "facts": dict(facts or {}),
        "confidence": confidence,
        "versions": library_versions(),
        "command": command_line(),
    }
    asked = [row["prompt"] for row in rows]
    store = None if output is None else ComparisonStore(output)
    answers: dict[str, list[Answer]] = {name: [] for name in by_name}
    with job_lock(None if store is None else store.folder):
        if store is not None:
            store.begin(config, asked)
            answers = {name: store.read_answers(name) for name in by_name}
        _add_missing_answers(systems, rows, scoring, answers, store, chunk, verbose=verbose)
    return Comparison(asked, answers, baseline, config)


def _add_missing_answers(
    systems: Sequence[System],
    rows: Sequence[Row],
    scoring: Scoring,
    answers: dict[str, list[Answer]],
    store: ComparisonStore | None,
    chunk: int,
    *,
    verbose: bool,
) -> None:
    """Adds the missing answers to `answers` and to the store, chunk by chunk and system by system."""
    missing = sum(len(rows) - len(system_answers) for system_answers in answers.values())
    with progress_bar("answers", shown=verbose, transient=True) as progress:
        bar = progress.add_task("comparing", total=missing)
        for start in range(0, len(rows), chunk):
            for system in systems:
                system_answers = answers[system.name]
                numbers = range(max(start, len(system_answers)), min(start + chunk, len(rows)))
                if numbers:
                    new_answers = scoring.answers(system, rows, numbers)
                    if store is not None:
                        store.append(system.name, new_answers)
                    system_answers += new_answers
                    progress.update(bar, advance=len(new_answers))


def _check(systems: Sequence[System], baseline: str, chunk: int, confidence: float) -> None:
    names = [system.name for system in systems]
    if len(set(names)) < len(names) or "" in names:
        raise OptionsError(f"Each system needs a different name, but the names are {', '.join(map(repr, names))}.")
    if baseline not in names:
        raise OptionsError(
            f"The baseline {baseline!r} is none of the systems {', '.join(map(repr, names))}. Give the name of one."
        )
    if chunk < 1 or not 0 < confidence < 1:
        raise OptionsError(f"chunk={chunk} must be at least 1, and confidence={confidence} between 0 and 1.")


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


def _known(name: str, names: Any, what: str) -> str:
    if name not in names:
        raise OptionsError(f"There is no {what} {name!r} in this comparison. Give one of {', '.join(names)}.")
    return name
