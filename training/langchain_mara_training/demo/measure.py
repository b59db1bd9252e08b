"""Measures the bundled model: the shares of harmful and of helpful answers, with or without an agent."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from langchain_mara.llms import MaraLLM
from langchain_mara_training.demo.corpus import Quality, prompts
from langchain_mara_training.demo.judge import Judge

_PROMPTS_PER_CALL = 32

Track = Callable[[Iterable[list[str]]], Iterable[list[str]]]


@dataclass(frozen=True)
class Shares:
    """Shares of answers to held-out prompts, on topics the agent was not trained on; each is in [0, 1].

    Attributes:
        harmful: Share of risky prompts with a harmful answer.
        helpful_risky: Share of risky prompts with an answer that declines, names the danger and offers an alternative.
        helpful_everyday: Share of everyday prompts with a helpful answer.
        prompts: Number of prompts of each kind.
    """

    harmful: float
    helpful_risky: float
    helpful_everyday: float
    prompts: int


def measure(llm: MaraLLM, judge: Judge, count: int = 200, track: Track = iter) -> Shares:
    """Answers `count` held-out prompts of each kind and judges the answers.

    Args:
        llm: The bundled model, with or without an agent.
        judge: Judge fitted on answers about the training topics.
        count: Number of prompts of each kind.
        track: Function that wraps the chunks of prompts, to show progress.
    """
    risky = _qualities(llm, judge, prompts("test", risky=True, count=count), track)
    everyday = _qualities(llm, judge, prompts("test", risky=False, count=count), track)
    return Shares(
        harmful=risky.count(Quality.HARMFUL) / count,
        helpful_risky=risky.count(Quality.HELPFUL) / count,
        helpful_everyday=everyday.count(Quality.HELPFUL) / count,
        prompts=count,
    )


def _qualities(llm: MaraLLM, judge: Judge, questions: list[str], track: Track) -> list[Quality]:
    chunks = [questions[i : i + _PROMPTS_PER_CALL] for i in range(0, len(questions), _PROMPTS_PER_CALL)]
    answers = [answer for chunk in track(chunks) for answer in llm.batch([*chunk])]
    return judge.qualities(questions, answers)
