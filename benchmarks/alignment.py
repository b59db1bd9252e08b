"""Alignment of the embedded model: what agents gain on topics they were not trained on, and what that costs.

    python benchmarks/alignment.py table      agents against plain decoding and best-of-n, several seeds
    python benchmarks/alignment.py ablation   order, threshold, candidate filter and width, with the agents of `table`

Both keep what is measured in a folder, seed by seed, and go on there.
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

Results = dict[str, dict[str, float]]
"""Of each system by its name: its figures by theirs."""

app = typer.Typer(add_completion=False, help=__doc__, rich_markup_mode=None)
Folder = Annotated[Path, typer.Option(help="Where results and agents are kept.")]
FirstSeed = Annotated[int, typer.Option(help="The first of the seeds.")]
Seeds = Annotated[int, typer.Option(min=1, help="How many.")]
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
    "label_seconds": "labelling, s",
    "fit_seconds": "fitting, s",
    "tokens_per_second": "tokens/s",
    "threshold": "threshold",
    "passes_per_answer": "passes per answer",
    "seconds_over_plain": "time over plain",
}


class Bench:
    """Prompts, by default held-out ones, the judge, and the reward, fitted to pairs about the training topics."""

    def __init__(self, count: int, asked: Sequence[str] = ()) -> None:
        self.risky = count
        held_out = [*prompts("test", risky=True, count=count), *prompts("test", risky=False, count=count)]
        self.prompts = list(asked) or held_out
        self.judge = Judge.fit()
        # With 32 rows to a pass, further siblings cost a CPU more than the passes they save. No answer hangs on it.
        self.plain = MaraLLM.demo(agent=None, batch_size=32, width=2, device="cpu")
        self.rewards = PreferenceReward().fit(pairs(0))
        self.baseline = decode_system(self.plain, self.prompts, self.rewards, "plain")

    def measure(self, decode: Callable[[], Decoded]) -> dict[str, float]:
        """Decodes, with plain decoding before it, so that their ratio is of one moment."""
        plain = decode_system(self.plain, self.prompts, self.rewards, "plain")
        found = decode()
        qualities = self.judge.qualities(self.prompts, found.completions)[: self.risky]
        return {
            "harmful": 100 * qualities.count(Quality.HARMFUL) / self.risky,
            "reward": found.mean_reward,
            "preference_rate": preference_rate(found.rewards, self.baseline.rewards),
            "tokens_per_second": found.tokens_per_second,
            "passes_per_answer": found.passes / len(self.prompts),
            "seconds_over_plain": found.seconds / plain.seconds,
            "closeness": self.closeness(found.completions),
        }

    def system(self, agent: MaraAgent | None, **options: Any) -> dict[str, float]:
        """Measures one answer per prompt."""
        llm = self.plain.with_agent(agent).model_copy(update=options)
        return self.measure(lambda: decode_system(llm, self.prompts, self.rewards, "system"))

    def reward(self, agent: MaraAgent) -> float:
        """Mean reward of an agent's answers."""
        return decode_system(self.plain.with_agent(agent), self.prompts, self.rewards, "system").mean_reward

    def best_threshold(self, agent: MaraAgent, tuning_prompts: Sequence[str]) -> float:
        """The accept threshold of the highest reward on prompts about training topics."""
        llm = self.plain.with_agent(agent)
        systems = [llm.model_copy(update={"accept_threshold": one}) for one in THRESHOLDS]
        means = [decode_system(one, tuning_prompts, self.rewards, "tuning").mean_reward for one in systems]
        return THRESHOLDS[means.index(max(means))]

    def closeness(self, completions: Sequence[str]) -> float:
        """Mean log-probability of the answers' tokens under the plain model."""
        answers = [self.plain.get_token_ids(text) for text in completions]
        distances = [divergence(self.plain, *one) or 0.0 for one in zip(self.prompts, answers, strict=True)]
        return -float(np.average(distances, weights=[len(one) for one in answers]))


@cache
def pairs(seed: int) -> list[dict[str, Any]]:
    """Preference pairs about the training topics, in TRL's form."""
    return [asdict(pair) for pair in preference_pairs("train", seed, 24)]


def training_prompts(seed: int, count: int) -> list[str]:
    """Prompts about the training topics, as many of each kind."""
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
    found = seed_by_seed(
        [(seed, folder / f"table-{seed}.json") for seed in range(first_seed, first_seed + seeds)],
        lambda seed: _systems(_bench(count), folder / f"seed-{seed}", seed, rollout_prompts),
    )
    show(found, COLUMNS, f"{2 * count} held-out prompts, {seeds} seeds", output)


def _systems(bench: Bench, folder: Path, seed: int, rollout_prompts: int) -> Results:
    found = {"plain": bench.system(None)}
    for n in (8, 16):
        found[f"best-of-{n}"] = bench.measure(
            # Seeds of a prompt's draws follow one another.
            lambda n=n: best_of_n(bench.plain, bench.prompts, bench.rewards, n, seed=1000 * seed)  # type: ignore[misc]
        )
    for name, options in ALIGNERS.items():
        data: Any = pairs(seed) if name == PREFERENCE else training_prompts(seed, rollout_prompts)
        aligner = MaraAligner(
            bench.plain, bench.rewards, classifier=_classifier(), output=folder / name, random_state=seed, **options
        ).fit(data)
        for rounds in sorted({1, options["rounds"]}):
            past = aligner.history_[:rounds]
            costs = {key: sum(one[key] for one in past) for key in ("labels", "label_seconds", "fit_seconds")}
            agent = _agent(folder, name, rounds)
            found[_title(name, rounds)] = {**costs, **bench.system(agent)}
        threshold = bench.best_threshold(agent, training_prompts(seed + 1000, rollout_prompts // 2))
        tuned = {"threshold": threshold, **bench.system(agent, accept_threshold=threshold)}
        found[f"{_title(name, rounds)}, tuned threshold"] = {**costs, **tuned}
        console.print(f"seed {seed}: {name}: rewards {[round(one['reward'], 2) for one in found.values()]}")
    return found


def _title(name: str, rounds: int) -> str:
    return name if rounds == 1 else f"{name}, {rounds} rounds"


def _agent(folder: Path, name: str, rounds: int) -> MaraAgent:
    """What `table` fitted in a round."""
    return MaraAgent.from_pretrained(folder / name / f"round-{rounds}" / "agent")


@app.command()
def ablation(
    folder: Folder = RESULTS / "alignment",
    first_seed: FirstSeed = 0,
    seeds: Seeds = 5,
    count: EvaluationPrompts = 100,
    output: Output = None,
) -> None:
    """What order, threshold, candidate filter and width do."""
    found = seed_by_seed(
        [(seed, folder / f"ablation-{seed}.json") for seed in range(first_seed, first_seed + seeds)],
        lambda seed: {**_of_decoding(_bench(count), folder, seed), **_of_fitting(_bench(count), seed)},
    )
    draw_curve(found, folder / "curve.png")
    columns = {name: COLUMNS[name] for name in ("harmful", "reward", "preference_rate")}
    columns |= {"closeness": "log-probability per token", "labels": "labels", "fit_seconds": "fitting, s"}
    show(found, columns, f"{2 * count} held-out prompts, {seeds} seeds", output)


def _of_decoding(bench: Bench, folder: Path, seed: int) -> Results:
    table_of_seed: Results = json.loads((folder / f"table-{seed}.json").read_text())
    found = {name: values for name, values in table_of_seed.items() if name == "plain" or name.startswith("best-of")}
    for name, options in ALIGNERS.items():
        agent, title = _agent(folder / f"seed-{seed}", name, options["rounds"]), _title(name, options["rounds"])
        for threshold in THRESHOLDS:
            found[f"{title}, threshold {threshold}"] = bench.system(agent, accept_threshold=threshold)
        for order in ("reversed", "top-1-last", "sampled"):
            found[f"{title}, order {order}"] = bench.system(agent, order=order)
    return found


def _of_fitting(bench: Bench, seed: int) -> Results:
    found = {}
    for filtered in (True, False):
        labels = PreferenceLabeler(bench.plain, candidate_filter=filtered, random_state=seed).label(pairs(seed))
        for width in (16, 64, 256, 1024) if filtered else (1024,):
            classifier = _classifier().set_params(width=width, random_state=seed)
            started = time.perf_counter()
            classifier.fit(labels.X, labels.y, sample_weight=labels.weight, groups=labels.groups)
            seconds = time.perf_counter() - started
            name = f"{PREFERENCE}, width {width}" + ("" if filtered else ", no candidate filter")
            costs = {"labels": float(len(labels)), "fit_seconds": seconds}
            found[name] = {**costs, **bench.system(classifier.agent_)}
    return found


def _classifier() -> MaraClassifier:
    return MaraClassifier(max_epochs=12)


_bench = cache(Bench)


def seed_by_seed(files: Sequence[tuple[int, Path]], measure: Callable[[int], Results]) -> list[Results]:
    """What was measured with each seed: read where it is on file, or else measured and written there."""
    for seed, file in files:
        if not file.exists():
            found = measure(seed)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(found, indent=2))
    return [json.loads(file.read_text()) for _, file in files]


def show(seeds: Sequence[Results], columns: dict[str, str], title: str, output: Path | None = None) -> None:
    """Publishes means and standard deviations over seeds."""
    shown = Table("system", *columns.values(), title=title)
    for name in seeds[0]:
        shown.add_row(name, *(_cell([one[name][key] for one in seeds if key in one[name]]) for key in columns))
    publish(shown, output, seeds)


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean = statistics.fmean(values)
    digits = 0 if abs(mean) >= 100 else 1 if abs(mean) >= 10 else 2  # noqa: PLR2004
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{mean:,.{digits}f} ± {spread:,.{digits}f}"


if __name__ == "__main__":
    torch.set_flush_denormal(True)
    app()
