"""What is measured on answers at one value of a dial: changed positions, distance from the plain model, harm."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from langchain_mara import MaraLLM
from langchain_mara_training.calibration.searches import risk_bound
from langchain_mara_training.data.readers import Row
from langchain_mara_training.evaluation.divergence import divergence
from langchain_mara_training.evaluation.preference_rate import bootstrap_interval
from langchain_mara_training.generation.generate import AnswerStart, GeneratedAnswer, generate_answers, score_answers
from langchain_mara_training.rewards.weighted import WeightedRewards

Target = Literal["changed", "divergence", "perplexity", "harmful"]
"""What is measured: the share of positions at which the agent changed the token, the mean of -log p under the plain
model, its exponential, or the share of answers that are harmful."""


class Measurement(NamedTuple):
    """What was measured at a value of the dial.

    Attributes:
        dial: The value.
        measured: The measurement, over all tokens of all answers, or over all answers for `harmful`.
        low: Lower end of its interval over prompts, by a percentile bootstrap; 0 for `harmful`.
        high: Upper end of the interval; for `harmful` the one-sided Clopper-Pearson bound.
        prompts: Number of answers that it rests on.
        tokens: Number of their tokens.
    """

    dial: float
    measured: float
    low: float
    high: float
    prompts: int
    tokens: int


class Sums(NamedTuple):
    """What is measured on one answer: a total, and over how many positions or answers it is."""

    total: float
    size: int


class Meter:
    """Answers prompts at values of a dial and measures the answers.

    Every value gets the same prompts with the same seeds, so that differences come from the dial.

    Args:
        llm: Policy model, agent and options.
        rows: Rows with prompts.
        target: What to measure.
        harm: Says of rows and answers whether each is harmful, for the target `harmful`.
        confidence: Level of the intervals.
        batch_size: Most answers at a time.
        random_state: Seed of draws and of the bootstrap.

    Raises:
        PromptError: If a prompt is too long.
    """

    def __init__(
        self,
        llm: MaraLLM,
        rows: Sequence[Row],
        target: Target,
        harm: "Harm | None" = None,
        *,
        confidence: float,
        batch_size: int,
        random_state: int,
    ) -> None:
        self.llm, self.plain, self.rows, self.target, self.harm = llm, llm.with_agent(None), rows, target, harm
        self.confidence, self.batch_size, self.random_state = confidence, batch_size, random_state
        seeds = [int(np.random.SeedSequence([random_state, i]).generate_state(1)[0]) for i in range(len(rows))]
        self.starts = [AnswerStart(llm.encode(row["prompt"]), seed=seed) for row, seed in zip(rows, seeds, strict=True)]

    def measure(self, option: str, value: float, advance: Callable[[int], Any] = lambda _: None) -> Measurement:
        """Answers all prompts and measures.

        Args:
            option: Name of the decoding option that is the dial.
            value: Its value.
            advance: Called with the number of further answers.

        Raises:
            RewardError: If a reward function fails.
        """
        sums, tokens, dial = [], 0, dict[str, Any]({option: value})
        for start in range(0, len(self.starts), self.batch_size):
            part = slice(start, start + self.batch_size)
            answers = generate_answers(self.llm, self.starts[part], self.batch_size, **dial)
            sums += self._sums(self.rows[part], answers)
            tokens += sum(len(answer.token_ids) for answer in answers)
            advance(len(answers))
        totals, counts = (np.array(each, dtype=np.float64) for each in zip(*sums, strict=True))
        return Measurement(value, *self._summary(totals, counts), len(sums), tokens)

    def _sums(self, rows: Sequence[Row], answers: Sequence[GeneratedAnswer]) -> list[Sums]:
        if self.target == "changed":
            indices = [[decision.index for decision in answer.decisions] for answer in answers]
            return [Sums(sum(index > 0 for index in own), len(own)) for own in indices]
        if self.target == "harmful":
            verdicts = self.harm(rows, answers) if self.harm is not None else []
            return [Sums(float(verdict), 1) for verdict in verdicts]
        means = [
            divergence(self.plain, row["prompt"], answer.token_ids) for row, answer in zip(rows, answers, strict=True)
        ]
        # An answer whose logits are not finite is beyond any limit.
        return [
            Sums((float("inf") if mean is None else mean) * len(answer.token_ids), len(answer.token_ids))
            for mean, answer in zip(means, answers, strict=True)
        ]

    def _summary(self, totals: NDArray[np.float64], counts: NDArray[np.float64]) -> tuple[float, float, float]:
        if self.target == "harmful":
            failures, trials = int(totals.sum()), len(totals)
            return failures / trials, 0.0, risk_bound(failures, trials, self.confidence)
        values = [_ratio(totals, counts), *_interval(totals, counts, self.confidence, self.random_state)]
        measured, low, high = np.exp(values) if self.target == "perplexity" else values
        return float(measured), float(low), float(high)


class Harm:
    """Says whether answers are harmful, by a classifier or by a reward and its threshold.

    An answer that was not scored counts as harmful.

    Args:
        judge: Reward function, or rewards.
        threshold: With a reward, answers whose reward is below this are harmful; None for a classifier, whose values
            above 0 mean harmful.
    """

    def __init__(self, judge: WeightedRewards, threshold: float | None) -> None:
        self.judge, self.threshold = judge, threshold

    def __call__(self, rows: Sequence[Row], answers: Sequence[GeneratedAnswer]) -> list[bool]:
        """Whether each of n answers, one to each row's prompt, is harmful.

        Raises:
            RewardError: If a reward function fails.
        """
        scores = score_answers(self.judge, rows, answers)
        harmless = scores <= 0 if self.threshold is None else scores >= self.threshold
        return [not each for each in harmless.tolist()]

    def describe(self) -> dict[str, Any]:
        """Names of the functions and the threshold, as plain values."""
        kind = {} if self.threshold is None else {"harmful below": self.threshold}
        return {"judged by": ", ".join(self.judge.names), **kind}


def _ratio(totals: NDArray[np.float64], counts: NDArray[np.float64], axis: int = -1) -> Any:
    return totals.sum(axis) / np.maximum(counts.sum(axis), 1)


def _interval(
    totals: NDArray[np.float64], counts: NDArray[np.float64], confidence: float, seed: int
) -> tuple[float, float]:
    """Percentile bootstrap over prompts of a ratio of sums."""
    if not np.isfinite(totals).all():
        return (float("inf"),) * 2
    return bootstrap_interval((totals, counts), _ratio, confidence, seed)
