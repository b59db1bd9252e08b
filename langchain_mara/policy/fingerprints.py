"""Fingerprints of models, which cache keys depend on. What takes long is recomputed only when weights change."""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from langchain_mara.policy.packed_linear import PackedLinear, named_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SAMPLES = 64
_PLAIN = (Tensor, nn.Parameter)
# What a pass, or loading, changes and no answer depends on; and PyTorch's own hooks and tables of every module.
_UNREAD = {"name_or_path", "warnings_issued", "_is_hf_initialized", *vars(nn.Module())}
_SCALARS = {bool, int, float, str}


def weights_state(module: nn.Module) -> tuple[int, int, bytes, int]:
    """A value that changes whenever weights or settings of layers change. It is valid within this process only.

    Autograd's versions show what is trained or written in place. What is written behind autograd's back, through
    `tensor.data`, is shown by some 64 values of each weight, and by one value of every row of an embedding, because
    those are written row by row. Settings of layers show a switched adapter or another epsilon.

    Args:
        module: Module whose parameters, buffers and settings are inspected.
    """
    layers = list(module.named_modules())
    tables = (table for _, layer in layers for table in (layer._parameters, layer._buffers))  # noqa: SLF001
    tensors = list(dict.fromkeys(tensor for table in tables for tensor in table.values() if tensor is not None))
    versions = sum(0 if tensor.is_inference() else tensor._version for tensor in tensors)  # noqa: SLF001
    places = hash(tuple(0 if tensor.is_meta else tensor.data_ptr() for tensor in tensors))
    digest = hashlib.sha256()
    embeddings = {layer.weight for _, layer in layers if isinstance(layer, nn.Embedding)}
    for values in _together(tensors, embeddings):
        digest.update(_bytes(values))
    return versions, places, digest.digest(), hash(_settings(layers))


class WeightsFingerprint:
    """Fingerprint of a module, recomputed only when its weights have changed."""

    def __init__(self) -> None:
        self._last: tuple[tuple[int, int, bytes, int], str] | None = None

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
                digest.update(_bytes(tensor))
            self._last = state, digest.hexdigest()[:16]
        return self._last[1]


def sampled_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names with shapes of all weights and buffers, each with a value of every row, and with 64 values at least."""
    for name, weight in (*named_weights(model), *model.named_buffers()):
        yield f"{name} {tuple(weight.shape)}", _sample(weight)


def layer_settings(module: nn.Module) -> tuple[object, ...]:
    """Name, kind and plain settings (numbers, words, lists of them) of a module and all modules in it, in one row.

    Args:
        module: The module. Packed layers count as the linear layers that they replace.
    """
    return _settings(module.named_modules())


def _settings(layers: Iterable[tuple[str, nn.Module]]) -> tuple[object, ...]:
    settings: list[object] = []
    for name, layer in layers:
        settings += [name, "Linear" if isinstance(layer, PackedLinear) else type(layer).__qualname__]
        for key, value in vars(layer).items():
            if key in _UNREAD:
                continue
            if type(value) in _SCALARS:
                settings += [key, value]
            elif isinstance(value, list | tuple | dict) and value and _is_plain(value):
                settings += [key, repr(value)]
    return tuple(settings)


def settings_digest(module: nn.Module) -> str:
    """Sixteen hexadecimal digits that depend on `layer_settings`.

    Args:
        module: The module.
    """
    return hashlib.sha256(repr(layer_settings(module)).encode()).hexdigest()[:16]


# The weights have a dtype of their own, whatever the configuration says that the checkpoint was saved in.
_NOT_OF_ANSWERS = {"transformers_version", "name_or_path", "dtype", "torch_dtype"}


def config_digest(config: Any) -> str:
    """Sixteen hexadecimal digits that depend on all values of a configuration, except where it was loaded from.

    Args:
        config: A configuration of transformers, or None.
    """
    values = None if config is None else _public(config.to_dict())
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]


def model_digest(model: "PreTrainedModel", weights: str) -> str:
    """Sixteen hexadecimal digits that depend on weights, settings of layers, and configuration of a model.

    Args:
        model: The model.
        weights: Fingerprint of its weights.
    """
    parts = (weights, settings_digest(model), config_digest(model.config))
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _public(value: Any) -> Any:
    """A configuration without private entries, such as the kind of attention while a pass runs."""
    if isinstance(value, Mapping):
        return {
            str(name): _public(item)
            for name, item in value.items()
            if not str(name).startswith("_") and name not in _NOT_OF_ANSWERS
        }
    return [_public(item) for item in value] if isinstance(value, list | tuple) else value


def _is_plain(values: list[Any] | tuple[Any, ...] | dict[Any, Any]) -> bool:
    return all(type(value) in _SCALARS for value in (values.values() if isinstance(values, dict) else values))


def _together(tensors: Iterable[Tensor], by_row: Collection[Tensor]) -> Iterator[Tensor]:
    """Samples of tensors, those of one dtype and device in one piece, so that a device is waited for once."""
    samples: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        sample = _sample(tensor) if tensor in by_row else _spread(tensor)
        samples.setdefault((tensor.dtype, tensor.device), []).append(sample)
    yield from map(torch.cat, samples.values())


def _sample(tensor: Tensor) -> Tensor:
    """A value of every row at least, from another column in each; and 64 values if there are so many."""
    row = tensor.shape[-1] - 1 if tensor.dim() > 1 else 1  # a larger step would leave rows out
    return _spread(tensor, row)


def _spread(tensor: Tensor, largest_step: int | None = None) -> Tensor:
    """Values at equal steps, about a hundred if there are so many and if no smaller step is asked for."""
    if tensor.is_meta:
        return torch.zeros(0)
    count = tensor.numel()
    step = count // _SAMPLES
    # Lengths of rows are even, so an odd step goes through the columns.
    step = step | 1 if largest_step is None else max(1, min(step, largest_step))
    if type(tensor) in _PLAIN and tensor.is_contiguous():
        return torch.as_strided(tensor.detach(), (-(-count // step),), (step,))  # half the time of the line below
    return tensor.detach().flatten()[::step]


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
