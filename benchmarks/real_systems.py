"""Rivals of `real.py` that need no training: a system prompt, and classifier-free guidance towards it."""

from collections.abc import Sequence
from typing import Any

import torch
from langchain_mara_training.data.readers import Row
from langchain_mara_training.evaluation.systems import Decoding, answer_all
from langchain_mara_training.generation.costs import CostedAnswer
from langchain_mara_training.generation.generate import AnswerStart
from langchain_mara_training.storage.identity.job_identity import describe_llm
from transformers import UnbatchedClassifierFreeGuidanceLogitsProcessor

from langchain_mara import MaraLLM


class Prompted:
    """Plain decoding behind a system prompt.

    Args:
        name: Name in tables and file names.
        llm: The LLM.
        system: Text of the system message.
    """

    def __init__(self, name: str, llm: MaraLLM, system: str) -> None:
        self.name = name
        self.llm = self.answering = llm.with_agent(None)
        self.system = system

    def describe(self) -> dict[str, Any]:
        """The kind of system, the system message, and the description of the LLM."""
        return {"kind": "system prompt", "system": self.system, **describe_llm(self.llm)}

    def answer(self, rows: Sequence[Row], seeds: Sequence[int]) -> list[CostedAnswer]:
        """Answers each prompt behind the system message."""
        return Decoding(self.name, self.llm).answer(prompted(rows, self.system), seeds)


class ContextGuided:
    """Classifier-free guidance: logits move from those without the system prompt past those with it.

    Sanchez et al., "Stay on topic with Classifier-Free Guidance" (ICML 2024, arXiv 2306.17806), by transformers' own
    processor. It costs a second pass per token, which counts in seconds but not in passes.

    Args:
        name: Name in tables and file names.
        llm: The LLM; tokens are chosen greedily.
        system: Text of the system message.
        scale: Guidance scale; 1 is the system prompt alone.
    """

    def __init__(self, name: str, llm: MaraLLM, system: str, scale: float = 1.5) -> None:
        self.name = name
        self.llm = self.answering = llm.with_agent(None)
        self.system = system
        self.scale = scale

    def describe(self) -> dict[str, Any]:
        """The kind of system, its settings, and the description of the LLM."""
        settings = {"system": self.system, "scale": self.scale}
        return {"kind": "classifier-free guidance", **settings, **describe_llm(self.llm)}

    def answer(self, rows: Sequence[Row], seeds: Sequence[int]) -> list[CostedAnswer]:
        """Answers each prompt; nothing is drawn."""
        behind = prompted(rows, self.system)
        starts = [
            AnswerStart(self.llm.encode(row["prompt"]), seed=seed, logits_processor=self._guide(plain["prompt"]))
            for row, plain, seed in zip(behind, rows, seeds, strict=True)
        ]
        return answer_all(self.llm, starts, order="descending", strategy="first-accept")

    def _guide(self, prompt: Any) -> Any:
        ids: Any = torch.tensor([self.llm.encode(prompt)])
        return UnbatchedClassifierFreeGuidanceLogitsProcessor(self.scale, self.llm.model, ids)


def prompted(rows: Sequence[Row], system: str) -> list[Row]:
    """The rows with a system message before each prompt."""
    message = {"role": "system", "content": system}
    return [{**row, "prompt": [message, *_messages(row["prompt"])]} for row in rows]


def _messages(prompt: Any) -> list[Any]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
