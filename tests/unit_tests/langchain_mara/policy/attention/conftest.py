"""What attention is asked for, call by call."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional


@pytest.fixture
def key_shapes(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Shapes of the keys of every product of attention from now on: (batch, heads, keys, dimension)."""
    attend, shapes = functional.scaled_dot_product_attention, []

    def watched(query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        shapes.append(key.shape)
        return attend(query, key, *args, **kwargs)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", watched)
    return shapes
