"""Answers of one system, their rewards and their costs: plain decoding, decoding with an agent, best-of-n.

All systems use the same decode loop, so any difference comes from the systems and not from how they are run.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from langchain_mara import MaraLLM
from langchain_mara_training.data.readers import Prompt, Row, Source, read_prompts
from langchain_mara_training.evaluation.systems import BestOf, Decoding
from langchain_mara_training.generation.costs import CostedAnswer
from langchain_mara_training.generation.generate import Rewards, score_answers


@dataclass(frozen=True, eq=False)
class Decoded:
    """One system's answers to a set of prompts, and what they cost.

    Attributes:
        name: Name of the system.
        prompts: Texts or lists of messages.
        completions: Answer to each prompt.
        rewards: (n,) float64 reward of each answer, NaN where it was not scored.
        tokens: Number of decoded tokens, including discarded answers and end-of-sequence tokens.
        answer_tokens: Number of tokens of the answers given, without discarded answers.
        passes: Number of passes of the policy model, prefill included.
        seconds: Duration of decoding; for best-of-n, also of the scoring that selects the answer.
    """

    name: str
    prompts: list[Prompt]
    completions: list[str]
    rewards: NDArray[np.float64]
    tokens: int
    answer_tokens: int
    passes: int
    seconds: float

    @property
    def mean_reward(self) -> float:
        """Mean reward of the answers that were scored; NaN if none was."""
        scored = self.rewards[~np.isnan(self.rewards)]
        return float(scored.mean()) if scored.size else float("nan")

    @property
    def tokens_per_second(self) -> float:
        """Tokens of the answers given per second of decoding; NaN if there were no prompts."""
        return self.answer_tokens / self.seconds if self.seconds else float("nan")

    @property
    def passes_per_token(self) -> float:
        """Passes per token of the answers given, NaN without tokens; below one where a pass serves several prompts."""
        return self.passes / self.answer_tokens if self.answer_tokens else float("nan")


def decode_system(llm: MaraLLM, prompts: Source, rewards: Rewards, name: str) -> Decoded:
    """Answers each prompt once, as `llm.batch` does.

    Args:
        llm: The system: policy model, agent and options; `llm.with_agent(None)` is plain decoding.
        prompts: Prompts, from any source that `read_prompts` reads; other columns go to the reward functions.
        rewards: A `WeightedRewards`, or one or several reward functions, which are summed.
        name: Name of the system, for tables.

    Raises:
        DataError: If a row has no prompt.
        RewardError: If a reward function fails.
    """
    rows = read_prompts(prompts)
    answers = Decoding(name, llm).answer(rows, [llm.seed] * len(rows))
    return _decoded(name, rows, answers, score_answers(rewards, rows, [costed.answer for costed in answers]))


def best_of_n(llm: MaraLLM, prompts: Source, rewards: Rewards, n: int, seed: int = 0) -> Decoded:
    """Draws n plain answers to each prompt and keeps the one with the highest reward.

    The answers are those of `llm.generate(prompts, n=n, order="sampled", seed=seed, agent=None)`. Among answers with
    equal rewards, the first one is kept. An answer that was not scored is kept only if none was scored.

    Args:
        llm: Policy model and options; its agent, if any, is not used.
        prompts: Prompts, from any source that `read_prompts` reads; other columns go to the reward functions.
        rewards: A `WeightedRewards`, or one or several reward functions, which are summed.
        n: Number of answers per prompt.
        seed: Seed of the first answer to a prompt; the next answers use the seeds that follow.

    Raises:
        OptionsError: If n is below 1, or a temperature of 0 would make all answers the same.
        DataError: If a row has no prompt.
        RewardError: If a reward function fails.
    """
    rows = read_prompts(prompts)
    system = BestOf(llm, rewards, n)
    answers = system.answer(rows, [seed] * len(rows))
    return _decoded(system.name, rows, answers, np.array([costed.score for costed in answers], dtype=np.float64))


def _decoded(name: str, rows: Sequence[Row], answers: Sequence[CostedAnswer], rewards: NDArray[np.float64]) -> Decoded:
    return Decoded(
        name=name,
        prompts=[row["prompt"] for row in rows],
        completions=[costed.answer.text for costed in answers],
        rewards=rewards,
        tokens=sum(costed.tokens for costed in answers),
        answer_tokens=sum(len(costed.answer.token_ids) for costed in answers),
        passes=round(sum(costed.passes for costed in answers)),
        seconds=sum(costed.seconds for costed in answers),
    )
