"""Files in the GGUF format: what is wrong with one, what identifies it, and single weights, dequantized."""

import hashlib
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from langchain_mara.exceptions import LoadingError

_MAGIC = b"GGUF"
_SAMPLES, _SAMPLE_BYTES, _HEAD_BYTES = 64, 4096, 2**20
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


def shards(file: Path) -> list[Path]:
    """All files of a model, of which one is given.

    Raises:
        LoadingError: If one is missing, or is no GGUF file.
    """
    found = _SHARD.search(file.name)
    count = int(found[2]) if found else 1
    names = [f"{file.name[: found.start()]}-{i:05}-of-{found[2]}.gguf" for i in range(1, count + 1)] if found else [file.name]
    files = [file.with_name(name) for name in names]
    for each in files:
        if not each.is_file():
            raise LoadingError(f"There is no file {each}." + (f" The model has {count} files." if found else ""))
        with each.open("rb") as opened:
            if opened.read(len(_MAGIC)) != _MAGIC:
                raise LoadingError(
                    f"{each} is no GGUF file. Give the .gguf file of a model, or load a folder with from_model_id."
                )
    return files


def content_digest(files: list[Path]) -> str:
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


class StoredTable(nn.Module):
    """An embedding, or a head, in a GGUF file. It is read when its weight is first asked for.

    Args:
        files: The model's files.
        names: Names of the tensor, of which the first that is there counts.
    """

    def __init__(self, files: list[Path], names: tuple[str, ...]) -> None:
        super().__init__()
        self._files, self._names = files, names
        self._weight: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        """(vocabulary, d) float32."""
        if self._weight is None:
            object.__setattr__(self, "_weight", self._read())
        return self._weight  # type: ignore[return-value]

    def _read(self) -> Tensor:
        try:
            import gguf  # noqa: PLC0415 - an optional dependency
        except ImportError:
            raise LoadingError(
                'Reading weights from a GGUF file needs the package gguf: pip install "langchain-mara[llamacpp]"'
            ) from None
        tensors: dict[str, Any] = {
            tensor.name: tensor for file in self._files for tensor in gguf.GGUFReader(file).tensors
        }
        tensor = next(tensors[name] for name in self._names if name in tensors)
        return torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype("float32", copy=True))
