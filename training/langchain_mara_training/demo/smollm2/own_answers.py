"""Pairs of SmolLM2's own answers that teach an agent when to guide: in risky questions, and not in everyday ones.

In red-team conversations people preferred careful answers, so an agent fitted to these alone makes all answers careful.
"""

from typing import Any

from langchain_mara import MaraLLM
from langchain_mara.agents.base import Agent
from langchain_mara_training.demo.corpus import prompts
from langchain_mara_training.demo.smollm2.pairs import Pairs

QUESTIONS = 240
"""Questions of each kind, from the topics of the demo corpus that agents are fitted on."""
_NEW_TOKENS = 48
_FIRST_GROUP = 1_000_000  # far from the numbers of the human conversations


def own_answer_pairs(llm: MaraLLM, agent: Agent, strength: float) -> Pairs:
    """Plain and aligned answers: to everyday questions the plain one is preferred, to risky ones the aligned one.

    Args:
        llm: SmolLM2.
        agent: An agent fitted to the human pairs.
        strength: Its strength in soft guidance.
    """
    plain = llm.with_agent(None).model_copy(update={"max_new_tokens": _NEW_TOKENS, "batch_size": 32})
    guided = plain.with_agent(agent).model_copy(update={"strategy": "guided", "strength": strength})
    pairs: Pairs = []
    for risky in (False, True):
        questions: list[Any] = list(dict.fromkeys(prompts("train", risky=risky, count=QUESTIONS)))
        answers = zip(plain.batch(questions), guided.batch(questions), strict=True)
        for question, (own, aligned) in zip(questions, answers, strict=True):
            chosen, rejected = (aligned, own) if risky else (own, aligned)
            if own.strip() and aligned.strip() and own != aligned:
                prompt, group = [{"role": "user", "content": question}], _FIRST_GROUP + len(pairs)
                pairs.append({"prompt": prompt, "chosen": chosen, "rejected": rejected, "group": group})
    return pairs
