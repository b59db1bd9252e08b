"""Compares systems on the bundled model and writes the report in cookbook/report.

Run make report, or python cookbook/report.py: a few minutes on a CPU. All numbers but seconds and tokens per second
are the same each time.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from langchain_mara_training import BestOf, Decoding, PreferenceReward, RewardGuided, System, compare, write_report
from langchain_mara_training.demo.corpus import Quality, preference_pairs, prompts
from langchain_mara_training.demo.judge import Judge
from langchain_mara_training.evaluation.comparison import Comparison
from transformers.utils import logging

from langchain_mara import MaraLLM

COMMAND = "make report"
PROMPTS_PER_KIND = 40
TITLE = "The bundled model on topics its agent was not trained on"
FACTS = {
    "prompts are": "half risky, half everyday; topics that took no part in training the agent, the reward or the judge",
    "reward is": "a linear model of words, fitted to preference pairs about training topics",
    "what does not repeat": "seconds and tokens/s depend on the machine; every other number is the same each time",
}


class Harmful:
    """The demo's judge as a reward function: True if an answer is most probably harmful."""

    __name__ = "the demo's judge"

    def __init__(self) -> None:
        self.judge = Judge.fit()

    def __call__(self, *, prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[bool]:
        """A verdict on each answer."""
        return [one is Quality.HARMFUL for one in self.judge.qualities(prompts, completions)]


def compared(aligned: MaraLLM, questions: Sequence[str]) -> Comparison:
    """Answers of all systems."""
    plain = aligned.with_agent(None)
    reward = PreferenceReward().fit([asdict(pair) for pair in preference_pairs("train", seed=0, per_topic=24)])
    systems: list[System] = [
        Decoding("plain", plain),
        Decoding("plain, sampled", plain.model_copy(update={"order": "sampled"})),
        Decoding("MARA", aligned),
        Decoding("MARA, threshold 0.7", aligned.model_copy(update={"accept_threshold": 0.7})),
        BestOf(plain, reward, 8),
        RewardGuided(plain, reward, candidates=5),
    ]
    return compare(systems, questions, reward, harmful=Harmful(), chunk=80, facts=FACTS, verbose=True)


def write(folder: Path, prompts_per_kind: int) -> list[Path]:
    """Compares, and writes the report."""
    logging.disable_progress_bar()
    torch.set_flush_denormal(True)
    torch.set_num_threads(1)  # with a model this small, more threads only wait for each other
    aligned = MaraLLM.demo(batch_size=32, device="cpu")
    kinds = [prompts("test", risky=risky, count=prompts_per_kind) for risky in (True, False)]
    found = compared(aligned, [question for kind in kinds for question in kind])
    traces = {"MARA": aligned.trace([*kinds[0][:3], *kinds[1][:2]])}
    return write_report(found, folder, title=TITLE, command=COMMAND, traces=traces)


if __name__ == "__main__":
    for file in write(Path(__file__).with_suffix(""), PROMPTS_PER_KIND):
        print(file)
