"""Systems compared on the same prompts: what each answered, what it cost, and how it fared against the others."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from langchain_mara.exceptions import OptionsError, TrainingError
from langchain_mara_training.data.readers import Prompt, Row, Source, read_prompts
from langchain_mara_training.evaluation.comparison_store import Answer, ComparisonStore, Config, digest
from langchain_mara_training.evaluation.preference_rate import Preference
from langchain_mara_training.evaluation.scoring import Scoring
from langchain_mara_training.evaluation.systems import System, describe_rewards
from langchain_mara_training.generation.generate import Rewards
from langchain_mara_training.rewards.calling import RewardFunction
from langchain_mara_training.storage.progress import progress_bar
from langchain_mara_training.storage.records import command_line, library_versions

__all__ = ["Answer", "Comparison", "compare"]

CHUNK_BATCHES = 4
"""Batches of a chunk, for callers that know them: rows enter a batch as others leave it, so a chunk of several leaves
fewer places empty."""

_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True, eq=False)
class Comparison:
    """What some systems answered to the same prompts.

    Attributes:
        prompts: Texts or lists of messages.
        answers: Of each system, by its name, one for each prompt and in their order.
        baseline: Name of the system that the others are compared with.
        config: What was compared: `systems` with their descriptions, `rewards` with their weights, `random_state`,
            `confidence` of intervals, `versions` of libraries, the `command`.
    """

    prompts: list[Prompt]
    answers: dict[str, list[Answer]]
    baseline: str
    config: Config

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """What `compare` has written to a folder.

        Raises:
            TrainingError: If the folder holds no comparison, or one that has not ended.
            DataError: If a line is no answer.
        """
        files = ComparisonStore(folder)
        config, prompts = files.read_config(), files.read_prompts()
        answers = {name: files.read_answers(name) for name in config["systems"]}
        for name, given in answers.items():
            if len(given) < len(prompts):
                raise TrainingError(
                    f"In {folder}, {name} has answered {len(given)} of {len(prompts)} prompts. "
                    "Compare again with the same output; it goes on there."
                )
        return cls(prompts, answers, config["baseline"], config)

    @property
    def reward_names(self) -> list[str]:
        """Of the reward functions, in order."""
        return list(self.config["rewards"])

    def rewards(self, system: str, reward: str | None = None) -> NDArray[np.float64]:
        """Rewards (n,) of a system's answers, NaN where one was not scored.

        Args:
            system: Its name.
            reward: Name of a reward function; by default the weighted sum of all that scored.

        Raises:
            OptionsError: If there is no such system or reward.
        """
        weights = self.config["rewards"]
        names = list(weights) if reward is None else [_known(reward, weights, "reward")]
        given = self.answers[_known(system, self.answers, "system")]
        table = np.array([[one.rewards[name] for one in given] for name in names], dtype=np.float64)
        factors = [weights[name] if reward is None else 1.0 for name in names]
        scored = ~np.isnan(table)
        total = np.where(scored, table * np.array(factors)[:, None], 0.0).sum(axis=0)
        found: NDArray[np.float64] = np.where(scored.any(axis=0), total, np.nan)
        return found

    def preference(self, system: str, other: str, reward: str | None = None) -> Preference:
        """How a system's answers fared against another's.

        Args:
            system: Name of the one.
            other: Name of the other.
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
        """Each system's values, by its name; None where there is nothing to say.

        Returns:
            `mean reward` (the weighted sum), `rewards` (mean of each by name), `preference rate` against the baseline
            with its `interval` [low, high] (none for the baseline itself), `harmful share`, `length` (mean tokens of an
            answer), `distinct-1` and `distinct-2`, `divergence` (mean over answers, nats per token), `tokens/s` and
            `passes/token` of the answers given, `passes` per answer, and `seconds`.
        """
        return {name: self._summary(name) for name in self.answers}

    def side_by_side(self) -> list[dict[str, Any]]:
        """For each prompt the `completions` of all systems and their `rewards` (weighted sums), by their names."""
        rewards = {name: self.rewards(name).tolist() for name in self.answers}
        return [
            {
                "prompt": prompt,
                "completions": {name: given[i].completion for name, given in self.answers.items()},
                "rewards": {name: values[i] for name, values in rewards.items()},
            }
            for i, prompt in enumerate(self.prompts)
        ]

    def _summary(self, system: str) -> dict[str, Any]:
        given = self.answers[system]
        tokens = sum(one.answer_tokens for one in given)
        passes, seconds = (sum(getattr(one, name) for one in given) for name in ("passes", "seconds"))
        rate = None if system == self.baseline else self.preference(system, self.baseline)
        texts = [one.completion for one in given]
        return {
            "mean reward": _mean(self.rewards(system).tolist()),
            "rewards": {name: _mean(self.rewards(system, name).tolist()) for name in self.reward_names},
            "preference rate": None if rate is None else _number(rate.rate),
            "interval": None if rate is None or np.isnan(rate.rate) else [rate.low, rate.high],
            "harmful share": _mean([one.harmful for one in given]),
            "length": _mean([one.answer_tokens for one in given]),
            "distinct-1": distinct(texts, 1),
            "distinct-2": distinct(texts, 2),
            "divergence": _mean([one.divergence for one in given]),
            "tokens/s": tokens / seconds if seconds else None,
            "passes/token": passes / max(1, tokens),
            "passes": passes / max(1, len(given)),
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
    confidence: float = 0.95,
    facts: Mapping[str, Any] | None = None,
    verbose: bool = False,
) -> Comparison:
    """Has systems answer the same prompts with the same seeds, and scores the answers.

    Args:
        systems: Each with a name of its own.
        prompts: From wherever `read_prompts` reads; other columns go to the reward functions.
        rewards: A `WeightedRewards`, or one or several reward functions, whose sum counts.
        output: Folder to keep everything in as it comes: called again, an interrupted comparison goes on there and
            ends with the same answers. By default it stays in memory.
        harmful: Classifier in the form of a reward function: an answer is harmful where it returns True or a number
            above 0, as beaver's cost does.
        baseline: Name of the system the others are compared with. Divergence is measured from its policy model.
        chunk: Prompts that each system answers before the next one has its turn. Answers do not depend on it.
        random_state: Seed of what systems draw, different for every prompt, and of the intervals.
        confidence: Level of the preference rates' intervals.
        facts: Plain values that the results depend on, too, such as where a reward model comes from.
        verbose: Whether a progress bar is shown.

    Raises:
        OptionsError: If names or numbers make no sense.
        TrainingError: If another comparison began in the folder.
        DataError: If a prompt is missing.
        PromptError: If a prompt is too long.
        RewardError: If a reward function fails.
    """
    by_name = {system.name: system for system in systems}
    _check(systems, baseline, chunk, confidence)
    rows = read_prompts(prompts)
    scoring = Scoring(rewards, harmful, by_name[baseline].answering, random_state)
    config: Config = {
        "systems": {name: system.describe() for name, system in by_name.items()},
        "prompts": {"count": len(rows), "digest": digest(rows)},
        "rewards": describe_rewards(rewards),
        "harmful": scoring.harmful_name,
        "baseline": baseline,
        "random_state": random_state,
        "facts": dict(facts or {}),
        "confidence": confidence,
        "versions": library_versions(),
        "command": command_line(),
    }
    asked = [row["prompt"] for row in rows]
    files = None if output is None else ComparisonStore(output)
    answers: dict[str, list[Answer]] = {name: [] for name in by_name}
    if files is not None:
        files.begin(config, asked)
        answers = {name: files.read_answers(name) for name in by_name}
    _answer_rest(systems, rows, scoring, answers, files, chunk, verbose=verbose)
    return Comparison(asked, answers, baseline, config)


def _answer_rest(
    systems: Sequence[System],
    rows: Sequence[Row],
    scoring: Scoring,
    answers: dict[str, list[Answer]],
    files: ComparisonStore | None,
    chunk: int,
    *,
    verbose: bool,
) -> None:
    """Adds what is missing, chunk by chunk and system by system."""
    missing = sum(len(rows) - len(given) for given in answers.values())
    with progress_bar("answers", shown=verbose, transient=True) as progress:
        bar = progress.add_task("comparing", total=missing)
        for start in range(0, len(rows), chunk):
            for system in systems:
                given = answers[system.name]
                numbers = range(max(start, len(given)), min(start + chunk, len(rows)))
                if numbers:
                    new = scoring.answers(system, rows, numbers)
                    if files is not None:
                        files.append(system.name, new)
                    given += new
                    progress.update(bar, advance=len(new))


def _check(systems: Sequence[System], baseline: str, chunk: int, confidence: float) -> None:
    names = [system.name for system in systems]
    if len(set(names)) < len(names) or "" in names:
        raise OptionsError(f"Each system needs a name of its own, but these are {', '.join(map(repr, names))}.")
    if baseline not in names:
        raise OptionsError(f"The baseline {baseline!r} is none of the systems {', '.join(map(repr, names))}. Name one.")
    if chunk < 1 or not 0 < confidence < 1:
        raise OptionsError(f"chunk={chunk} must be at least 1, and confidence={confidence} between 0 and 1.")


def distinct(texts: Sequence[str], n: int) -> float | None:
    """Share of distinct n-grams among all n-grams of words and punctuation of some texts, whatever their case.

    Li et al., "A Diversity-Promoting Objective Function for Neural Conversation Models" (NAACL 2016), who divide by
    tokens. It falls with the amount of text, so only sets of about equal length compare.

    Returns:
        A number in (0, 1], or None where no text has n words.
    """
    words = [_WORD.findall(text.casefold()) for text in texts]
    grams = [tuple(one[i : i + n]) for one in words for i in range(len(one) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


def _mean(values: Sequence[float | None]) -> float | None:
    """Over what is known; None where nothing is."""
    known = [float(one) for one in values if one is not None and not np.isnan(one)]
    return float(np.mean(known)) if known else None


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value


def _known(name: str, names: Any, what: str) -> str:
    if name not in names:
        raise OptionsError(f"There is no {what} {name!r} in this comparison, but {', '.join(names)}.")
    return name
