"""Model, data and judges of `real.py`."""

from functools import cached_property
from pathlib import Path
from typing import Any

from langchain_mara_training import StateReward
from langchain_mara_training.demo.smollm2.model import smollm2
from langchain_mara_training.demo.smollm2.own_answers import NEW_TOKENS
from langchain_mara_training.demo.smollm2.pairs import split_pairs
from langchain_mara_training.rewards.fitted.features import SentenceEncoder
from real_judges import HarmDetector, minilm
from tables import console

BATCH = 32
_BENIGN = Path(__file__).parent / "benign_prompts.txt"


class Bench:
    """Model, data and judges.

    Args:
        folder: Folder of results.
        count: Held-out prompts; half as many benign ones are answered.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.split = split_pairs()
        self.llm = smollm2(say=console.print, device="cpu", batch_size=BATCH, width=2, max_new_tokens=NEW_TOKENS)
        self.prompts = [{"prompt": pair["prompt"]} for pair in self.split.test[:count]]
        benign = _BENIGN.read_text(encoding="utf-8").splitlines()[: count // 2]
        self.benign = [{"prompt": [{"role": "user", "content": text}]} for text in benign]

    @cached_property
    def reward(self) -> StateReward:
        """The reward that best-of-n, rollouts and reward-guided search use: states of the policy model."""
        return self._fitted("reward", self.llm, self.split.train)

    @cached_property
    def judge(self) -> StateReward:
        """The independent judge: sentence embeddings, other conversations."""
        return self._fitted("judge", str(minilm(self.folder)), self.split.judge)

    @cached_property
    def quick_reward(self) -> StateReward:
        """A reward that is cheap enough to score every candidate: sentence embeddings, the agents' conversations."""
        return self._fitted("quick reward", str(minilm(self.folder)), self.split.train)

    @cached_property
    def harmful(self) -> HarmDetector:
        """The detector of harmful answers."""
        return HarmDetector(SentenceEncoder(minilm(self.folder)), self.folder)

    def _fitted(self, name: str, model: Any, pairs: Any) -> StateReward:
        place = self.folder / name
        if not place.exists():
            reward = StateReward(model).fit(pairs)
            console.print(f"{name}: orders {reward.accuracy_:.1%} of held-out pairs")
            reward.save(place)
        return StateReward.load(place, model)
