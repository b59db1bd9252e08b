"""Alignment of the bundled model: the gain from agents on topics not used in training, and its cost.

    python benchmarks/alignment.py table      agents against plain decoding and best-of-n, several seeds
    python benchmarks/alignment.py ablation   order, threshold, candidate filter and width, with the agents of `table`

Both store the results of each seed in a folder and resume there.
"""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from curve import draw_curve
from langchain_mara_training import (
    Decoded,
    MaraAligner,
    MaraClassifier,
    PreferenceLabeler,
    PreferenceReward,
    best_of_n,
    decode_system,
    preference_rate,
)
from langchain_mara_training.demo.corpus import Quality, preference_pairs, prompts
from langchain_mara_training.demo.judge import Judge
from langchain_mara_training.evaluation.divergence import divergence
from rich.table import Table
from tables import RESULTS, Output, console, publish

from langchain_mara import MaraAgent, MaraLLM
from langchain_mara.agents.base import Agent

Results = dict[str, dict[str, float]]
"""Figures by name, by the name of the system."""

app = typer.Typer(add_completion=False, help=__doc__, rich_markup_mode=None)
Folder = Annotated[Path, typer.Option(help="Folder of results and agents.")]
FirstSeed = Annotated[int, typer.Option(help="First seed.")]
Seeds = Annotated[int, typer.Option(min=1, help="Number of seeds.")]
EvaluationPrompts = Annotated[int, typer.Option(min=1, help="Held-out prompts of each kind to measure on.")]

PREFERENCE, ROLLOUT = "preference labels", "rollout labels"
ALIGNERS: dict[str, dict[str, Any]] = {
    PREFERENCE: {"labeler": "preference", "rounds": 1},
    ROLLOUT: {"labeler": "rollout", "rounds": 3, "labeler_options": {"generations": 2, "positions": 8}},
}
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)
COLUMNS = {
    "harmful": "harmful, %",
    "reward": "mean reward",
    "preference_rate": "preference rate",
    "labels": "labels",
    "label_seconds": "labeling, s",
    "fit_seconds": "fitting, s",
    "tokens_per_second": "tokens/s",
    "threshold": "threshold",
    "passes_per_answer": "passes per answer",
    "seconds_over_plain": "time over plain",
}


class Bench:
    """Prompts, judge and reward to measure systems with; the reward is fitted to pairs about the training topics.

    Args:
        count: Number of held-out prompts of each kind.
        asked: Prompts to use instead; the first `count` of them are risky.
    """

    def __init__(self, count: int, asked: Sequence[str] = ()) -> None:
        self.risky = count
        held_out = [*prompts("test", risky=True, count=count), *prompts("test", risky=False, count=count)]
        self.prompts = list(asked) or held_out
        self.judge = Judge.fit()
        # With 32 rows per pass, more siblings would cost a CPU more than they save. Answers do not depend on the width.
        self.plain = MaraLLM.demo(agent=None, batch_size=32, width=2, device="cpu")
        self.rewards = PreferenceReward().fit(pairs(0))
        self.baseline = decode_system(self.plain, self.prompts, self.rewards, "plain")

    def measure(self, decode: Callable[[], Decoded]) -> dict[str, float]:
        """Decodes with a system right after plain decoding, so that their times are comparable."""
        plain = decode_system(self.plain, self.prompts, self.rewards, "plain")
        decoded = decode()
        qualities = self.judge.qualities(self.prompts, decoded.completions)[: self.risky]
        return {
            "harmful": 100 * qualities.count(Quality.HARMFUL) / self.risky,
            "reward": decoded.mean_reward,
            "preference_rate": preference_rate(decoded.rewards, self.baseline.rewards),
            "tokens_per_second": decoded.tokens_per_second,
            "passes_per_answer": decoded.passes / len(self.prompts),
            "seconds_over_plain": decoded.seconds / plain.seconds,
            "closeness": self.closeness(decoded.completions),
        }

    def system(self, agent: Agent | None, **options: Any) -> dict[str, float]:
        """Measures decoding with an agent, one answer per prompt."""
        llm = self.plain.with_agent(agent).model_copy(update=options)
        return self.measure(lambda: decode_system(llm, self.prompts, self.rewards, "system"))

    def reward(self, agent: Agent) -> float:
        """Mean reward of an agent's answers."""
        return decode_system(self.plain.with_agent(agent), self.prompts, self.rewards, "system").mean_reward

    def best_threshold(self, agent: Agent, tuning_prompts: Sequence[str]) -> float:
        """The accept threshold with the highest mean reward on prompts about training topics."""
        llm = self.plain.with_agent(agent)
        systems = [llm.model_copy(update={"accept_threshold": threshold}) for threshold in THRESHOLDS]
        means = [decode_system(system, tuning_prompts, self.rewards, "tuning").mean_reward for system in systems]
        return THRESHOLDS[means.index(max(means))]

    def closeness(self, completions: Sequence[str]) -> float:
        """Mean log-probability of the answers' tokens under the plain model."""
        answers = [self.plain.get_token_ids(text) for text in completions]
        distances = [
            divergence(self.plain, prompt, token_ids) or 0.0
            for prompt, token_ids in zip(self.prompts, answers, strict=True)
        ]
        return -float(np.average(distances, weights=[len(token_ids) for token_ids in answers]))


@cache
def pairs(seed: int) -> list[dict[str, Any]]:
    """Preference pairs about the training topics, in TRL's format."""
    return [asdict(pair) for pair in preference_pairs("train", seed, 24)]


def training_prompts(seed: int, count: int) -> list[str]:
    """Prompts about the training topics, half of them risky."""
    return [prompt for risky in (True, False) for prompt in prompts("train", risky=risky, count=count // 2, seed=seed)]


@app.command()
def table(
    folder: Folder = RESULTS / "alignment",
    first_seed: FirstSeed = 0,
    seeds: Seeds = 5,
    count: EvaluationPrompts = 100,
    rollout_prompts: Annotated[int, typer.Option(help="Training prompts of the rollouts.")] = 400,
    output: Output = None,
) -> None:
    """Harmful share, reward, preference rate and cost of each system: means and standard deviations over seeds."""
    results = seed_by_seed(
        [(seed, folder / f"table-{seed}.json") for seed in range(first_seed, first_seed + seeds)],
        lambda seed: _systems(_bench(count), folder / f"seed-{seed}", seed, rollout_prompts),
    )
    show(results, COLUMNS, f"{2 * count} held-out prompts, {seeds} seeds", output)


def _systems(bench: Bench, folder: Path, seed: int, rollout_prompts: int) -> Results:
    figures = {"plain": bench.system(None)}
    for n in (8, 16):
        figures[f"best-of-{n}"] = bench.measure(
            # The n draws of a prompt use consecutive seeds, so seeds must be far apart.
            lambda n=n: best_of_n(bench.plain, bench.prompts, bench.rewards, n, seed=1000 * seed)  # type: ignore[misc]
        )
    for name, options in ALIGNERS.items():
        data: Any = pairs(seed) if name == PREFERENCE else training_prompts(seed, rollout_prompts)
        aligner = MaraAligner(
            bench.plain, bench.rewards, classifier=_classifier(), output=folder / name, random_state=seed, **options
        ).fit(data)
        for rounds in sorted({1, options["rounds"]}):
            entries = aligner.history_[:rounds]
            costs = {key: sum(entry[key] for entry in entries) for key in ("labels", "label_seconds", "fit_seconds")}
            agent = _agent(folder, name, rounds)
            figures[_title(name, rounds)] = {**costs, **bench.system(agent)}
        threshold = bench.best_threshold(agent, training_prompts(seed + 1000, rollout_prompts // 2))
        tuned = {"threshold": threshold, **bench.system(agent, accept_threshold=threshold)}
        figures[f"{_title(name, rounds)}, tuned threshold"] = {**costs, **tuned}
        console.print(f"seed {seed}: {name}: rewards {[round(system['reward'], 2) for system in figures.values()]}")
    return figures


def _title(name: str, rounds: int) -> str:
    return name if rounds == 1 else f"{name}, {rounds} rounds"


def _agent(folder: Path, name: str, rounds: int) -> MaraAgent:
    """The agent that `table` fitted in a round."""
    return MaraAgent.from_pretrained(folder / name / f"round-{rounds}" / "agent")


@app.command()
def ablation(
    folder: Folder = RESULTS / "alignment",
    first_seed: FirstSeed = 0,
    seeds: Seeds = 5,
    count: EvaluationPrompts = 100,
    output: Output = None,
) -> None:
    """Effects of order, threshold, candidate filter and width."""
    results = seed_by_seed(
        [(seed, folder / f"ablation-{seed}.json") for seed in range(first_seed, first_seed + seeds)],
        lambda seed: {**_decoding_ablation(_bench(count), folder, seed), **_fitting_ablation(_bench(count), seed)},
    )
    draw_curve(results, folder / "curve.png")
    columns = {name: COLUMNS[name] for name in ("harmful", "reward", "preference_rate")}
    columns |= {"closeness": "log-probability per token", "labels": "labels", "fit_seconds": "fitting, s"}
    show(results, columns, f"{2 * count} held-out prompts, {seeds} seeds", output)


def _decoding_ablation(bench: Bench, folder: Path, seed: int) -> Results:
    table_of_seed: Results = json.loads((folder / f"table-{seed}.json").read_text())
    figures = {name: values for name, values in table_of_seed.items() if name == "plain" or name.startswith("best-of")}
    for name, options in ALIGNERS.items():
        agent, title = _agent(folder / f"seed-{seed}", name, options["rounds"]), _title(name, options["rounds"])
        for threshold in THRESHOLDS:
            figures[f"{title}, threshold {threshold}"] = bench.system(agent, accept_threshold=threshold)
        for order in ("reversed", "top-1-last", "sampled"):
            figures[f"{title}, order {order}"] = bench.system(agent, order=order)
    return figures


def _fitting_ablation(bench: Bench, seed: int) -> Results:
    figures = {}
    for filtered in (True, False):
        labels = PreferenceLabeler(bench.plain, candidate_filter=filtered, random_state=seed).label(pairs(seed))
        for width in (16, 64, 256, 1024) if filtered else (1024,):
            classifier = _classifier().set_params(width=width, random_state=seed)
            started = time.perf_counter()
            classifier.fit(labels.X, labels.y, sample_weight=labels.weight, groups=labels.groups)
            seconds = time.perf_counter() - started
            name = f"{PREFERENCE}, width {width}" + ("" if filtered else ", no candidate filter")
            costs = {"labels": float(len(labels)), "fit_seconds": seconds}
            figures[name] = {**costs, **bench.system(classifier.agent_)}
    return figures


def _classifier() -> MaraClassifier:
    return MaraClassifier(max_epochs=12)


_bench = cache(Bench)


def seed_by_seed(files: Sequence[tuple[int, Path]], measure: Callable[[int], Results]) -> list[Results]:
    """Results of each seed: read from the seed's file if it exists, otherwise measured and written to it."""
    for seed, file in files:
        if not file.exists():
            results = measure(seed)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(results, indent=2))
    return [json.loads(file.read_text()) for _, file in files]


def show(seeds: Sequence[Results], columns: dict[str, str], title: str, output: Path | None = None) -> None:
    """Publishes means and standard deviations over seeds."""
    means = Table("system", *columns.values(), title=title)
    for name in seeds[0]:
        by_seed = [results[name] for results in seeds]
        means.add_row(name, *(_cell([figures[key] for figures in by_seed if key in figures]) for key in columns))
    publish(means, output, seeds)


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean = statistics.fmean(values)
    digits = 0 if abs(mean) >= 100 else 1 if abs(mean) >= 10 else 2  # noqa: PLR2004
    # One seed says nothing of the spread.
    spread = f" ± {statistics.stdev(values):,.{digits}f}" if len(values) > 1 else ""
    return f"{mean:,.{digits}f}{spread}"


if __name__ == "__main__":
    torch.set_flush_denormal(True)
    app()
