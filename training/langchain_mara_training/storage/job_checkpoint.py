"""The checkpoint of a fitting job: written atomically after every epoch, read back without unpickling code."""

import hashlib
import io
import os
import pickle
from pathlib import Path
from typing import Any

import torch

from langchain_mara.exceptions import CheckpointError, TrainingError
from langchain_mara_training.storage.atomic import write_atomically
from langchain_mara_training.storage.identity.job_identity import differences, require_known

FILE_NAME = "fitting.pt"
_FORMAT = 3
_DIGEST_BYTES = 32


class JobCheckpoint:
    """The only checkpoint of a fitting job, in a folder of its own.

    The file is a SHA-256 digest followed by the output of `torch.save`: tensors and primitives only. The digest is
    there because PyTorch itself does not notice flipped bytes.

    Args:
        folder: Folder of the checkpoint, created if it is missing.
        job: Names and plain values that identify the job: parameters and digests of the data.

    Raises:
        RewardError: If a reward function of the job cannot be told from others.
    """

    def __init__(self, folder: str | os.PathLike[str], job: dict[str, Any]) -> None:
        require_known(job)
        self.folder = Path(folder).expanduser()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.file = self.folder / FILE_NAME
        self.job = job

    def write(self, content: dict[str, Any]) -> None:
        """Replaces the checkpoint. A process killed on the way leaves the old one or the new one, never a part."""
        buffer = io.BytesIO()
        torch.save({"format": _FORMAT, "job": self.job, "content": content}, buffer)
        payload = buffer.getbuffer()
        write_atomically(self.file, hashlib.sha256(payload).digest(), payload)

    def read(self) -> dict[str, Any] | None:
        """The content last written, or None before the first epoch has ended.

        Raises:
            CheckpointError: If the file is truncated or corrupt.
            TrainingError: If the file belongs to another job.
        """
        if not self.file.exists():
            return None
        saved = self._load()
        if saved.get("format") != _FORMAT:
            raise CheckpointError(
                f"{self.file} has format {saved.get('format')!r}, but this version of langchain-mara reads {_FORMAT}. "
                "Delete the file to start over, or finish the job with the version that started it."
            )
        if differing := differences(saved["job"], self.job):
            raise TrainingError(
                f"{self.folder} holds the checkpoint of another job; different: {', '.join(differing)}. Give another "
                f"checkpoint_dir, or delete {self.file} to start over."
            )
        content: dict[str, Any] = saved["content"]
        return content

    def _load(self) -> dict[str, Any]:
        written = self.file.read_bytes()
        digest, payload = written[:_DIGEST_BYTES], memoryview(written)[_DIGEST_BYTES:]
        if hashlib.sha256(payload).digest() != digest:
            raise CheckpointError(
                f"{self.file} is truncated or corrupt, or is not a checkpoint of a fit. Delete it to start over."
            )
        try:
            saved: dict[str, Any] = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise CheckpointError(
                f"{self.file} is not a checkpoint of a fit ({reason}). Delete it to start over."
            ) from None
        return saved
