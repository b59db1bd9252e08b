"""GenerationJob that may not fit into memory."""

from collections.abc import Callable

import torch


def fits(work: Callable[[], None]) -> bool:
    """Runs work that may be repeated; False if memory did not suffice."""
    try:
        work()
    except torch.OutOfMemoryError:
        return False
    return True
