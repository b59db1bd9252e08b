"""The policy of a loaded model, and the check on the model that a pass over siblings equals one without a cache."""

from typing import Any

import torch
from torch import Tensor

from langchain_mara.exceptions import UnsupportedModelError
from langchain_mara.policy.contract import Policy
from langchain_mara.policy.model import PolicyModel


def policy_of(model: Any, *, compile: bool = False) -> Policy:  # noqa: A002
    """A policy that runs a loaded model: the model's own kind if it says one, else transformers' `PolicyModel`.

    Args:
        model: A model of transformers, or one that has `new_policy`.
        compile: Whether passes over siblings run as compiled graphs, where the policy can compile.
    """
    new_policy = getattr(model, "new_policy", None)
    return PolicyModel(model, compile=compile) if new_policy is None else new_policy()


@torch.inference_mode()
def verify_siblings(policy: Policy) -> None:
    """Compares two rows of three siblings, of different lengths, with cache-free evaluations, once per model.

    This detects position biases that depend on neither mask nor position ids (ALiBi), attention that makes its own
    mask, and logits that are transformed in an unknown way. It costs three passes over a few tokens.

    Args:
        policy: The policy model to check.

    Raises:
        UnsupportedModelError: If states or logits differ by more than rounding.
    """
    if policy.loaded.verified:
        return
    vocabulary = policy.vocabulary_size
    tokens = torch.linspace(1, vocabulary - 1, 11, device=policy.device).long()
    prompts, siblings = [tokens[:5].tolist(), tokens[5:8].tolist()], tokens[8:]
    try:
        evaluated = _evaluated(policy, prompts, siblings)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise UnsupportedModelError(
            f"{type(policy.model).__name__} cannot run a pass over siblings ({error}). Use a model whose "
            "attention depends on a mask per query and on position ids only (so not on ALiBi, for example)."
        ) from error
    for prompt, (states, logits) in zip(prompts, evaluated, strict=True):
        expected_states, expected_logits = policy.cache_free(prompt, siblings)
        _compare(policy, states, expected_states, "states")
        _compare(policy, logits, expected_logits, "logits")
    policy.loaded.verified = True


def _evaluated(policy: Policy, prompts: list[list[int]], siblings: Tensor) -> list[tuple[Tensor, Tensor]]:
    """States and logits of the siblings, for each prompt."""
    cache = policy.new_cache()
    policy.prefill(cache, 0, prompts)
    lengths = [len(prompt) for prompt in prompts]
    slots = [[length, length + 1, length + 2] for length in lengths]
    cache.reserve(2, 8)
    states = policy.siblings(cache, siblings.expand(2, 3), slots, lengths, span=8)
    return [(own, policy.logits(own)) for own in states]


def _compare(policy: Policy, actual: Tensor, expected: Tensor, quantity: str) -> None:
    if not expected.isfinite().all():
        return  # A broken model passes: its states count as rejected when it decodes.
    actual, expected = actual.float(), expected.float().to(actual.device)
    errors = (actual - expected).norm(dim=-1) / expected.norm(dim=-1).clamp(min=1e-6)
    # In half precision a mixture of experts may route one sibling differently, so the median decides.
    error = errors.median().item()
    limit = 1e-3 if policy.precision in (torch.float32, torch.float64) else 0.2
    if not error <= limit:
        raise UnsupportedModelError(
            f"{type(policy.model).__name__} gives other {quantity} for siblings in one pass than alone (relative "
            f"difference {error:.2g}). Its attention depends on more than mask and position ids (ALiBi, for "
            "example), or its logits are transformed in a way this library does not know, so "
            "accept/reject decoding would be wrong without notice. Use a model of a supported family."
        )
