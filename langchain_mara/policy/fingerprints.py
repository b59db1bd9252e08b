"""Fingerprints of weights: what cache keys and kept prefixes depend on, computed once per state of the weights."""

import hashlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from langchain_mara.policy.packed_linear import named_weights

_SAMPLES = 64


def weights_state(module: nn.Module) -> tuple[int, int]:
    """A value that changes whenever weights are replaced or trained in place; it means nothing beyond this process.

    Writing through `tensor.data` without replacing the tensor goes unnoticed, as it does in PyTorch.
    """
    tensors = [*module.parameters(), *module.buffers()]
    versions = sum(0 if tensor.is_inference() else tensor._version for tensor in tensors)  # noqa: SLF001
    return versions, hash(tuple(0 if tensor.is_meta else tensor.data_ptr() for tensor in tensors))


class WeightsFingerprint:
    """The fingerprint of one module, computed again only when its weights have changed."""

    def __init__(self) -> None:
        self._known: tuple[tuple[int, int], str] | None = None

    def of(self, module: nn.Module, named_tensors: Iterable[tuple[str, Tensor]]) -> str:
        """Sixteen hexadecimal digits of named tensors.

        Args:
            module: Always the same; its weights decide whether the last result still holds.
            named_tensors: Names and tensors that enter the fingerprint; only read if it is computed.
        """
        state = weights_state(module)
        if self._known is None or self._known[0] != state:
            digest = hashlib.sha256()
            for name, tensor in named_tensors:
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
            self._known = state, digest.hexdigest()[:16]
        return self._known[1]


def sampled_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and shapes of all weights, each with at most 64 of its values."""
    for name, weight in named_weights(model):
        yield f"{name} {tuple(weight.shape)}", _sample(weight)


def _sample(tensor: Tensor) -> Tensor:
    flat = tensor.detach().flatten()
    if flat.is_meta:
        return torch.zeros(0)
    step = max(1, flat.numel() // _SAMPLES)
    return flat[::step][:_SAMPLES]
