"""How far an answer is from what the plain model would say."""

import math
from collections.abc import Sequence

import torch

from langchain_mara import MaraLLM
from langchain_mara.policy.model import PolicyModel
from langchain_mara_training.data.readers import Prompt
from langchain_mara_training.generation.states import batch_states

_LOGITS_AT_ONCE = 256


@torch.inference_mode()
def divergence(plain: MaraLLM, prompt: Prompt, answer_ids: Sequence[int]) -> float | None:
    """Mean over an answer's tokens of -log p under the plain model, over the whole vocabulary, in nats.

    For deterministic decoding it is the Kullback-Leibler divergence per token from the plain model, since all of its
    probability lies on the token given. Answers go through the model one at a time, so that none depends on others.

    Args:
        plain: The plain model, with its template.
        prompt: What was answered.
        answer_ids: Tokens of the answer, in the plain model's vocabulary.

    Returns:
        At least 0; None where there are no tokens, or logits are not finite.
    """
    policy = PolicyModel(plain.model)
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


def share_vocabulary(one: MaraLLM, other: MaraLLM) -> bool:
    """Whether the tokens of two LLMs mean the same."""
    return one.tokenizer is other.tokenizer or one.tokenizer.get_vocab() == other.tokenizer.get_vocab()
