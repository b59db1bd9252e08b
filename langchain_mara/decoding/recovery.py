"""What happens when a pass fails: work is tried, errors are told apart, and users are told. And results are read."""

import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from langchain_mara.decoding.request import Request
from langchain_mara.exceptions import NonFiniteError
from langchain_mara.policy.contract import Policy


def attempt(work: Callable[[], object]) -> BaseException | None:
    """Runs work that may be repeated; returns its error, or None.

    Raises:
        KeyboardInterrupt: If the user interrupts.
    """
    try:
        work()
    except BaseException as error:
        if is_interrupt(error):
            raise
        return error
    return None


def raise_error(_request: Request, error: BaseException) -> None:
    """What to do with an error of a request, unless it becomes its `error`."""
    raise error


def is_interrupt(error: BaseException) -> bool:
    """Whether an error is the user's Ctrl-C, which only the main thread gets."""
    return isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread()


def no_candidates_error(policy: Policy, token_ids: Sequence[int]) -> NonFiniteError:
    """The error of a position without candidates; it names the first of state, logits and processor that is not finite.

    Args:
        policy: The policy model.
        token_ids: Prompt and answer so far; they go through the model once more.
    """
    culprit, repair = "the logits processor or min_new_tokens forbids every token", "Leave one possible."
    with suppress(torch.OutOfMemoryError):
        state = policy.prefill(policy.new_cache(), 0, [token_ids])
        model = f"Load {policy.name} in a wider dtype (bfloat16 or float32), or check its weights."
        if not bool(state.isfinite().all()):
            culprit, repair = f"the state that {policy.name} gives is not finite", model
        elif not bool(policy.logits(state).isfinite().any()):
            culprit, repair = f"the state that {policy.name} gives is finite, but no logit of its head is", model
    return NonFiniteError(f"No token can follow {len(token_ids)} tokens: {culprit}. {repair}")


def nan_of_agent_error(model: str) -> NonFiniteError:
    """The error of an agent that answers NaN to a finite state.

    Args:
        model: Name of the policy model.
    """
    return NonFiniteError(
        f"The agent's accept probability is NaN, although the state that {model} gives is finite. Check the agent's "
        "weights, and load or train it again."
    )


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


def warn_of_failed_pass(error: BaseException, sequences: int, limit: int) -> None:
    """Warns of an error that no sequence causes alone.

    Args:
        error: The error.
        sequences: Number of sequences in the pass that failed.
        limit: Number of sequences to continue with.
    """
    _warn(
        f"A pass over {sequences} sequences failed ({type(error).__name__}: {error}), but none does if it is run with "
        f"each alone. Continuing with {limit} at a time."
    )


def warn_of_preemption(device: torch.device, sequences: int, limit: int, width: int) -> None:
    """Warns that some sequences have to wait.

    Args:
        device: Where memory ran out.
        sequences: Number of sequences that did not fit together.
        limit: Number of sequences to continue with.
        width: Siblings of a sequence in one pass from now on.
    """
    _warn(
        f"Out of memory on {device} with {sequences} sequences: continuing with {limit} of width {width}. "
        "A smaller batch_size avoids this."
    )


def _warn(text: str) -> None:
    # Where warnings are errors, this one would end the answers of all callers.
    with suppress(Warning):
        warnings.warn(text, RuntimeWarning, stacklevel=4)


def to_host(*tensors: Tensor | None) -> list[Any]:
    """Tensors as lists, by one synchronization per device; None becomes an empty list."""
    # Only CUDA's copies may be asynchronous: what another device is still writing could be read too early.
    copies = [each.to("cpu", non_blocking=True) if each is not None and each.is_cuda else each for each in tensors]
    for device in {each.device for each in tensors if each is not None and each.is_cuda}:
        torch.cuda.current_stream(device).synchronize()
    return [[] if copy is None else copy.tolist() for copy in copies]


def refuse_to_part(requests: Sequence[Request], error: BaseException) -> None:
    """Raises an error of memory if some of the requests would have to leave others that their processors see, too.

    Args:
        requests: Requests that run.
        error: The error.

    Raises:
        torch.OutOfMemoryError: If several of them have the same logits processors.
    """
    together = [request.joint_process for request in requests if request.joint_process]
    if len(together) > 1:
        raise torch.OutOfMemoryError(
            f"Out of memory with {len(together)} sequences, of which none may wait, because logits processors keep "
            "state for all of them. Generate fewer prompts at a time."
        ) from error
