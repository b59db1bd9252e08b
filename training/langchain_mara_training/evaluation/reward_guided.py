"""Reward-guided search: at each position the candidate that is best by probability and reward together.

In the manner of ARGS, the greedy variant (Khanov, Burapacheep, Li: "ARGS: Alignment as Reward-Guided Search", ICLR
2024; reference: deeplearning-wisc/args, `argsearch.py`). It adds logits where log-probabilities are added here, which
differ by a constant.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor

from langchain_mara import MaraLLM
from langchain_mara.exceptions import OptionsError
from langchain_mara_training.data.readers import Row
from langchain_mara_training.evaluation.systems import answer_all, describe_llm, describe_rewards
from langchain_mara_training.generation.costs import CostedAnswer
from langchain_mara_training.generation.generate import AnswerStart, GeneratedAnswer, Rewards, score_answers, weighted

_FEWEST = 2


class RewardGuided:
    """Reward-guided search with reward functions, which read the text so far with each candidate behind it.

    They are called once for each row and token, with all its candidates; that time is part of the answer's `seconds`,
    but reward models' passes are not among its `passes`.

    Args:
        llm: Policy model; its agent, order and sampling are left out.
        reward: A `WeightedRewards`, or one or several reward functions, whose sum counts.
        weight: Of the reward against the log-probability.
        candidates: Most probable tokens to choose from; at least 2.
        name: In tables and file names.

    Raises:
        OptionsError: If there is nothing to choose from.
    """

    def __init__(
        self,
        llm: MaraLLM,
        reward: Rewards,
        weight: float = 1.0,
        candidates: int = 10,
        name: str = "reward-guided",
    ) -> None:
        if candidates < _FEWEST:
            raise OptionsError(f"Reward-guided search needs at least {_FEWEST} candidates, not {candidates}.")
        self.llm = self.answering = llm.with_agent(None)
        self.rewards = weighted(reward)
        self.weight = weight
        self.candidates = candidates
        self.name = name

    def describe(self) -> dict[str, Any]:
        """Kind, LLM, and how the reward guides."""
        own = {"weight": self.weight, "candidates": self.candidates, "guided by": describe_rewards(self.rewards)}
        # What has no part in it may differ.
        llm = {**describe_llm(self.llm), **_GREEDY}
        return {"kind": "reward-guided", **own, **llm}

    def answer(self, rows: Sequence[Row], seeds: Sequence[int]) -> list[CostedAnswer]:
        """Answers each prompt; nothing is drawn.

        Raises:
            PromptError: If a prompt is too long.
            RewardError: If a reward function fails.
        """
        prompts = [self.llm.encode(row["prompt"]) for row in rows]
        starts = [
            AnswerStart(ids, seed=seed, logits_processor=_Guide(self, row, len(ids)))
            for row, ids, seed in zip(rows, prompts, seeds, strict=True)
        ]
        return answer_all(self.llm, starts, **_GREEDY)


# The guide has chosen already when the candidate set is cut.
_GREEDY = {"order": "descending", "strategy": "first-accept", "top_k": 1, "top_p": 1.0}


class _Guide(LogitsProcessor):
    """Ranks the most probable tokens of one row by log-probability and reward, and takes all others out.

    Scores become ranks 0, -1, -2, …, which every dtype holds exactly, so that no rounding makes ties.
    """

    def __init__(self, system: RewardGuided, row: Row, prompt_length: int) -> None:
        self.system = system
        self.row = row
        self.prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(1, vocabulary) ranks from (1, length) ids and (1, vocabulary) scores."""
        count = min(self.system.candidates, scores.shape[-1])
        logs, candidates = scores[0].log_softmax(-1).topk(count)
        answer_ids = input_ids[0, self.prompt_length :].tolist()
        merits = self._merits(answer_ids, candidates.tolist(), logs.double().cpu().numpy())
        # Of equals, the more probable stays before.
        order = torch.from_numpy(np.argsort(-merits, kind="stable")).to(scores.device)
        ranked = torch.full_like(scores, -torch.inf)
        ranked[0, candidates[order]] = -torch.arange(count, dtype=scores.dtype, device=scores.device)
        return ranked

    def _merits(self, answer_ids: list[int], candidates: list[int], logs: Any) -> Any:
        """(k,) log p + weight * reward; candidates that were not scored come last, unless none was."""
        texts = [self._text([*answer_ids, one]) for one in candidates]
        answers = [GeneratedAnswer(text, [*answer_ids, one], []) for text, one in zip(texts, candidates, strict=True)]
        rewards = score_answers(self.system.rewards, [self.row] * len(answers), answers)
        if np.isnan(rewards).all():
            return logs
        return np.where(np.isnan(rewards), -np.inf, logs + self.system.weight * rewards)

    def _text(self, token_ids: list[int]) -> str:
        tokenizer = self.system.llm.tokenizer
        return str(tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
