"""Look-ahead agents of the bundled model: harmful and helpful answers on topics not used in training, several seeds.

    python benchmarks/look_ahead.py                     an agent fitted to preference pairs
    python benchmarks/look_ahead.py --kind distilled    one that learns from the shipped state agent

Both decode by the first accepted candidate and by soft guidance, with default parameters; nothing is tuned. The shipped
state agent and plain decoding have no seed. Results of each seed are kept in a folder, and the command resumes there.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from alignment import FirstSeed, Folder, Results, Seeds, seed_by_seed, show, training_prompts
from langchain_mara_training import MaraClassifier, PreferenceLabeler, distill
from langchain_mara_training.demo.corpus import preference_pairs
from langchain_mara_training.demo.judge import Judge
from langchain_mara_training.demo.measure import measure
from tables import RESULTS, Output

from langchain_mara import MaraLLM
from langchain_mara.agents.base import Agent
from langchain_mara.loading.models import DEMO_AGENT_FOLDER

DISTILLATION_PROMPTS = 300
SETTINGS: dict[str, dict[str, Any]] = {"first accepted": {}, "guided": {"strategy": "guided"}}
COLUMNS = {
    "harmful": "harmful to risky prompts, %",
    "helpful_risky": "helpful to risky prompts, %",
    "helpful_everyday": "helpful to everyday prompts, %",
}


def fitted(llm: MaraLLM, seed: int, per_topic: int) -> Agent:
    """An agent fitted to preference pairs about the training topics."""
    pairs = [asdict(pair) for pair in preference_pairs("train", seed, per_topic)]
    labels = PreferenceLabeler(llm, judges="before", random_state=seed).label(pairs)
    classifier = MaraClassifier(agent="look-ahead", random_state=seed)
    agent: Agent = classifier.fit(labels.X, labels.y, labels.weight, labels.groups).agent_
    return agent


def distilled(llm: MaraLLM, seed: int) -> Agent:
    """An agent that learns what the shipped state agent says of candidates, on prompts about the training topics."""
    prompts = training_prompts(seed, DISTILLATION_PROMPTS)
    return distill(DEMO_AGENT_FOLDER, llm, prompts, random_state=seed).agent


def main(
    folder: Folder = RESULTS / "look-ahead",
    kind: Annotated[Literal["fitted", "distilled"], typer.Option(help="How the agents are made.")] = "fitted",
    pairs: Annotated[int, typer.Option(min=1, help="Preference pairs per topic that an agent is fitted to.")] = 12,
    first_seed: FirstSeed = 0,
    seeds: Seeds = 5,
    count: Annotated[int, typer.Option(min=1, help="Held-out prompts of each kind.")] = 200,
    output: Output = None,
) -> None:
    """Shares of harmful and helpful answers: means and standard deviations over seeds."""
    # Answers do not depend on the width, and on a CPU a narrow one is fastest here.
    plain, judge = MaraLLM.demo(agent=None, batch_size=32, width=2, device="cpu"), Judge.fit()

    def shares(agent: Agent | Path | None, options: dict[str, Any]) -> dict[str, float]:
        found = asdict(measure(plain.with_agent(agent).model_copy(update=options), judge, count))
        return {column: 100 * found[column] for column in COLUMNS}

    name = f"fitted to {pairs} pairs" if kind == "fitted" else kind

    def by_setting(seed: int) -> Results:
        agent = fitted(plain, seed, pairs) if kind == "fitted" else distilled(plain, seed)
        return {f"{name}, {setting}": shares(agent, options) for setting, options in SETTINGS.items()}

    files = [(seed, folder / f"{name}, seed {seed}.json") for seed in range(first_seed, first_seed + seeds)]
    results = seed_by_seed(files, by_setting)
    show(results, COLUMNS, f"look-ahead agents, {count} held-out prompts of each kind, {seeds} seeds", output)
    unseeded = seed_by_seed(
        [(0, folder / "unseeded.json")],
        lambda _: {"plain": shares(None, {}), "shipped state agent": shares(DEMO_AGENT_FOLDER, {})},
    )
    show(unseeded, COLUMNS, f"for comparison, {count} held-out prompts of each kind", output)


if __name__ == "__main__":
    torch.set_flush_denormal(True)
    typer.run(main)
