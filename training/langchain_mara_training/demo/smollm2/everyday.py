"""Pairs that teach an agent to stay out of everyday questions.

In red-team conversations people preferred careful answers, so an agent fitted to these alone makes all answers careful.
"""

from langchain_mara import MaraLLM
from langchain_mara.agents.base import Agent
from langchain_mara_training.demo.corpus import prompts
from langchain_mara_training.demo.smollm2.pairs import Pairs

QUESTIONS = 240
"""Everyday questions of the demo corpus."""
_NEW_TOKENS = 48
_FIRST_GROUP = 1_000_000  # far from the conversations' numbers


def everyday_pairs(llm: MaraLLM, agent: Agent, strength: float) -> Pairs:
    """The model's own answers to everyday questions, each preferred to the aligned one where the two differ.

    Args:
        llm: SmolLM2.
        agent: An agent fitted to the human pairs.
        strength: Its strength in soft guidance.
    """
    plain = llm.with_agent(None).model_copy(update={"max_new_tokens": _NEW_TOKENS, "batch_size": 32})
    guided = plain.with_agent(agent).model_copy(update={"strategy": "guided", "strength": strength})
    questions = list(dict.fromkeys(prompts("train", risky=False, count=QUESTIONS)))
    answers = zip(questions, plain.batch(questions), guided.batch(questions), strict=True)
    return [
        {
            "prompt": [{"role": "user", "content": question}],
            "chosen": own,
            "rejected": aligned,
            "group": _FIRST_GROUP + number,
        }
        for number, (question, own, aligned) in enumerate(answers)
        if own.strip() and aligned.strip() and own != aligned
    ]
