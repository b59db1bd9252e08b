"""What happens when memory runs out: work is tried, sequences are preempted, and users are told."""

import warnings
from collections.abc import Callable

import torch


def fits_in_memory(work: Callable[[], None]) -> bool:
    """Runs work that may be repeated; False if there was not enough memory for it."""
    try:
        work()
    except torch.OutOfMemoryError:
        return False
    return True


def single_sequence_error(device: torch.device, tokens: int) -> torch.OutOfMemoryError:
    """The error of a sequence that does not fit even alone.

    Args:
        device: Where memory ran out.
        tokens: Length of the sequence.
    """
    return torch.OutOfMemoryError(
        f"Out of memory on {device} with a single sequence of {tokens} tokens. Shorten the prompt, lower "
        "max_new_tokens or top_k, or load the model in a smaller dtype."
    )


def warn_of_preemption(device: torch.device, sequences: int, limit: int, width: int) -> None:
    """Warns that some sequences have to wait.

    Args:
        device: Where memory ran out.
        sequences: Number of sequences that did not fit together.
        limit: Number of sequences to continue with.
        width: Siblings of a sequence in one pass from now on.
    """
    warnings.warn(
        f"Out of memory on {device} with {sequences} sequences: continuing with {limit} of width {width}. "
        "A smaller batch_size avoids this.",
        RuntimeWarning,
        stacklevel=3,
    )
