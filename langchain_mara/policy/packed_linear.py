"""Linear layers whose weights are stored in the layout that the CPU's matrix products read.

To multiply a few tokens by a matrix, PyTorch first rearranges the whole matrix, every time. This makes a pass over two
tokens much slower on the CPU than a pass over one. oneDNN can keep the weights rearranged. Then a pass over eight
siblings costs as much as a pass over one, and both cost less.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TOKENS = 8  # oneDNN chooses the layout for products of about this many tokens; any other number works, too


class PackedLinear(nn.Module):
    """Computes what `nn.Linear` computes, up to rounding, on the CPU.

    Its only parameter is the bias. `weight` is unpacked on access, and state dicts contain it.

    Args:
        linear: The layer to replace.
        shared: Whether the weight is also the weight of another layer, which keeps it.

    Raises:
        RuntimeError: If this build of PyTorch, or the processor, cannot pack weights of this dtype.
    """

    def __init__(self, linear: nn.Linear, *, shared: bool = False) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self.training = linear.training
        self._packed = _packed(linear.weight)
        # In a tuple, so that it does not become a parameter of this module.
        self._shared: tuple[Tensor, ...] = (linear.weight,) if shared else ()

    @property
    def shares_weight(self) -> bool:
        """Whether the weight belongs to another layer, too."""
        return bool(self._shared)

    @property
    def weight(self) -> Tensor:
        """(out_features, in_features) weight in the plain layout: the shared tensor, or an unpacked copy."""
        return self._shared[0] if self.shares_weight else self._packed.to_dense()

    def forward(self, inputs: Tensor) -> Tensor:
        """Maps (…, in_features) to (…, out_features)."""
        if torch.is_grad_enabled() and inputs.requires_grad:
            return functional.linear(inputs, self.weight, self.bias)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, self._packed, self.bias, "none", [], "")  # noqa: SLF001
        return product

    def extra_repr(self) -> str:
        """Sizes in the format of `nn.Linear`."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination[prefix + "weight"] = self.weight if keep_vars else self.weight.detach()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        weight = state_dict.get(prefix + "weight")
        super()._load_from_state_dict({k: v for k, v in state_dict.items() if v is not weight}, prefix, *args)
        if weight is not None and not self.shares_weight:
            self._packed = _packed(weight.to(self._packed.dtype))

    def _apply(self, fn: Any, recurse: bool = True) -> nn.Module:
        moved = fn(torch.empty(0, dtype=self._packed.dtype))
        if moved.device.type != "cpu" or moved.dtype != self._packed.dtype:
            self._become_plain()
        return cast("nn.Module", nn.Module._apply(self, fn, recurse))  # noqa: SLF001 - it may be an nn.Linear by now

    def _become_plain(self) -> None:
        """Turns into `nn.Linear`, because packed weights work on one device and in one dtype only."""
        weight, plain = self.weight, cast("Any", self)
        del self._packed, self._shared
        plain.__class__ = nn.Linear
        plain.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight, requires_grad=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": self._packed.to_dense()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "_packed": _packed(state["_packed"])})  # type: ignore[no-untyped-call]


def _packed(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _TOKENS)  # noqa: SLF001
    return packed


def pack(model: "PreTrainedModel") -> bool:
    """Packs the linear layers of a frozen model in place, one after another.

    A head that shares its weight with the embedding gets a packed copy, which takes as much memory as the embedding.

    Args:
        model: The model to pack. It stays as it is if it is quantized, not entirely on the CPU, or not in float32 or
            bfloat16. Layers of other types always stay as they are.

    Returns:
        Whether the model was packed.
    """
    linear_layers = _linear_layers(model)
    if not linear_layers or not _packable(model):
        return False
    embedding = model.get_input_embeddings().weight
    for parent, name in linear_layers:
        # Nothing else refers to the plain layer, so its memory is freed before the next one is packed.
        linear = getattr(parent, name)
        setattr(parent, name, PackedLinear(linear, shared=linear.weight is embedding))
    return True


def is_packed(model: nn.Module) -> bool:
    """Whether `pack` has packed the model."""
    return any(isinstance(module, PackedLinear) for module in model.modules())


def _linear_layers(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """Parents and names of all plain linear layers, that is, neither subclassed nor hooked by Accelerate."""
    return [
        (parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear and not hasattr(child, "_hf_hook")
    ]


def _packable(model: "PreTrainedModel") -> bool:
    if getattr(model, "hf_quantizer", None) is not None or not torch.backends.mkldnn.is_available():
        return False
    devices = {parameter.device.type for parameter in model.parameters()}
    dtypes = {parameter.dtype for parameter in model.parameters()}
    if devices != {"cpu"} or not dtypes <= {torch.float32, torch.bfloat16}:
        return False
    try:
        for dtype in dtypes:
            PackedLinear(nn.Linear(16, 16, dtype=dtype))(torch.zeros(1, 16, dtype=dtype))
    except (RuntimeError, AttributeError):
        return False  # a PyTorch build without oneDNN, or a processor without bfloat16
    return True


def named_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and plain weights that `named_parameters` would yield if the model were not packed."""
    seen: set[nn.Parameter] = set()
    for prefix, module in model.named_modules():
        start = f"{prefix}." if prefix else ""
        if isinstance(module, PackedLinear) and not module.shares_weight:
            yield f"{start}weight", module.weight
        for name, parameter in module.named_parameters(recurse=False):
            if parameter not in seen:
                seen.add(parameter)
                yield start + name, parameter
