"""SmolLM2 with two objectives: the harmless agent, a concise one, and both as a mixture.

    python benchmarks/real_mixture.py     docs/agents.md, "Mix several"

The concise agent is fitted to preference pairs of the model's own plain answers: the first sentence of an answer, which
ends there, is preferred to the whole answer. The questions are those that the harmless agent was fitted to. All systems
answer held-out prompts by soft guidance; the second objective is told by lengths and by answers that end by themselves.
The concise agent is surer of itself than the harmless one, so its weight is what turns from one objective to the other.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from langchain_mara_training import Comparison, Decoding, PreferenceLabeler, compare
from langchain_mara_training.demo.smollm2.own_answers import kept, own_answers, preferred_pairs
from langchain_mara_training.demo.smollm2.pairs import Pairs
from langchain_mara_training.demo.smollm2.questions import everyday_questions, risky_questions
from langchain_mara_training.demo.smollm2.side_by_side import AGENT
from langchain_mara_training.demo.smollm2.training import fitted
from matplotlib.figure import Figure
from real import perplexity
from real_agents import kept_agent
from real_bench import Bench
from rich.table import Table
from tables import RESULTS, Output, console, publish

from langchain_mara import MixtureAgent
from langchain_mara.agents.base import Agent
from langchain_mara.loading.models import load_agent

STRENGTH = 0.94
QUESTIONS = 200
WEIGHTS = (0.1, 0.3, 1)
"""Weights of the concise agent."""
HARMLESS, CONCISE, BOTH, ALL = "harmless", "concise, weight {}", "both, weight {}", "both, all must accept"
COLUMNS = {
    "reward": "preferred by the reward",
    "judge": "preferred by the judge",
    "tokens": "tokens",
    "finished": "finished, %",
    "perplexity": "perplexity over plain",
}
FORMS = {"reward": "{:+.2f}", "judge": "{:+.2f}", "tokens": "{:.1f}", "finished": "{:.0f}", "perplexity": "{:.2f}"}
_FIRST_SENTENCE = re.compile(r".{20,}?[.!?](?=\s)", re.DOTALL)


def concise_pairs(bench: Bench, count: int) -> Pairs:
    """Own plain answers to questions of one message: their first sentence is preferred to the whole."""
    plain, work = bench.llm.with_agent(None), bench.folder
    asked = kept(work / "questions.json", lambda: [everyday_questions(plain), risky_questions(bench.split.train)])
    answers = kept(work / "plain-answers.json", lambda: [own_answers(plain, part) for part in asked])
    chosen = [list(_with_first_sentence(*part)) for part in zip(asked, answers, strict=True)]
    # As many everyday questions as risky ones, spread evenly.
    picked = [part[i * len(part) // (count // 2)] for part in chosen for i in range(count // 2)]
    questions, first, whole = zip(*picked, strict=True)
    return preferred_pairs(questions, first, whole, first=0)


def _with_first_sentence(questions: list[Any], answers: list[str]) -> Iterator[tuple[Any, str, str]]:
    """Questions of one message, with the first sentence of the answer and the answer, if it has several sentences."""
    for question, answer in zip(questions, answers, strict=True):
        sentence = _FIRST_SENTENCE.match(answer)
        if len(question) == 1 and sentence is not None:
            yield question, sentence.group(), answer


def concise_agent(bench: Bench, seed: int) -> Agent:
    """A look-ahead agent that prefers answers of one sentence."""
    labels = PreferenceLabeler(bench.llm, judges="before").label(
        concise_pairs(bench, QUESTIONS), bench.folder / "labels-concise"
    )
    agent: Agent = fitted(labels, seed).agent_
    return agent


def make_agents(harmless: Agent, concise: Agent) -> dict[str, Agent | None]:
    """The agents to measure, by name; plain decoding comes first."""
    both = [harmless, concise]
    return {
        "plain": None,
        HARMLESS: harmless,
        **{CONCISE.format(weight): MixtureAgent(both, [0, weight]) for weight in WEIGHTS},
        **{BOTH.format(weight): MixtureAgent(both, [1, weight]) for weight in WEIGHTS},
        ALL: MixtureAgent(both, rule="all"),
    }


def held_out(bench: Bench, count: int) -> list[Any]:
    """Held-out prompts, the shortest conversations: others cost several times as much and change nothing here."""
    prompts = [pair["prompt"] for pair in bench.split.test]
    length = {i: sum(len(message["content"]) for message in prompt) for i, prompt in enumerate(prompts)}
    return [{"prompt": prompts[i]} for i in sorted(sorted(length, key=length.__getitem__)[:count])]


def figures(comparison: Comparison, name: str, ends: int) -> dict[str, float]:
    """The figures of a system on both objectives; `ends` is the token that ends an answer."""
    answers = comparison.answers[name]
    values = {
        "tokens": float(np.mean([answer.answer_tokens for answer in answers])),
        "finished": 100 * float(np.mean([(answer.token_ids or [])[-1:] == [ends] for answer in answers])),
        "perplexity": perplexity(comparison, name),
    }
    for column, reward in zip(("reward", "judge"), comparison.reward_names, strict=True):
        values[column] = 0.0 if name == "plain" else comparison.preference(name, "plain", reward).rate
    return values


def picture(rows: dict[str, dict[str, float]], file: Path) -> None:
    """Both objectives against each other, one point per system; lines join the weights of the concise agent."""
    drawing = Figure(figsize=(6.5, 4.2), layout="constrained")
    axes = drawing.subplots()
    lines = {name.partition(",")[0]: [name.format(weight) for weight in WEIGHTS] for name in (CONCISE, BOTH)}
    joined = {name for names in lines.values() for name in names}
    for label, names in {**lines, **{name: [name] for name in rows if name not in joined}}.items():
        points = [(rows[name]["finished"], rows[name]["reward"]) for name in names]
        axes.plot(*zip(*points, strict=True), marker="o", markersize=5, linewidth=1, label=label)
        for name, point in zip(names, points, strict=True):
            if name in joined:
                weight = name.rpartition(" ")[2]
                axes.annotate(weight, point, xytext=(5, 4), textcoords="offset points", fontsize=7)
    axes.legend(fontsize=8)
    axes.axhline(0, color="grey", linewidth=0.6)
    axes.set(xlabel="answers that end by themselves within 48 tokens, %", ylabel="preferred to plain by the reward")
    drawing.savefig(file, dpi=150)


def main(
    folder: Annotated[Path, typer.Option(help="Folder of results and agents, that of real.py.")] = RESULTS / "real",
    count: Annotated[int, typer.Option(min=1, help="Held-out prompts.")] = 100,
    strength: Annotated[float, typer.Option(help="Strength of soft guidance, for all agents.")] = STRENGTH,
    seed: Annotated[int, typer.Option(help="Seed of the fits.")] = 0,
    output: Output = None,
) -> None:
    """Each agent alone and both as a mixture, on both objectives."""
    bench = Bench(folder, 0)
    concise = kept_agent(folder / f"seed-{seed}" / "concise", lambda: concise_agent(bench, seed))
    harmless: Any = load_agent(AGENT)
    agents = make_agents(harmless, concise)
    guided = bench.llm.model_copy(update={"strategy": "guided", "strength": strength})
    systems = [Decoding(name, guided.with_agent(agent)) for name, agent in agents.items()]
    comparison = compare(
        systems, held_out(bench, count), [bench.reward, bench.judge], folder / f"mixture-{strength}", verbose=True
    )
    ends = bench.llm.tokenizer.eos_token_id
    rows = {name: figures(comparison, name, ends) for name in agents}
    table = Table("system", *COLUMNS.values(), title=f"{count} held-out prompts, strength {strength}")
    for name, values in rows.items():
        table.add_row(name, *(form.format(values[column]) for column, form in FORMS.items()))
    publish(table, output, rows)
    picture(rows, folder / "mixture.png")
    console.print(f"picture: {folder / 'mixture.png'}")


if __name__ == "__main__":
    torch.set_flush_denormal(True)
    typer.run(main)
