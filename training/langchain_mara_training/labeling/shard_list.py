"""The list of a folder's shards, `shards.jsonl`: number, file, size and digest of each, on a line with its own digest.

A shard counts once it is listed. So shards of another job, half a copy of a folder, and a damaged byte are noticed, and
no name is ever guessed or matched by a pattern.
"""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock
from safetensors.torch import save
from torch import Tensor

from langchain_mara.exceptions import DataError
from langchain_mara_training.storage.atomic import append_durably, write_atomically
from langchain_mara_training.storage.records import read_sealed, sealed_line, unsealed_line

LIST_NAME = "shards.jsonl"
MANIFEST_NAME = "labels.json"
"""The file that says what the labels of a folder were made from, and how many shards there are to be."""
SHARD_NAME = "shard-{:05d}.safetensors"
_LOCK = ".shards.lock"


class ListedShard(NamedTuple):
    """A shard as the list describes it.

    Attributes:
        number: Number of the shard, from 0.
        file: Name of its file.
        size: Bytes of the file.
        sha256: Digest of the file.
    """

    number: int
    file: str
    size: int
    sha256: str


def write_shard(folder: Path, number: int, columns: dict[str, Tensor]) -> None:
    """Writes a shard and lists it. Several processes may do so at the same time.

    Args:
        folder: Folder of the shards.
        number: Number of the shard, from 0.
        columns: Its columns by name, as `LabeledTokens` names them.

    Raises:
        TrainingError: If the disk is full.
    """
    content = save(columns)
    listed = ListedShard(number, SHARD_NAME.format(number), len(content), hashlib.sha256(content).hexdigest())
    write_atomically(folder / listed.file, content)
    with FileLock(folder / _LOCK):
        append_durably(folder / LIST_NAME, _line(listed))


def close_list(folder: Path) -> None:
    """Puts the list in order once all shards are there, so that it is the same whoever wrote them and when."""
    write_atomically(folder / LIST_NAME, *(_line(shard) for _, shard in sorted(read_list(folder).items())))
    (folder / _LOCK).unlink(missing_ok=True)


def _line(shard: ListedShard) -> bytes:
    return f"{sealed_line(json.dumps(shard._asdict()))}\n".encode()


def read_list(folder: Path) -> dict[int, ListedShard]:
    """The shards that a folder lists, by number; half a line after a crash is left out.

    Raises:
        DataError: If a line is damaged.
    """
    file = folder / LIST_NAME
    complete = file.read_bytes().split(b"\n")[:-1] if file.is_file() else []
    shards: dict[int, ListedShard] = {}
    for number, line in enumerate(complete):
        try:
            shard = ListedShard(**json.loads(unsealed_line(line)))
        except (ValueError, TypeError) as error:
            # A process that was killed while it wrote leaves half a line, and the next one begins a new line.
            if not line.endswith(b"}"):
                continue
            raise DataError(
                f"{file}, line {number + 1} is damaged ({error}). Delete this file and the shards to label again."
            ) from None
        # A shard that was damaged is written again and listed again.
        shards[shard.number] = shard
    return shards


def planned_count(folder: Path) -> int | None:
    """Number of shards that the labeling of a folder was to make; None if nothing there says it.

    Raises:
        TrainingError: If the file that says it is damaged.
    """
    file = folder / MANIFEST_NAME
    count: int | None = read_sealed(file, "Label again into another folder.").get("shards") if file.is_file() else None
    return count


def is_intact(folder: Path, shard: ListedShard) -> bool:
    """Whether a shard's file has the size and the digest that the list says."""
    file = folder / shard.file
    if not file.is_file() or file.stat().st_size != shard.size:
        return False
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == shard.sha256
