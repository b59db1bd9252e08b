"""The pass over siblings as a compiled graph of static shapes: few of them, so that CUDA can record and replay it.

Rows and width are rounded up to a power of two and the slots attended to to a bucket. Padding is invisible: it writes
where nothing is committed, no other token sees it, and each padding token sees itself, so no row of a mask is empty.
The keys and values stay at their addresses until the cache outgrows its bucket; then the graph is recorded again.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from textwrap import shorten
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.cache_utils import Cache, CacheLayerMixin

from langchain_mara.policy.cache import Window, finite, power_of_two, slot_bucket

MOST_GRAPHS = 256
_FAILURES = (torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.FailOnRecompileLimitHit)  # noqa: SLF001

Backend = str | Callable[..., Any]


class SiblingTokens(NamedTuple):
    """The tokens of a pass over siblings, as `PolicyModel.siblings` takes them."""

    token_ids: Tensor
    slots: Tensor
    positions: Tensor
    span: int
    depths: Tensor | None


def padded(tokens: SiblingTokens) -> SiblingTokens:
    """The tokens with padding up to the shape of a graph.

    Padding tokens of a row take the slots above the highest one in use; padding rows are rows of the cache that
    belong to nobody.
    """
    token_ids, slots, positions, span, depths = tokens
    rows, width = token_ids.shape
    more_rows, more = power_of_two(rows) - rows, power_of_two(width) - width
    if more:
        above = span + torch.arange(more, device=slots.device)
        slots = torch.cat([slots, above.expand(rows, more)], dim=1)
    if more_rows:
        anywhere = torch.arange(width + more, device=slots.device)
        slots = torch.cat([slots, anywhere.expand(more_rows, width + more)])
    shape = (0, more, 0, more_rows)
    return SiblingTokens(
        pad(token_ids, shape),
        slots,
        pad(positions, (0, more_rows)),
        slot_bucket(max(span + more, width + more)),
        None if depths is None else pad(depths, shape),
    )


class _WindowLayer(CacheLayerMixin):
    """Keys and values of one layer, (rows, slots, heads, dimension) each, written in place."""

    def __init__(self, stores: Window | None, slots: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.stores = stores
        self.slots = slots
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: the stores exist before the graph does."""

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes (rows, heads, width, dimension) states and returns all keys and values of the window."""
        if self.stores is None:
            raise ValueError("a layer attends now that did not attend to the prompt")
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
    """Runs a pass as the graph of its shapes, which the first pass of these shapes compiles.

    Args:
        backbone: Of the policy model.
        inputs: Its arguments: token ids, positions and masks.
        slots: (rows, width) int64, where the tokens' keys and values are written.
        window: As `RaggedCache.window` gives it.
        backend: Of `torch.compile`; on CUDA, inductor records CUDA graphs.

    Returns:
        (rows, width, d) states; None, after a warning, if the model cannot be compiled.
    """
    mode = "reduce-overhead" if slots.is_cuda and backend == "inductor" else None
    try:
        # Every shape is a recompilation in dynamo's eyes, and it gives up at the eighth.
        with torch._dynamo.config.patch(recompile_limit=MOST_GRAPHS):  # noqa: SLF001
            # A recorded graph writes the next pass's states over these.
            return _compiled(backend, mode)(backbone, inputs, slots, window).clone()
    except _FAILURES as error:
        _warn(backbone, error)
        return None


def _warn(backbone: nn.Module, error: Exception) -> None:
    reason = shorten(str(error).partition("\n\n")[0], 240) or type(error).__name__
    warnings.warn(
        f"{type(backbone).__name__} cannot be compiled ({reason}): its passes run without. Set compile=False, or "
        "install what torch.compile needs: a C++ compiler on the CPU, Triton on CUDA.",
        RuntimeWarning,
        stacklevel=2,
    )
