"""Shards of labeled tokens, each computed once and written atomically by one of the processes.

A shard depends only on its job. So a killed run resumes at the next missing shard and ends byte-identical, and
several processes (`torchrun --nproc_per_node 2 script.py`) give the same labels as one.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from accelerate import PartialState
from torch import Tensor

from langchain_mara.exceptions import DataError, TrainingError
from langchain_mara_training.engines.blocks import Engine
from langchain_mara_training.labeling.shard_list import (
    LIST_NAME,
    MANIFEST_NAME,
    SHARD_NAME,
    close_list,
    is_intact,
    read_list,
    write_shard,
)
from langchain_mara_training.labeling.token_labels import LabeledTokens, TokenLabels
from langchain_mara_training.storage.atomic import remove_temporary_files
from langchain_mara_training.storage.callbacks import JobCallback, JobEvents, as_callbacks, job_events
from langchain_mara_training.storage.distributed import processes
from langchain_mara_training.storage.identity.job_identity import claim
from langchain_mara_training.storage.lock import job_lock
from langchain_mara_training.storage.progress import progress_bar

_POLL_SECONDS = 0.2
_JOB = "label"

Job = TypeVar("Job")


class Labeler(Protocol):
    """What labels tokens."""

    def compute(self, job: Any) -> LabeledTokens:
        """The labels of a job's tokens, which depend on the job alone."""


class Shard(NamedTuple):
    """A shard to compute.

    Attributes:
        number: Its number, from 0.
        job: What the labeler labels.
        seed: Seed of the order of its rows.
        folder: Folder to write it to; None to return it.
    """

    number: int
    job: Any
    seed: int
    folder: Path | None


class ComputedShard(NamedTuple):
    """What became of a shard.

    Attributes:
        labels: Number of its labels.
        accept_share: Share of the labels that accept; NaN if there are none.
        tokens: The labels, if they were not written.
    """

    labels: int
    accept_share: float
    tokens: LabeledTokens | None


def compute_shard(labeler: Labeler, shard: Shard) -> ComputedShard:
    """Labels a shard's tokens, and writes them if there is a folder. Every engine calls this function.

    Args:
        labeler: What labels them.
        shard: The shard.
    """
    tokens = _shuffled(labeler.compute(shard.job), shard.seed)
    if shard.folder is not None:
        write_shard(shard.folder, shard.number, tokens._asdict())
    return ComputedShard(len(tokens.labels), _mean(tokens.labels), tokens if shard.folder is None else None)


def label_shards(
    jobs: Sequence[Job],
    content: Callable[[Job], Any],
    engine: Engine,
    *,
    sizes: Sequence[int],
    identity: Callable[[], Mapping[str, Any]],
    output: str | Path | None,
    seed: int,
    description: str,
    callbacks: JobCallback | Sequence[JobCallback] = (),
) -> TokenLabels:
    """Computes the missing shards and returns the labels of all shards.

    Args:
        jobs: What each shard holds, perhaps by number.
        content: Gives what the labeler labels; called when a shard's turn comes.
        engine: What computes the shards. Its worker is a `Labeler`.
        sizes: Size of each job in tokens, for the progress bar.
        identity: Gives everything the labels depend on, by name; a folder with another identity is refused. It is
            called only if there is a folder.
        output: Folder of the shards; by default they stay in memory.
        seed: Seed of the order of rows within a shard.
        description: Text of the progress bar.
        callbacks: One or several, told of the shards of this process: a step is a shard, and so is a checkpoint if
            there is a folder. If one stops the job, the labels are those of the shards done so far.

    Raises:
        TrainingError: If the folder holds other labels, another process works there, or a callback stops one of several
            processes.
        RewardError: If a reward function cannot be told from others.
        DataError: If several processes run and there is no folder, or no token gets a label.
    """
    state = processes()
    if output is None and state.num_processes > 1:
        raise DataError("Several processes share their labels through a folder. Give output=.")
    if output is None:
        with job_events(callbacks, _JOB, "shards", len(jobs)) as events:
            shards = (Shard(i, content(job), seed + i, None) for i, job in enumerate(jobs))
            kept = _computed(engine, shards, sizes, description, events)
            return TokenLabels.of([shard.tokens for shard in kept if shard.tokens is not None])
    folder = Path(output).expanduser()
    as_callbacks(callbacks)
    with job_lock(folder, state):
        described = {**identity(), "shards": len(jobs), "seed": seed}
        claim(folder / MANIFEST_NAME, described, lambda: _holds_shards(folder))
        listed = read_list(folder)
        own_numbers = range(state.process_index, len(jobs), state.num_processes)
        missing = [i for i in own_numbers if i not in listed or not is_intact(folder, listed[i])]
        done = len(own_numbers) - len(missing)
        with job_events(callbacks, _JOB, "shards", len(own_numbers), done) as events:
            shards = (Shard(i, content(jobs[i]), seed + i, folder) for i in missing)
            computed = _computed(engine, shards, [sizes[i] for i in missing], description, events)
            if len(computed) < len(missing):
                return _labels_so_far(folder, state)
            _wait_for(folder, len(jobs))
            if state.is_main_process:
                close_list(folder)
                # Nobody writes any more, but a worker that was killed may have left a part of a shard.
                remove_temporary_files(folder, alone=True)
    return TokenLabels.of_files([folder / SHARD_NAME.format(i) for i in range(len(jobs))])


def _computed(
    engine: Engine, shards: Iterable[Shard], sizes: Sequence[int], description: str, events: JobEvents
) -> list[ComputedShard]:
    """Computes shards, of which the sizes in tokens are known, until a callback stops it."""
    computed: list[ComputedShard] = []
    before = events.progress.done
    with progress_bar("tokens", transient=True) as progress, closing(engine.map(compute_shard, shards)) as results:
        bar = progress.add_task(description, total=sum(sizes))
        for size, shard in zip(sizes, results, strict=True):
            computed.append(shard)
            progress.update(bar, advance=size)
            stop = events.step(before + len(computed), labels=shard.labels, accept_share=shard.accept_share)
            if shard.tokens is None:
                events.checkpoint()
            if stop:
                break
    return computed


def _mean(labels: Tensor) -> float:
    return float(labels.double().mean())


def _labels_so_far(folder: Path, state: PartialState) -> TokenLabels:
    if state.num_processes > 1:
        raise TrainingError(
            "A callback stopped one of several processes, and the others would wait for its shards for ever. Stop "
            "labeling in one process only; with several, raise an exception, which ends them all."
        )
    return TokenLabels.of_files([folder / s.file for _, s in sorted(read_list(folder).items()) if is_intact(folder, s)])


def _holds_shards(folder: Path) -> bool:
    start = SHARD_NAME.partition("{")[0]
    return any(file.name == LIST_NAME or file.name.startswith(start) for file in folder.iterdir())


def _shuffled(shard: LabeledTokens, seed: int) -> LabeledTokens:
    generator = torch.Generator().manual_seed(seed)
    return shard.where(torch.randperm(len(shard.labels), generator=generator))


def _wait_for(folder: Path, count: int) -> None:
    # Other processes may still compute theirs. If one of them fails, torchrun ends this process too.
    waiting = set(range(count))
    while True:
        listed = read_list(folder)
        waiting = {i for i in waiting if i not in listed or not is_intact(folder, listed[i])}
        if not waiting:
            return
        time.sleep(_POLL_SECONDS)
