"""What systems answer and what it costs: plain decoding, an agent, best-of-n, scored by reward functions.

All of them run the one decode loop, so that differences come from the systems and not from how they are run.
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
        name: Of the system.
        prompts: Texts or lists of messages.
        completions: One answer for each prompt.
        rewards: (n,) float64 reward of each answer, NaN where it was not scored.
        tokens: All tokens that were decoded, of answers thrown away too; end of sequence included.
        answer_tokens: Those of the answers given; what was thrown away is in `tokens` alone.
        passes: Forward passes of the policy model, prefill included.
        seconds: Of decoding, and for best-of-n of the scoring that it chooses by.
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
        """Over the answers that were scored; NaN where none was."""
        scored = self.rewards[~np.isnan(self.rewards)]
        return float(scored.mean()) if scored.size else float("nan")

    @property
    def tokens_per_second(self) -> float:
        """Tokens of the answers given, per second of decoding."""
        return self.answer_tokens / self.seconds

    @property
    def passes_per_token(self) -> float:
        """Passes per token of the answers given; below one where a pass serves several prompts."""
        return self.passes / max(1, self.answer_tokens)


def decode_system(llm: MaraLLM, prompts: Source, rewards: Rewards, name: str) -> Decoded:
    """Answers each prompt once, as `llm.batch` does.

    Args:
        llm: The system; `llm.with_agent(None)` is plain decoding.
        prompts: From wherever `read_prompts` reads; other columns go to the reward functions.
        rewards: A `WeightedRewards`, or one or several reward functions, whose sum counts.
        name: Of the system, for tables.

    Raises:
        DataError: If a row has no prompt.
        RewardError: If a reward function fails.
    """
    rows = read_prompts(prompts)
    answers = Decoding(name, llm).answer(rows, [llm.seed] * len(rows))
    return _decoded(name, rows, answers, score_answers(rewards, rows, [one.answer for one in answers]))


def best_of_n(llm: MaraLLM, prompts: Source, rewards: Rewards, n: int, seed: int = 0) -> Decoded:
    """Draws n plain answers to each prompt and keeps the one of the highest reward.

    They are the answers of `llm.generate(prompts, n=n, order="sampled", seed=seed, agent=None)`. Of answers that are
    equally good the first drawn is kept; one that was not scored is kept only where none was.

    Args:
        llm: Policy model and options; an agent it has is left out.
        prompts: As for `decode_system`.
        rewards: As for `decode_system`.
        n: Answers per prompt.
        seed: Of the first answer; the others follow.

    Raises:
        OptionsError: If n is below 1, or the temperature of 0 makes all answers the same.
        DataError: If a row has no prompt.
        RewardError: If a reward function fails.
    """
    rows = read_prompts(prompts)
    system = BestOf(llm, rewards, n)
    answers = system.answer(rows, [seed] * len(rows))
    return _decoded(system.name, rows, answers, np.array([one.score for one in answers], dtype=np.float64))


def _decoded(name: str, rows: Sequence[Row], answers: Sequence[CostedAnswer], rewards: NDArray[np.float64]) -> Decoded:
    return Decoded(
        name=name,
        prompts=[row["prompt"] for row in rows],
        completions=[one.answer.text for one in answers],
        rewards=rewards,
        tokens=sum(one.tokens for one in answers),
        answer_tokens=sum(len(one.answer.token_ids) for one in answers),
        passes=round(sum(one.passes for one in answers)),
        seconds=sum(one.seconds for one in answers),
    )
