"""Reward-guided search: at each position, the candidate with the best sum of log-probability and weighted reward.

This is the greedy variant of ARGS (Khanov, Burapacheep, Li: "ARGS: Alignment as Reward-Guided Search", ICLR 2024;
reference: deeplearning-wisc/args, `argsearch.py`). ARGS adds logits instead of log-probabilities; at one position,
the two differ by a constant.
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
from langchain_mara_training.evaluation.systems import answer_all
from langchain_mara_training.generation.costs import CostedAnswer
from langchain_mara_training.generation.generate import AnswerStart, GeneratedAnswer, Rewards, score_answers, weighted
from langchain_mara_training.storage.identity.job_identity import describe_llm, describe_rewards

_FEWEST = 2


class RewardGuided:
    """Reward-guided search: reward functions score the answer so far, followed by each candidate.

    The reward functions are called once per row and token, with all its candidates. Their time counts in the answer's
    `seconds`; the passes of reward models do not count in its `passes`.

    Args:
        llm: Policy model; its agent, order and sampling options are not used.
        reward: A `WeightedRewards`, or one or several reward functions, which are summed.
        weight: Weight of the reward; the log-probability has weight 1.
        candidates: Number of the most probable tokens to choose from; at least 2.
        name: Name in tables and file names.

    Raises:
        OptionsError: If `candidates` is below 2.
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
            raise OptionsError(
                f"Reward-guided search needs at least {_FEWEST} candidates, not {candidates}. Raise candidates."
            )
        self.llm = self.answering = llm.with_agent(None)
        self.rewards = weighted(reward)
        self.weight = weight
        self.candidates = candidates
        self.name = name

    def describe(self) -> dict[str, Any]:
        """The kind of system, its settings, and the description of the LLM."""
        guide = {"weight": self.weight, "candidates": self.candidates, "guided by": describe_rewards(self.rewards)}
        # The LLM's values of these options have no influence, so they must not tell two systems apart.
        llm = {**describe_llm(self.llm), **_GREEDY}
        return {"kind": "reward-guided", **guide, **llm}

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


# The guide ranks the tokens before the candidate set is cut; decoding then takes the first.
_GREEDY = {"order": "descending", "strategy": "first-accept", "top_k": 1, "top_p": 1.0}


class _Guide(LogitsProcessor):
    """Ranks the most probable tokens of one row by log-probability and reward, and removes all others.

    It replaces scores by ranks 0, -1, -2, …, which every dtype represents exactly, so rounding cannot cause ties.
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
        # A stable sort keeps the more probable of two equal candidates first.
        order = torch.from_numpy(np.argsort(-merits, kind="stable")).to(scores.device)
        ranked = torch.full_like(scores, -torch.inf)
        ranked[0, candidates[order]] = -torch.arange(count, dtype=scores.dtype, device=scores.device)
        return ranked

    def _merits(self, answer_ids: list[int], candidates: list[int], logs: Any) -> Any:
        """(k,) log p + weight * reward. Candidates that were not scored come last, unless none was scored."""
        continued = [[*answer_ids, candidate] for candidate in candidates]
        answers = [GeneratedAnswer(self._text(token_ids), token_ids, []) for token_ids in continued]
        rewards = score_answers(self.system.rewards, [self.row] * len(answers), answers)
        if np.isnan(rewards).all():
            return logs
        return np.where(np.isnan(rewards), -np.inf, logs + self.system.weight * rewards)

    def _text(self, token_ids: list[int]) -> str:
        tokenizer = self.system.llm.tokenizer
        return str(tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
