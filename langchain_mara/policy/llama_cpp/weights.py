"""Files in the GGUF format: what is wrong with one, what identifies it, and single weights, dequantized."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from langchain_mara.exceptions import LoadingError

_MAGIC = b"GGUF"
_SAMPLES, _SAMPLE_BYTES, _HEAD_BYTES = 64, 4096, 2**20
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


def shard_names(name: str) -> list[str]:
    """Names of all files of a model, of which one is given."""
    found = _SHARD.search(name)
    if not found:
        return [name]
    return [f"{name[: found.start()]}-{i:05}-of-{found[2]}.gguf" for i in range(1, int(found[2]) + 1)]


def shards(file: Path) -> list[Path]:
    """All files of a model, of which one is given.

    Raises:
        LoadingError: If one is missing, or is no GGUF file.
    """
    files = [file.with_name(name) for name in shard_names(file.name)]
    for each in files:
        if not each.is_file():
            raise LoadingError(f"There is no file {each}." + (f" The model has {len(files)} files." * bool(files[1:])))
        with each.open("rb") as opened:
            if opened.read(len(_MAGIC)) != _MAGIC:
                raise LoadingError(
                    f"{each} is no GGUF file. Give the .gguf file of a model, or load a folder with from_model_id."
                )
    return files


def content_digest(files: Sequence[Path]) -> str:
    """Sixteen hexadecimal digits that depend on the head of each file, its size, and 64 samples of its weights."""
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{size}".encode())
        with file.open("rb") as opened:
            digest.update(opened.read(_HEAD_BYTES))
            for i in range(_SAMPLES):
                opened.seek(i * size // _SAMPLES)
                digest.update(opened.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:16]


class StoredRows:
    """The rows of a matrix in a GGUF file, dequantized as they are read; it takes the place of a (rows, d) tensor.

    The file is opened when something but the device is first asked for.

    Args:
        files: The model's files.
        names: Names of the matrix, of which the first that is there counts.

    Raises:
        LoadingError: When it is read, if the package gguf is not installed.
    """

    is_meta = False
    device = torch.device("cpu")

    def __init__(self, files: Sequence[Path], names: Sequence[str]) -> None:
        self._files, self._names = files, names

    @cached_property
    def _tensor(self) -> Any:
        try:
            import gguf  # noqa: PLC0415 - an optional dependency
        except ImportError:
            raise LoadingError(
                'Reading weights from a GGUF file needs the package gguf: pip install "langchain-mara[llamacpp]"'
            ) from None
        tensors = {tensor.name: tensor for file in self._files for tensor in gguf.GGUFReader(file).tensors}
        return next(tensors[name] for name in self._names if name in tensors)

    @property
    def shape(self) -> torch.Size:
        """Rows and columns."""
        columns, rows = (int(size) for size in self._tensor.shape[:2])
        return torch.Size([rows, columns])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> Tensor:
        stored = self._tensor.data[rows.numpy() if isinstance(rows, Tensor) else rows]
        import gguf  # noqa: PLC0415 - an optional dependency

        values = gguf.quants.dequantize(stored, self._tensor.tensor_type)
        return torch.from_numpy(values.astype("float32")).view(*stored.shape[:-1], self.shape[1])

    def split(self, rows: int) -> Iterator[Tensor]:
        """The whole matrix, so many rows at a time, in float32."""
        return (self[start : start + rows] for start in range(0, len(self), rows))

    def is_floating_point(self) -> bool:
        """True: rows are float32 once they are read."""
        return True

    def detach(self) -> Self:
        """Itself; it has no gradient."""
        return self

    def to(self, device: torch.device) -> Self:  # noqa: ARG002 - it has the interface of a tensor
        """Itself; it is on the CPU."""
        return self


class StoredTable(nn.Module):
    """An embedding, or a head, in a GGUF file.

    Args:
        files: The model's files.
        names: Names of the matrix, of which the first that is there counts.
    """

    def __init__(self, files: Sequence[Path], names: Sequence[str]) -> None:
        super().__init__()
        self.weight = StoredRows(files, names)
