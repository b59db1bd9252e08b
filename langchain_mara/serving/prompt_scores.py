"""Log-probabilities of a prompt's own tokens, by decoding the prompt as an answer that is given in advance."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from langchain_mara.decoding.request import Request
from langchain_mara.options import DecodingOptions
from langchain_mara.serving.completion import Completion
from langchain_mara.serving.settings import Settings
from langchain_mara.text.detokenizer import IncrementalDetokenizer
from langchain_mara.text.token_texts import TokenTexts


class GivenAnswer:
    """The constraint of an answer that is known: each position permits the one token.

    Args:
        token_ids: The answer.
    """

    def __init__(self, token_ids: Sequence[int]) -> None:
        self._token_ids = list(token_ids)

    def allowed(self, answer: Sequence[int]) -> Tensor:
        """(tokens,) bool with the next token only; all False after anything else than the answer's beginning."""
        place = len(answer)
        if place >= len(self._token_ids) or list(answer) != self._token_ids[:place]:
            return torch.zeros(1, dtype=torch.bool)
        mask = torch.zeros(self._token_ids[place] + 1, dtype=torch.bool)
        mask[-1] = True
        return mask

    def is_complete(self, answer: Sequence[int]) -> bool:
        """Whether this is the whole answer."""
        return list(answer) == self._token_ids

    def close(self) -> None:
        """Keeps nothing."""


def scoring(llm: Settings, prompt_ids: Sequence[int], top_logprobs: int) -> Completion | None:
    """A completion that says nothing new: its log-probabilities are those of the prompt's tokens after the first.

    It takes a pass per token, in the running batch, and asks no agent.

    Args:
        llm: Model and tokenizer.
        prompt_ids: Token ids of the prompt.
        top_logprobs: Number of the most probable tokens to list with each.

    Returns:
        The completion, not begun; None for a prompt of a single token.
    """
    rest = list(prompt_ids[1:])
    if not rest:
        return None
    options = DecodingOptions(max_new_tokens=len(rest))
    request = Request(prompt_ids[:1], options, constraint=GivenAnswer(rest), top_logprobs=top_logprobs)
    return Completion(request, IncrementalDetokenizer(llm.tokenizer), token_texts=TokenTexts(llm.tokenizer))


def prompt_entries(llm: Settings, prompt_ids: Sequence[int], scored: Completion | None) -> list[dict[str, Any]]:
    """An entry for each token of a prompt, in OpenAI's form; the first has no log-probability.

    Args:
        llm: Model and tokenizer.
        prompt_ids: Token ids of the prompt.
        scored: Its completion of `scoring`, which has ended.
    """
    first = {**TokenTexts(llm.tokenizer).entry(prompt_ids[0], 0.0), "logprob": None, "top_logprobs": []}
    return [first, *([] if scored is None else scored.info["logprobs"]["content"])]
