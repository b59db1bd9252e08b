"""Fingerprints of weights: what cache keys and kept prefixes depend on, computed once per state of the weights."""

import hashlib
from collections.abc import Iterable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from langchain_mara.policy.packed_linear import named_weights

_SAMPLES = 64
_known: WeakKeyDictionary[nn.Module, tuple[tuple[int, int], str]] = WeakKeyDictionary()


def weights_state(module: nn.Module) -> tuple[int, int]:
    """Changes whenever weights are replaced or trained in place; says nothing beyond this process.

    Writing through `tensor.data` without replacing the tensor goes unnoticed, as it does in PyTorch.
    """
    tensors = [*module.parameters(), *module.buffers()]
    versions = sum(0 if one.is_inference() else one._version for one in tensors)  # noqa: SLF001
    return versions, hash(tuple(0 if one.is_meta else one.data_ptr() for one in tensors))


def weights_fingerprint(module: nn.Module, named: Iterable[tuple[str, Tensor]]) -> str:
    """Sixteen hexadecimal digits of named tensors, kept until the module's weights change.

    Args:
        module: Whose fingerprint it is.
        named: Names and tensors that go into it.
    """
    state = weights_state(module)
    known = _known.get(module)
    if known is None or known[0] != state:
        digest = hashlib.sha256()
        for name, tensor in named:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        known = _known[module] = (state, digest.hexdigest()[:16])
    return known[1]


def model_fingerprint(model: PreTrainedModel) -> str:
    """Sixteen hexadecimal digits that tell policy models apart: names, shapes, dtypes, and 64 values of every weight.

    Names alone would not do: two revisions, or a folder trained further, share theirs.
    """
    return weights_fingerprint(
        model, ((f"{name} {tuple(one.shape)}", _sample(one)) for name, one in named_weights(model))
    )


def _sample(tensor: Tensor) -> Tensor:
    flat = tensor.detach().flatten()
    if flat.is_meta:
        return torch.zeros(0)
    step = max(1, flat.numel() // _SAMPLES)
    return flat[::step][:_SAMPLES]
