"""Asks systems the same prompts and scores their answers, chunk by chunk, in a folder where it can resume."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from langchain_mara.exceptions import OptionsError
from langchain_mara_training.data.readers import Row, Source, read_prompts
from langchain_mara_training.engines.blocks import Engine, InProcess
from langchain_mara_training.evaluation.comparison_store import Answer, ComparisonStore, digest
from langchain_mara_training.evaluation.preference_rate import CONFIDENCE
from langchain_mara_training.evaluation.results import Comparison
from langchain_mara_training.evaluation.scoring import Asked, Judges, Scoring
from langchain_mara_training.evaluation.systems import System
from langchain_mara_training.generation.generate import Rewards
from langchain_mara_training.rewards.calling import RewardFunction
from langchain_mara_training.storage.callbacks import JobCallback, JobEvents, as_callbacks, job_events
from langchain_mara_training.storage.lock import job_lock
from langchain_mara_training.storage.progress import progress_bar
from langchain_mara_training.storage.records import Config, command_line, library_versions

__all__ = ["Answer", "Comparison", "compare"]

CHUNK_BATCHES = 4
"""Suggested number of batches per chunk. In a batch, the next prompt takes the slot of a finished one, so a chunk of
several batches leaves fewer slots empty."""


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
    tolerance: float | None = None,
    facts: Mapping[str, Any] | None = None,
    callbacks: JobCallback | Sequence[JobCallback] = (),
    verbose: bool = False,
    engine: Engine | None = None,
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
        tolerance: Largest difference in reward that counts as a draw; by default what rounding can cause, see
            `Comparison.tolerance`. Answers with the same text are always a draw.
        facts: Other plain values that the results depend on, such as the source of a reward model.
        callbacks: One or several `JobCallback`s: a step is a chunk that all systems answered, and so is a checkpoint if
            there is an `output`. If one stops the job, you get the comparison on the prompts so far, and the folder can
            resume.
        verbose: Whether to show a progress bar.
        engine: What asks the systems: `RayData` with a `Scoring` of the same systems; by default this process.

    Raises:
        OptionsError: If names clash, the baseline is not a system, or a number is out of range.
        TrainingError: If the folder holds another comparison.
        DataError: If a row has no prompt.
        PromptError: If a prompt is too long.
        RewardError: If a reward function fails.
    """
    by_name = {system.name: system for system in systems}
    _check(systems, baseline, chunk)
    check_statistics(confidence, tolerance)
    as_callbacks(callbacks)
    rows = read_prompts(prompts)
    judges = Judges(rewards, harmful)
    engine = engine or InProcess(Scoring(judges, systems, by_name[baseline].answering, random_state))
    config: Config = {
        "systems": {name: system.describe() for name, system in by_name.items()},
        "prompts": {"count": len(rows), "digest": digest(rows)},
        **judges.describe(),
        "baseline": baseline,
        "random_state": random_state,
        "facts": dict(facts or {}),
        "confidence": confidence,
        "tolerance": tolerance,
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
        comparison = Comparison(asked, answers, baseline, config)
        with job_events(callbacks, "compare", "prompts", len(rows), _answered_by_all(answers)) as events:
            missing = list(_missing(rows, answers, chunk))
            _add_answers(missing, engine, comparison, store, events, verbose=verbose)
    return _first_prompts(comparison, _answered_by_all(answers))


def _missing(rows: Sequence[Row], answers: Mapping[str, Sequence[Answer]], chunk: int) -> Iterator[Asked]:
    """What is still to be asked, chunk by chunk and system by system."""
    for start in range(0, len(rows), chunk):
        end = min(start + chunk, len(rows))
        left = {name: range(max(start, len(given)), end) for name, given in answers.items() if len(given) < end}
        for name, numbers in left.items():
            yield Asked(name, numbers, rows[numbers.start : end], ends_chunk=name == list(left)[-1])


def _add_answers(
    missing: Sequence[Asked],
    engine: Engine,
    comparison: Comparison,
    store: ComparisonStore | None,
    events: JobEvents,
    *,
    verbose: bool,
) -> None:
    """Adds the missing answers to the comparison and to the store, in their order."""
    answers = comparison.answers
    results = engine.map(Scoring.answers, missing)
    with progress_bar("answers", shown=verbose, transient=True) as progress, closing(results):
        bar = progress.add_task("comparing", total=sum(len(asked.numbers) for asked in missing))
        for asked, new_answers in zip(missing, results, strict=True):
            if store is not None:
                store.append(asked.system, new_answers)
            answers[asked.system] += new_answers
            progress.update(bar, advance=len(new_answers))
            done = _answered_by_all(answers)
            if not asked.ends_chunk or done == events.progress.done:
                continue
            so_far = _first_prompts(comparison, done)
            stop = events.step(done, **{name: _mean(so_far.rewards(name)) for name in answers})
            if store is not None:
                events.checkpoint()
            if stop:
                return


def _answered_by_all(answers: Mapping[str, Sequence[Answer]]) -> int:
    return min(len(system_answers) for system_answers in answers.values())


def _first_prompts(comparison: Comparison, count: int) -> Comparison:
    answers = {name: system_answers[:count] for name, system_answers in comparison.answers.items()}
    return replace(comparison, prompts=comparison.prompts[:count], answers=answers)


def _mean(rewards: NDArray[np.float64]) -> float:
    """Mean of the rewards that are not NaN; NaN if there are none."""
    scored = rewards[~np.isnan(rewards)]
    return float(scored.mean()) if scored.size else float("nan")


def _check(systems: Sequence[System], baseline: str, chunk: int) -> None:
    names = [system.name for system in systems]
    if len(set(names)) < len(names) or "" in names:
        raise OptionsError(f"Each system needs a different name, but the names are {', '.join(map(repr, names))}.")
    if baseline not in names:
        raise OptionsError(
            f"The baseline {baseline!r} is none of the systems {', '.join(map(repr, names))}. Give the name of one."
        )
    if chunk < 1:
        raise OptionsError(f"chunk={chunk} must be at least 1.")


def check_statistics(confidence: float, tolerance: float | None) -> None:
    """Refuses a level of intervals or a tolerance of draws that is out of range.

    Raises:
        OptionsError: If one is.
    """
    if not 0 < confidence < 1 or not 0 <= (tolerance or 0.0) < float("inf"):
        raise OptionsError(
            f"confidence={confidence} must be between 0 and 1, and tolerance={tolerance} at least 0 and finite."
        )
