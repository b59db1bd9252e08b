"""What systems answer and what it costs: plain decoding, an agent, best-of-n, scored by reward functions.

All of them run the one decode loop, so that differences come from the systems and not from how they are run.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from langchain_mara import MaraLLM
from langchain_mara.exceptions import OptionsError
from langchain_mara.policy import PolicyModel
from langchain_mara_training.answers import Answered, Rewards, Start, answer, score_answers
from langchain_mara_training.data import Prompt, Source, read_prompts
from langchain_mara_training.preference_rates import preference_rate

if TYPE_CHECKING:
    from langchain_mara_training.classifier import MaraClassifier
    from langchain_mara_training.features import TokenLabels

_ROWS_AT_ONCE = 16384


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
        seconds: Of decoding; scoring is not in it, although best-of-n cannot do without.
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
    answers, passes, seconds = _decode(llm, [Start(llm.encode(row["prompt"]), seed=llm.seed) for row in rows])
    return Decoded(
        name=name,
        prompts=[row["prompt"] for row in rows],
        completions=[one.text for one in answers],
        rewards=score_answers(rewards, rows, answers),
        tokens=_count(answers),
        answer_tokens=_count(answers),
        passes=passes,
        seconds=seconds,
    )


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
    if n < 1 or (n > 1 and llm.temperature == 0):
        raise OptionsError(f"Best-of-n needs n of at least 1 and a temperature above 0, not {n} and {llm.temperature}.")
    rows = [row for row in read_prompts(prompts) for _ in range(n)]
    ids = [llm.encode(row["prompt"]) for row in rows[::n] for _ in range(n)]
    starts = [Start(one, seed=seed + place % n, sampled=True) for place, one in enumerate(ids)]
    answers, passes, seconds = _decode(llm.with_agent(None), starts)
    scores = score_answers(rewards, rows, answers)
    best = np.where(np.isnan(scores), -np.inf, scores).reshape(-1, n).argmax(axis=1) + np.arange(0, len(rows), n)
    kept = [answers[place] for place in best]
    return Decoded(
        name=f"best-of-{n}",
        prompts=[row["prompt"] for row in rows[::n]],
        completions=[one.text for one in kept],
        rewards=scores[best],
        tokens=_count(answers),
        answer_tokens=_count(kept),
        passes=passes,
        seconds=seconds,
    )


def summary(system: Decoded, plain: Decoded) -> dict[str, float | None]:
    """A system's row in a table of systems; it has no preference rate against itself."""
    return {
        "mean reward": system.mean_reward,
        "preference rate": None if system is plain else preference_rate(system.rewards, plain.rewards),
        "tokens/s": system.tokens_per_second,
        "passes/token": system.passes_per_token,
        "seconds": system.seconds,
    }


def side_by_side(systems: Sequence[Decoded]) -> list[dict[str, Any]]:
    """For each prompt the `completions` and `rewards` of some systems, by their names."""
    return [
        {
            "prompt": prompt,
            "completions": {one.name: one.completions[i] for one in systems},
            "rewards": {one.name: float(one.rewards[i]) for one in systems},
        }
        for i, prompt in enumerate(systems[0].prompts)
    ]


def held_out_accuracy(classifier: "MaraClassifier", labels: "TokenLabels", rows: Sequence[int]) -> dict[str, Any]:
    """How often an agent decides rightly on labels it was not fitted to.

    Args:
        classifier: Fitted.
        labels: May be larger than memory.
        rows: (n,) numbers of the labels that took no part in fitting.

    Returns:
        `validation labels`; `validation accuracy`, and `majority share`, the accuracy of always giving the more
        frequent label. Both are None where there are no rows.
    """
    if not len(rows):
        return {"validation labels": 0, "validation accuracy": None, "majority share": None}
    right = 0
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        some = rows[start : start + _ROWS_AT_ONCE]
        right += int((classifier.predict(labels.X[some]) == labels.y[some]).sum())
    accepted = float(labels.y[rows].mean())
    shares = {"validation accuracy": right / len(rows), "majority share": max(accepted, 1 - accepted)}
    return {"validation labels": len(rows), **shares}


@dataclass
class PassCount:
    """Forward passes counted so far."""

    passes: int = 0

    def __call__(self, *_: object) -> None:
        """Counts one, as a forward hook."""
        self.passes += 1


@contextmanager
def count_passes(model: PreTrainedModel) -> Iterator[PassCount]:
    """Counts the forward passes of a policy model's backbone while the context is open.

    Whoever makes them: calls of other threads on the same model count, too.

    Args:
        model: The `model` of a `MaraLLM`.

    Yields:
        The count, which grows.
    """
    # Made before the hook is there: its first use of a model makes passes of its own.
    backbone = PolicyModel(model).backbone
    count = PassCount()
    handle = backbone.register_forward_hook(count)
    try:
        yield count
    finally:
        handle.remove()


def _decode(llm: MaraLLM, starts: Sequence[Start]) -> tuple[list[Answered], int, float]:
    """Answers, forward passes and seconds."""
    with count_passes(llm.model) as count:
        started = time.perf_counter()
        answers = answer(llm, starts, llm.batch_size)
        return answers, count.passes, time.perf_counter() - started


def _count(answers: Sequence[Answered]) -> int:
    return sum(len(one.token_ids) for one in answers)
