"""Shards of labeled tokens, each computed once and written atomically by one of the processes.

A shard depends only on its job. So a killed run resumes at the next missing shard and ends byte-identical, and
several processes (`torchrun --nproc_per_node 2 script.py`) give the same labels as one.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save

from langchain_mara.exceptions import DataError, TrainingError
from langchain_mara_training.labeling.token_labels import SHARD_NAME, LabeledTokens, TokenLabels
from langchain_mara_training.storage.atomic import write_atomically
from langchain_mara_training.storage.distributed import processes
from langchain_mara_training.storage.progress import progress_bar

MANIFEST_NAME = "labels.json"
_POLL_SECONDS = 0.2

Job = TypeVar("Job")


def label_shards(
    jobs: Sequence[Job],
    compute: Callable[[Job], LabeledTokens],
    *,
    sizes: Sequence[int],
    identity: Mapping[str, Any],
    output: str | Path | None,
    seed: int,
    description: str,
) -> TokenLabels:
    """Computes the missing shards and returns the labels of all shards.

    Args:
        jobs: Job of each shard.
        compute: Function that labels a job's tokens and depends only on the job.
        sizes: Size of each job in tokens, for the progress bar.
        identity: Everything the labels depend on, by name; a folder with another identity is refused.
        output: Folder of the shards; by default they stay in memory.
        seed: Seed of the order of rows within a shard.
        description: Text of the progress bar.

    Raises:
        TrainingError: If the folder holds other labels.
        DataError: If several processes run and there is no folder, or no token gets a label.
    """
    state = processes()
    if output is None and state.num_processes > 1:
        raise DataError("Several processes share their labels through a folder. Give output=.")
    folder = None if output is None else Path(output).expanduser()
    if folder is not None:
        _claim(folder, {**identity, "shards": len(jobs), "seed": seed})
    own_numbers = range(state.process_index, len(jobs), state.num_processes)
    in_memory = []
    missing = [i for i in own_numbers if folder is None or not (folder / SHARD_NAME.format(i)).exists()]
    with progress_bar("tokens", transient=True) as progress:
        bar = progress.add_task(description, total=sum(sizes[i] for i in missing))
        for i in missing:
            shard = _shuffled(compute(jobs[i]), seed + i)
            if folder is None:
                in_memory.append(shard)
            else:
                write_atomically(folder / SHARD_NAME.format(i), save(shard._asdict()))
            progress.update(bar, advance=sizes[i])
    if folder is None:
        return TokenLabels.of(in_memory)
    _wait_for([folder / SHARD_NAME.format(i) for i in range(len(jobs))])
    return TokenLabels.load(folder)


def _claim(folder: Path, identity: Mapping[str, Any]) -> None:
    """Writes the identity of the labels to their folder, or checks that the folder holds the same one."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / MANIFEST_NAME
    if manifest.exists():
        with suppress(ValueError):
            written = json.loads(manifest.read_text(encoding="utf-8"))
            differing = sorted(name for name in {*written, *identity} if written.get(name) != identity.get(name))
            if not differing:
                return
            raise TrainingError(
                f"{folder} holds labels that differ in {', '.join(differing)}. Give another folder, or delete this one."
            )
    write_atomically(manifest, json.dumps(identity, indent=2).encode())


def _shuffled(shard: LabeledTokens, seed: int) -> LabeledTokens:
    generator = torch.Generator().manual_seed(seed)
    return shard.where(torch.randperm(len(shard.labels), generator=generator))


def _wait_for(files: Sequence[Path]) -> None:
    # These are the other processes' shards. If one of them fails, torchrun ends this process too.
    while not all(file.exists() for file in files):
        time.sleep(_POLL_SECONDS)
