"""Passes over siblings as compiled graphs with static shapes; there are few shapes, so CUDA can record and replay them.

Rows and width are rounded up to powers of two, and the attended slots to a bucket. Padding is invisible: it is written
where nothing is committed, no other token sees it, and each padding token sees itself, so no row of a mask is empty.
Keys and values keep their addresses until the cache outgrows its bucket; then the graph is recorded again.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from textwrap import shorten
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.cache_utils import Cache, CacheLayerMixin

from langchain_mara.policy.cache import Window, finite, power_of_two, slot_bucket
from langchain_mara.policy.packed_linear import is_packed

MOST_GRAPHS = 256
"""Graphs that may be compiled per model, one for each shape."""

Backend = str | Callable[..., Any]
"""A backend of `torch.compile`."""


class SiblingTokens(NamedTuple):
    """The tokens of a pass over siblings on the device, see `PolicyModel.siblings`.

    Attributes:
        token_ids: (rows, width) int64 candidates and drafted tokens.
        slots: (rows, width) int64 scratch slots, distinct within a row.
        positions: (rows,) int64, position of the siblings of each row.
        span: Number of slots to attend to.
        depths: (rows, width) int64, 0 for siblings and n for the n-th drafted token; None if nothing is drafted.
    """

    token_ids: Tensor
    slots: Tensor
    positions: Tensor
    span: int
    depths: Tensor | None

    @classmethod
    def on_device(
        cls,
        token_ids: Tensor,
        slots: Sequence[Sequence[int]],
        positions: Sequence[int],
        span: int,
        depths: Sequence[Sequence[int]] | None,
    ) -> Self:
        """Takes what is known on the host to the device of the token ids, in one go; see `PolicyModel.siblings`."""
        numbers = zip(positions, slots, depths or [()] * len(slots), strict=True)
        on_device = torch.tensor([[position, *own, *ahead] for position, own, ahead in numbers]).to(token_ids.device)
        after = 1 + token_ids.shape[1]
        ahead = None if depths is None else on_device[:, after:]
        return cls(token_ids, on_device[:, 1:after], on_device[:, 0], span, ahead)


def can_compile(model: nn.Module) -> bool:
    """Whether a model's passes can be compiled at all; warns where the reason is how it was loaded.

    Args:
        model: The model.
    """
    if is_packed(model):
        warnings.warn(
            "Packed linear layers cannot be compiled, so passes run uncompiled. Load the model with packed=False.",
            RuntimeWarning,
            stacklevel=3,
        )
    return not is_packed(model)


def padded(tokens: SiblingTokens) -> SiblingTokens:
    """Pads the tokens of a pass to the shape of a graph.

    The padding tokens of a row take the slots above the highest one in use. Padding rows use rows of the cache that
    are free.
    """
    token_ids, slots, positions, span, depths = tokens
    rows, width = token_ids.shape
    more_rows, more_tokens = power_of_two(rows) - rows, power_of_two(width) - width
    if more_tokens:
        slots_above = span + torch.arange(more_tokens, device=slots.device)
        slots = torch.cat([slots, slots_above.expand(rows, more_tokens)], dim=1)
    if more_rows:
        first_slots = torch.arange(width + more_tokens, device=slots.device)
        slots = torch.cat([slots, first_slots.expand(more_rows, width + more_tokens)])
    shape = (0, more_tokens, 0, more_rows)
    return SiblingTokens(
        _fresh(pad(token_ids, shape)),
        _fresh(slots),
        _fresh(pad(positions, (0, more_rows))),
        slot_bucket(max(span, width) + more_tokens),
        None if depths is None else _fresh(pad(depths, shape)),
    )


def _fresh(tensor: Tensor) -> Tensor:
    """A copy with the strides of a new tensor: a graph is compiled for strides, too, even of dimensions of size 1."""
    return tensor.clone(memory_format=torch.contiguous_format)


class _WindowLayer(CacheLayerMixin):
    """Keys and values of one layer, (rows, slots, heads, dimension) each, written in place."""

    def __init__(self, stores: Window | None, slots: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.stores = stores
        self.slots = slots
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Does nothing: storage exists before the graph does."""

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes (rows, heads, width, dimension) states and returns all keys and values of the window."""
        if self.stores is None:
            raise ValueError("a layer that did not attend to the prompt attends to candidates")
        keys, values = self.stores
        slots = self.slots.to(keys.device)
        rows = torch.arange(slots.shape[0], device=slots.device).unsqueeze(1)
        keys[rows, slots] = finite(key_states).transpose(1, 2)
        values[rows, slots] = finite(value_states).transpose(1, 2)
        return keys.transpose(1, 2), values.transpose(1, 2)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:  # noqa: ARG002 - the interface's
        return 0, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return -1


def _run(backbone: nn.Module, inputs: Mapping[str, Any], slots: Tensor, window: Sequence[Window | None]) -> Tensor:
    cache = Cache(layers=[_WindowLayer(stores, slots) for stores in window])
    states: Tensor = backbone(**inputs, past_key_values=cache, use_cache=True).last_hidden_state
    return states


@lru_cache(maxsize=8)
def _compiled(backend: Backend, mode: str | None) -> Callable[..., Tensor]:
    return torch.compile(_run, backend=backend, mode=mode, fullgraph=True, dynamic=False)


def run_compiled(
    backbone: nn.Module,
    inputs: Mapping[str, Any],
    slots: Tensor,
    window: Sequence[Window | None],
    backend: Backend = "inductor",
) -> Tensor | None:
    """Runs a pass as a compiled graph. The first pass of each shape compiles the graph for it.

    Args:
        backbone: The policy model without its head.
        inputs: Arguments of the backbone: token ids, positions and masks.
        slots: (rows, width) int64, slots that the tokens' keys and values are written to.
        window: Keys and values of all layers, as `RaggedCache.window` returns them.
        backend: Backend of `torch.compile`. On CUDA, inductor records CUDA graphs.

    Returns:
        (rows, width, d) states; None, after a warning, if the model cannot be compiled.
    """
    mode = "reduce-overhead" if slots.is_cuda and backend == "inductor" else None
    try:
        # Dynamo counts every shape as a recompilation, and by default gives up after eight.
        with torch._dynamo.config.patch(recompile_limit=MOST_GRAPHS):  # noqa: SLF001
            # A recorded graph overwrites these states in the next pass.
            return _compiled(backend, mode)(backbone, inputs, slots, window).clone()
    except _compile_failures() as error:
        _warn(backbone, error)
        return None


def _compile_failures() -> tuple[type[Exception], ...]:
    # Importing torch._dynamo takes seconds, so this module does it only once something is compiled.
    return torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.FailOnRecompileLimitHit  # noqa: SLF001


def _warn(backbone: nn.Module, error: Exception) -> None:
    reason = shorten(str(error).partition("\n\n")[0], 240) or type(error).__name__
    warnings.warn(
        f"{type(backbone).__name__} cannot be compiled ({reason}), so its passes run uncompiled. Set compile=False, "
        "or install what torch.compile needs: a C++ compiler on the CPU, Triton on CUDA.",
        RuntimeWarning,
        stacklevel=2,
    )
