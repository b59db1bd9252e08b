"""Scores the kept answers of a comparison with other rewards, without asking the systems again."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from langchain_mara.exceptions import DataError, OptionsError, TrainingError
from langchain_mara_training.data.readers import Row, Source, read_prompts
from langchain_mara_training.evaluation.comparison import check_statistics
from langchain_mara_training.evaluation.comparison_store import Answer, ComparisonStore, digest
from langchain_mara_training.evaluation.results import Comparison
from langchain_mara_training.evaluation.scoring import Judges
from langchain_mara_training.generation.generate import GeneratedAnswer, Rewards
from langchain_mara_training.rewards.calling import RewardFunction
from langchain_mara_training.storage.identity.job_identity import is_known
from langchain_mara_training.storage.lock import job_lock
from langchain_mara_training.storage.progress import progress_bar
from langchain_mara_training.storage.records import Config, command_line, library_versions


def rescore(
    comparison: Comparison | str | Path,
    rewards: Rewards,
    output: str | Path | None = None,
    *,
    prompts: Source | None = None,
    harmful: RewardFunction | None = None,
    chunk: int = 32,
    confidence: float | None = None,
    tolerance: float | None = None,
    facts: Mapping[str, Any] | None = None,
    verbose: bool = False,
) -> Comparison:
    """Scores the answers of a comparison with other rewards. The systems are not asked again.

    A reward function that scored the comparison before is not called again: its rewards are kept, so an answer never
    has two rewards by the same function. What a system was chosen or guided by stays as it was.

    Args:
        comparison: The comparison, or its folder. It stays as it is.
        rewards: A `WeightedRewards`, or one or several reward functions, which are summed.
        output: Folder for the rescored comparison. An interrupted job resumes there. By default, results are only kept
            in memory.
        prompts: The prompts that were answered, with the columns that the reward functions need besides them.
        harmful: Classifier as for `compare`; by default, its earlier verdicts are kept.
        chunk: Number of answers to score at a time.
        confidence: Level of the preference rates' intervals; by default that of the comparison.
        tolerance: Largest difference in reward that counts as a draw; by default what rounding can cause.
        facts: Other plain values that the results depend on, such as the source of a reward model.
        verbose: Whether to show a progress bar.

    Raises:
        OptionsError: If a number is out of range.
        DataError: If the prompts are not those that were answered, or the files of the comparison are damaged.
        TrainingError: If the folder holds no finished comparison, or one of an earlier version, which kept no token
            ids; or if the output holds another comparison, such as the one to rescore.
        RewardError: If a reward function fails.
    """
    earlier = comparison if isinstance(comparison, Comparison) else Comparison.load(comparison)
    level = earlier.config["confidence"] if confidence is None else confidence
    check_statistics(level, tolerance)
    if chunk < 1:
        raise OptionsError(f"chunk={chunk} must be at least 1.")
    _require_token_ids(earlier)
    judges = Judges(rewards, harmful)
    rows = _rows(earlier, prompts)
    config = _config(earlier, judges, None if prompts is None else rows, facts) | {
        "confidence": level,
        "tolerance": tolerance,
    }
    # Other columns may change what the same function says.
    kept = _kept_rewards(earlier.config, config) if config["prompts"] == earlier.config.get("prompts") else {}
    store = None if output is None else ComparisonStore(output)
    answers: dict[str, list[Answer]] = {name: [] for name in earlier.answers}
    with job_lock(None if store is None else store.folder):
        if store is not None:
            store.begin(config, earlier.prompts)
            answers = {name: store.read_answers(name) for name in answers}
        _score_missing(judges, rows, earlier.answers, answers, kept, store, chunk, verbose=verbose)
    return Comparison(earlier.prompts, answers, earlier.baseline, config)


def _score_missing(
    judges: Judges,
    rows: Sequence[Row],
    answers: Mapping[str, list[Answer]],
    rescored: Mapping[str, list[Answer]],
    kept: Mapping[str, str],
    store: ComparisonStore | None,
    chunk: int,
    *,
    verbose: bool,
) -> None:
    """Adds the answers that are not rescored yet to `rescored` and to the store, chunk by chunk."""
    missing = {name: own[len(rescored[name]) :] for name, own in answers.items()}
    with progress_bar("answers", shown=verbose, transient=True) as progress:
        bar = progress.add_task("scoring", total=sum(map(len, missing.values())))
        for system, own in missing.items():
            for start in range(0, len(own), chunk):
                part = own[start : start + chunk]
                new_answers = _rescored(judges, [rows[answer.number] for answer in part], part, kept)
                if store is not None:
                    store.append(system, new_answers)
                rescored[system].extend(new_answers)
                progress.update(bar, advance=len(part))


def _require_token_ids(comparison: Comparison) -> None:
    if any(answer.token_ids is None for answers in comparison.answers.values() for answer in answers):
        raise TrainingError(
            "The comparison is of an earlier version, which did not keep the token ids that reward functions may read. "
            "Compare again."
        )


def _rows(comparison: Comparison, prompts: Source | None) -> list[Row]:
    """The rows that were answered, with the columns that are given."""
    if prompts is None:
        return [{"prompt": prompt} for prompt in comparison.prompts]
    rows = read_prompts(prompts)
    if len(rows) != len(comparison.prompts):
        raise DataError(
            f"There are {len(rows)} prompts, but the comparison answered {len(comparison.prompts)}. Give its prompts, "
            "with the same limit."
        )
    for number, (row, answered) in enumerate(zip(rows, comparison.prompts, strict=True)):
        if row["prompt"] != answered:
            raise DataError(
                f"Row {number} has the prompt {str(row['prompt'])[:60]!r}, but the comparison answered "
                f"{str(answered)[:60]!r}. Give the prompts of the comparison, in their order."
            )
    return rows


def _config(
    comparison: Comparison, judges: Judges, prompts: Sequence[Row] | None, facts: Mapping[str, Any] | None
) -> Config:
    earlier, described = comparison.config, judges.describe()
    if judges.harmful is None:
        described |= {name: earlier.get(name) for name in ("harmful", "judged by")}
    answered = earlier.get("prompts") if prompts is None else {"count": len(prompts), "digest": digest(prompts)}
    return {
        **earlier,
        **described,
        "prompts": answered,
        "facts": dict(facts or {}),
        "versions": library_versions(),
        "command": command_line(),
    }


def _kept_rewards(earlier: Config, config: Config) -> dict[str, str]:
    """For each reward function that scored the comparison before, by its name now, its name there."""
    there = {described["code"]: name for name, described in earlier.get("scored by", {}).items()}
    now = {name: described["code"] for name, described in config["scored by"].items()}
    return {name: there[code] for name, code in now.items() if code in there and is_known(code)}


def _rescored(judges: Judges, rows: Sequence[Row], answers: Sequence[Answer], kept: Mapping[str, str]) -> list[Answer]:
    known: dict[str, NDArray[np.float64]] = {
        name: np.array([answer.rewards[there] for answer in answers], dtype=np.float64) for name, there in kept.items()
    }
    generated = [GeneratedAnswer(answer.completion, answer.token_ids or [], []) for answer in answers]
    verdicts = judges.verdicts(rows, generated, known)
    return [answer.model_copy(update=verdict) for answer, verdict in zip(answers, verdicts, strict=True)]
