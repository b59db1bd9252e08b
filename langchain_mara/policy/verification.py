"""Checks on the model itself that a pass over siblings equals a cache-free evaluation."""

import torch
from torch import Tensor

from langchain_mara.exceptions import UnsupportedModelError
from langchain_mara.policy.model import PolicyModel


@torch.inference_mode()
def verify_siblings(policy: PolicyModel) -> None:
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
        states = _sibling_states(policy, prompts, siblings)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise UnsupportedModelError(
            f"{type(policy.model).__name__} cannot run a pass over siblings ({error}). Use a model whose "
            "attention depends on a mask per query and on position ids only (so not on ALiBi, for example)."
        ) from error
    for prompt, actual_states in zip(prompts, states, strict=True):
        expected_states, expected_logits = _cache_free(policy, prompt, siblings)
        _compare(policy, actual_states, expected_states, "states")
        _compare(policy, policy.logits(actual_states), expected_logits, "logits")
    policy.loaded.verified = True


def _sibling_states(policy: PolicyModel, prompts: list[list[int]], siblings: Tensor) -> Tensor:
    cache = policy.new_cache()
    policy.prefill(cache, 0, prompts)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=policy.device)
    slots = lengths.unsqueeze(1) + torch.arange(3, device=policy.device)
    cache.reserve(2, 8)
    return policy.siblings(cache, siblings.expand(2, 3), slots, lengths, span=8)


def _cache_free(policy: PolicyModel, prompt: list[int], siblings: Tensor) -> tuple[Tensor, Tensor]:
    prefix = torch.tensor(prompt, device=policy.device).expand(3, -1)
    token_ids = torch.cat([prefix, siblings.unsqueeze(1)], dim=1)
    with policy.loaded.evaluation_mode():
        output = policy.model(token_ids, use_cache=False, output_hidden_states=True)
    return output.hidden_states[-1][:, -1], output.logits[:, -1]


def _compare(policy: PolicyModel, actual: Tensor, expected: Tensor, quantity: str) -> None:
    if not expected.isfinite().all():
        return  # A broken model passes: its states count as rejected when it decodes.
    actual, expected = actual.float(), expected.float().to(actual.device)
    errors = (actual - expected).norm(dim=-1) / expected.norm(dim=-1).clamp(min=1e-6)
    # In half precision a mixture of experts may route one sibling differently, so the median decides.
    error = errors.median().item()
    limit = 1e-3 if policy.model.dtype in (torch.float32, torch.float64) else 0.2
    if not error <= limit:
        raise UnsupportedModelError(
            f"{type(policy.model).__name__} gives other {quantity} for siblings in one pass than alone (relative "
            f"difference {error:.2g}). Its attention depends on more than mask and position ids (ALiBi, for "
            "example), or its logits are transformed in a way this library does not know, so "
            "accept/reject decoding would be wrong without notice. Use a model of a supported family."
        )
