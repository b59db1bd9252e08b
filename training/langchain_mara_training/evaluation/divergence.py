"""Divergence: how far an answer is from what the plain model would say."""

import math
from collections.abc import Sequence

import torch

from langchain_mara import MaraLLM
from langchain_mara.policy.verification import policy_of
from langchain_mara_training.data.readers import Prompt
from langchain_mara_training.generation.states import batch_states

_LOGITS_AT_ONCE = 256


@torch.inference_mode()
def divergence(plain: MaraLLM, prompt: Prompt, answer_ids: Sequence[int]) -> float | None:
    """Mean of -log p over an answer's tokens, in nats, with p from the plain model's softmax over the whole vocabulary.

    Deterministic decoding puts all probability on one token, so for it this is the Kullback-Leibler divergence per
    token from the plain model. The model reads one answer at a time, so no value depends on other answers.

    Args:
        plain: LLM with the plain model and its chat template.
        prompt: Prompt that was answered.
        answer_ids: Token ids of the answer, in the plain model's vocabulary.

    Returns:
        A number of at least 0; None if there are no tokens, or logits are not finite.
    """
    policy = policy_of(plain.model)
    prompt_ids = plain.encode(prompt)
    token_ids = [*prompt_ids, *answer_ids][: policy.context]
    targets = torch.tensor(token_ids[len(prompt_ids) :])
    if not len(targets):
        return None
    states = batch_states(policy, [token_ids])[0, len(prompt_ids) - 1 : -1]
    total = 0.0
    for chunk, tokens in zip(states.split(_LOGITS_AT_ONCE), targets.split(_LOGITS_AT_ONCE), strict=True):
        logs = policy.logits(chunk).float().log_softmax(-1)
        total -= float(logs.gather(1, tokens.to(logs.device)[:, None]).double().sum())
    mean = total / len(targets)
    return mean if math.isfinite(mean) else None


def share_vocabulary(first: MaraLLM, second: MaraLLM) -> bool:
    """Whether the token ids of two LLMs mean the same tokens."""
    return first.tokenizer is second.tokenizer or first.tokenizer.get_vocab() == second.tokenizer.get_vocab()
