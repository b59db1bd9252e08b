"""Fingerprints of weights, which cache keys depend on. They are recomputed only when the weights change."""

import hashlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from langchain_mara.policy.packed_linear import named_weights

_SAMPLES = 64


def weights_state(module: nn.Module) -> tuple[int, int]:
    """A value that changes whenever weights are replaced or trained in place. It is valid within this process only.

    Writes through `tensor.data` that do not replace the tensor go unnoticed, as they do in PyTorch's autograd.

    Args:
        module: Module whose parameters and buffers are inspected.
    """
    tensors = [*module.parameters(), *module.buffers()]
    versions = sum(0 if tensor.is_inference() else tensor._version for tensor in tensors)  # noqa: SLF001
    return versions, hash(tuple(0 if tensor.is_meta else tensor.data_ptr() for tensor in tensors))


class WeightsFingerprint:
    """Fingerprint of a module, recomputed only when its weights have changed."""

    def __init__(self) -> None:
        self._last: tuple[tuple[int, int], str] | None = None

    def of(self, module: nn.Module, named_tensors: Iterable[tuple[str, Tensor]]) -> str:
        """Sixteen hexadecimal digits that depend on names, dtypes, shapes and values.

        Args:
            module: Module to fingerprint, the same in every call. If its weights have not changed, the last result is
                returned.
            named_tensors: Names and tensors to hash; read only if the fingerprint is recomputed.
        """
        state = weights_state(module)
        if self._last is None or self._last[0] != state:
            digest = hashlib.sha256()
            for name, tensor in named_tensors:
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
            self._last = state, digest.hexdigest()[:16]
        return self._last[1]


def sampled_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names with shapes of all weights, each with at most 64 of its values."""
    for name, weight in named_weights(model):
        yield f"{name} {tuple(weight.shape)}", _sample(weight)


def _sample(tensor: Tensor) -> Tensor:
    flat = tensor.detach().flatten()
    if flat.is_meta:
        return torch.zeros(0)
    step = max(1, flat.numel() // _SAMPLES)
    return flat[::step][:_SAMPLES]
