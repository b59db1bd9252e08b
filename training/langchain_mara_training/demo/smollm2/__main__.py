"""Rebuilds the shipped agent of SmolLM2 from scratch: `python -m langchain_mara_training.demo.smollm2`.

Labels of human preference pairs, a fit with default parameters, and the reward that the demo scores answers with.
"""

from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from langchain_mara import MaraLLM
from langchain_mara.agents.embedding_sketch import embedding_sketch
from langchain_mara.agents.look_ahead import LookAheadAgent
from langchain_mara.loading.models import BUILT_IN_AGENTS_FOLDER
from langchain_mara_training.demo.smollm2.model import HUB_ID, smollm2
from langchain_mara_training.demo.smollm2.pairs import split_pairs
from langchain_mara_training.demo.smollm2.side_by_side import AGENT, REWARD_FOLDER
from langchain_mara_training.demo.smollm2.training import SEED, fit_agent
from langchain_mara_training.fitting.classifier import MaraClassifier
from langchain_mara_training.rewards.fitted.state_reward import StateReward
from langchain_mara_training.storage.model_card import save_agent

AGENT_FOLDER = BUILT_IN_AGENTS_FOLDER / AGENT.partition(":")[2]
"""Folder of the shipped agent."""
STRENGTH = 0.94
"""Found on prompts of the judge's conversations, see docs/results.md."""
RECOMMENDED: dict[str, float | str] = {"strategy": "guided", "strength": STRENGTH}
"""Decoding options that the agent recommends."""
DATA = {
    "source": "Anthropic/hh-rlhf, harmless-base, test split; and own answers to everyday and risky questions",
    "license": "MIT",
    "labeler": "preference",
}
"""Where the labels come from, for the model card."""
USE = {
    "for": "SmolLM2-135M-Instruct in any quantization, English, short answers; examples and comparisons",
    "not for": "protection of anybody: the model stays small and unreliable, and other languages were never tried",
    "measured": "docs/results.md of langchain-mara: preference by two judges, harm, over-refusal, perplexity",
}
"""What the agent is for, for the model card."""


def shipped_agent(llm: MaraLLM, classifier: MaraClassifier) -> LookAheadAgent:
    """The fitted agent with what it should know about its model: recommended options and a sketch of the embeddings."""
    found = classifier.agent_
    embeddings: Any = llm.model.get_input_embeddings()
    agent = LookAheadAgent(
        found.hidden_size,
        found.width,
        found.rank,
        policy_model=HUB_ID,
        recommended_options=RECOMMENDED,
        policy_sketch=embedding_sketch(embeddings.weight),
    )
    agent.load_state_dict(found.state_dict())
    return agent.half()


def main(
    work: Annotated[Path, typer.Option(help="Folder of the labels; an interrupted training resumes there.")],
    output: Annotated[Path, typer.Option(help="Folder of the agent; by default the shipped one.")] = AGENT_FOLDER,
    reward: Annotated[Path, typer.Option(help="Folder of the reward; by default the shipped one.")] = REWARD_FOLDER,
    seed: Annotated[int, typer.Option(help="Seed of the fit.")] = SEED,
) -> None:
    """Fits the agent and the reward of SmolLM2 to human preferences, and saves both."""
    torch.set_num_threads(1)  # as the shipped files were made: rounding depends on the number of threads
    llm = smollm2(say=typer.echo, device="cpu")
    pairs = split_pairs().train
    classifier = fit_agent(llm, pairs, work, seed)
    save_agent(shipped_agent(llm, classifier), output, {"Labels": {"pairs": len(pairs), **DATA}, "Use": USE})
    typer.echo(f"agent: written to {output}")
    # The folder of this machine's copy means nothing elsewhere.
    learned = StateReward(llm.model_copy(update={"model_id": HUB_ID})).fit(pairs)
    learned.save(reward)
    typer.echo(f"reward: written to {reward}, orders {learned.accuracy_:.1%} of held-out pairs")


if __name__ == "__main__":
    typer.run(main)
