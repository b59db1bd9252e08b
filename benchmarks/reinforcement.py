"""Reinforcement learning on the bundled model: reward per pass, speed of episodes, killed processes.

    python benchmarks/reinforcement.py curves   reward against passes: MaraSAC, its reference preset, rollout labels
    python benchmarks/reinforcement.py steps    environment steps per second, against a loop like the reference's
    python benchmarks/reinforcement.py kill     killed learners and workers against an uninterrupted run

`curves` stores the results of each seed in a folder and resumes there.
"""

import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from alignment import Bench, show, training_prompts
from curve import draw_learning
from decoding import last_token, load
from killing import Job
from langchain_mara_training import EnvironmentOptions, MaraAligner, MaraClassifier, MaraSAC, UpdateOptions
from langchain_mara_training.reinforcement.environment import take_steps
from rich.table import Table
from tables import RESULTS, Output, console, publish
from transformers import DynamicCache

from langchain_mara import MaraAgent, MaraLLM
from langchain_mara.decoding.candidates import candidate_sets

app = typer.Typer(add_completion=False, help=__doc__, rich_markup_mode=None)

SAC, REFERENCE, ROLLOUT, PLAIN = "MaraSAC", "MaraSAC, reference preset", "rollout labels", "plain"
# The paper's settings, for 4,096-dimensional states and 21,000 episodes, would take hours; these take minutes.
LEARNING: dict[str, Any] = {
    "parallel": 32,
    "width": 256,
    "batch_size": 256,
    "updates": 4,
    "warm_up": 4,
    "update": UpdateOptions(learning_rate_actor=1e-3, learning_rate_critic=1e-3),
}
POINT = 320  # episodes between two points of a curve
COLUMNS = {
    "harmful": "harmful, %",
    "reward": "mean reward",
    "preference_rate": "preference rate",
    "passes": "passes of training",
    "seconds": "seconds of training",
    "passes_per_answer": "passes per answer",
}


@app.command()
def curves(
    folder: Annotated[Path, typer.Option(help="Folder of the results.")] = RESULTS / "reinforcement",
    first_seed: Annotated[int, typer.Option(help="First seed.")] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds.")] = 5,
    episodes: Annotated[int, typer.Option(help="Episodes of each training.")] = 3200,
    rollout_prompts: Annotated[int, typer.Option(help="Training prompts of the rollouts.")] = 100,
    count: Annotated[int, typer.Option(min=1, help="Held-out prompts of each kind to measure on.")] = 100,
    output: Output = None,
) -> None:
    """Mean reward on held-out prompts against the policy model's passes during training."""
    bench = Bench(count)
    folder.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []
    for seed in range(first_seed, first_seed + seeds):
        file = folder / f"seed-{seed}.json"
        if not file.exists():
            systems = {
                PLAIN: {"curve": [], "final": bench.system(None)},
                SAC: _reinforced(bench, folder, seed, episodes, "default"),
                REFERENCE: _reinforced(bench, folder, seed, episodes, "reference"),
                ROLLOUT: _rollout_aligned(bench, folder, seed, rollout_prompts),
            }
            file.write_text(json.dumps(systems, indent=2))
        results.append(json.loads(file.read_text()))
        rewards = {name: round(system["final"]["reward"], 2) for name, system in results[-1].items()}
        console.print(f"seed {seed}: {rewards}")
    finals = [{name: system["final"] for name, system in systems.items()} for systems in results]
    levels = {PLAIN: statistics.fmean(final[PLAIN]["reward"] for final in finals)}
    lines = {name: [systems[name]["curve"] for systems in results] for name in (SAC, REFERENCE, ROLLOUT)}
    draw_learning(lines, levels, folder / "learning.png")
    show(finals, COLUMNS, f"{2 * count} held-out prompts, {seeds} seeds", output)


def _reinforced(bench: Bench, folder: Path, seed: int, episodes: int, preset: str) -> dict[str, Any]:
    """Trains from point to point and measures the latest agent at each, even if an earlier one was better."""
    points, seconds = [], 0.0
    for until in range(POINT, episodes + 1, POINT):
        started = time.perf_counter()
        sac = MaraSAC(
            bench.plain,
            bench.rewards,
            preset=preset,  # type: ignore[arg-type]
            episodes=until,
            output=folder / f"{preset}-{seed}",
            random_state=seed,
            **LEARNING,
        ).fit(training_prompts(seed, 400))
        seconds += time.perf_counter() - started
        points.append([sac.history_[-1]["passes"], bench.reward(sac.agent_)])
    return {"curve": points, "final": {**bench.system(sac.agent_), "passes": points[-1][0], "seconds": seconds}}


def _rollout_aligned(bench: Bench, folder: Path, seed: int, rollout_prompts: int) -> dict[str, Any]:
    rounds = folder / f"rollout-{seed}"
    aligner = MaraAligner(
        bench.plain,
        bench.rewards,
        labeler="rollout",
        rounds=3,
        labeler_options={"generations": 2, "positions": 8},
        classifier=MaraClassifier(max_epochs=12),
        output=rounds,
        random_state=seed,
    ).fit(training_prompts(seed, rollout_prompts))
    passes = np.cumsum([entry["label_passes"] for entry in aligner.history_]).tolist()
    agents = [MaraAgent.from_pretrained(rounds / f"round-{number}" / "agent") for number in (1, 2, 3)]
    seconds = sum(entry["label_seconds"] + entry["fit_seconds"] for entry in aligner.history_)
    points = [[count, bench.reward(agent)] for count, agent in zip(passes, agents, strict=True)]
    return {"curve": points, "final": {**bench.system(aligner.agent_), "passes": passes[-1], "seconds": seconds}}


@app.command()
def steps(
    shape: Annotated[
        str, typer.Option(help="Model: `bundled`, or `135m` for a random model of that size.")
    ] = "bundled",
    parallel: Annotated[int, typer.Option(help="Episodes played at the same time.")] = 16,
    new_tokens: Annotated[int, typer.Option(help="Largest number of tokens per episode.")] = 32,
    looped: Annotated[int, typer.Option(help="Episodes of the loop, one after another.")] = 2,
    repeats: Annotated[int, typer.Option(help="Interleaved repeats; medians are printed.")] = 5,
    device: Annotated[str, typer.Option(help="Device of the model.")] = "cpu",
    output: Output = None,
) -> None:
    """Environment steps, that is, transitions, per second."""
    llm = _sampler(shape, new_tokens, device)
    prompts = [llm.encode(prompt) for prompt in training_prompts(0, parallel)]
    environments = {"default": EnvironmentOptions(), "reference": EnvironmentOptions.reference()}

    def played(options: EnvironmentOptions, seed: int) -> int:
        seeds = range(seed, seed + parallel)
        return sum(len(episode.actions) for episode in take_steps(llm, prompts, options, seeds, parallel))

    def loop(seed: int) -> int:
        return sum(_looped_steps(llm, prompt, seed + i) for i, prompt in enumerate(prompts[:looped]))

    systems: dict[str, Callable[[int], int]] = {"a pass for each candidate, batch 1": loop}
    systems |= {f"MaraSAC, {name} preset": partial(played, options) for name, options in environments.items()}
    rates: dict[str, list[float]] = {name: [] for name in systems}
    for repeat in range(repeats + 1):
        for name, run in systems.items():
            started = time.perf_counter()
            count = run(1000 * repeat)
            if repeat:  # the first is a warm-up
                rates[name].append(count / (time.perf_counter() - started))
    title = f"Reinforcement, {shape} model, {parallel} episodes of {new_tokens} tokens in parallel"
    table = Table("", "steps/s", "faster than the loop", title=title)
    yardstick = next(iter(rates.values()))
    for name, values in rates.items():
        ratio = statistics.median(rate / loop_rate for rate, loop_rate in zip(values, yardstick, strict=True))
        table.add_row(name, f"{statistics.median(values):,.0f}", f"{ratio:.1f}")
    publish(table, output, rates)


def _sampler(shape: str, new_tokens: int, device: str) -> MaraLLM:
    """An LLM whose agent accepts about half of the candidates it examines."""
    llm = MaraLLM.demo(agent=None, device=device, batch_size=32, max_new_tokens=new_tokens)
    if shape != "bundled":
        model = load(None, device, torch.float32)
        llm = MaraLLM(model=model, tokenizer=llm.tokenizer, max_new_tokens=new_tokens)
    torch.manual_seed(0)
    return llm.with_agent(MaraAgent(int(llm.model.config.hidden_size)).eval())


@torch.inference_mode()
def _looped_steps(llm: MaraLLM, prompt: list[int], seed: int) -> int:
    """Plays an episode as the reference does: one pass and one call of the agent for each candidate."""
    model, agent, generator = llm.model, llm.agent, np.random.default_rng(seed)
    cache = DynamicCache(config=model.config)
    agent.to(model.device)  # type: ignore[union-attr]
    asked = {"past_key_values": cache, "use_cache": True, "output_hidden_states": True}
    logits = model(torch.tensor([prompt], device=model.device), **asked).logits
    count = 0
    for _ in range(llm.max_new_tokens):
        sets = candidate_sets(logits[:, -1], llm.top_k, llm.top_p)
        tried = []
        for token in sets.token_ids[0, : int(sets.counts[0])].tolist():
            output = model(torch.tensor([[token]], device=model.device), **asked)
            accept = agent.accept_probability(output.hidden_states[-1][:, -1]).item()  # type: ignore[union-attr,operator]
            tried.append((token, accept, output.logits, [last_token(layer) for layer in cache.layers]))
            cache.crop(-1)
        actions = generator.random(len(tried)) < [accept for _, accept, _, _ in tried]
        chosen = int(actions.argmax()) if actions.any() else len(tried) - 1
        count += chosen + 1 if len(tried) > 1 else 0
        token, _, logits, kept = tried[chosen]
        for i, (keys, values) in enumerate(kept):
            cache.update(keys, values, i)
        if token in llm.tokenizer.all_special_ids:
            break
    return count


@app.command()
def kill(
    folder: Annotated[Path, typer.Option(help="Folder to work in; it is emptied first.")] = RESULTS
    / "reinforcement-kill",
    kills: Annotated[int, typer.Option(help="Number of kills, for learners and for workers.")] = 5,
    episodes: Annotated[int, typer.Option(help="Episodes of each run.")] = 320,
    seed: Annotated[int, typer.Option(help="Seed of the moments.")] = 0,
    output: Output = None,
) -> None:
    """SIGKILL at random moments: learners are started again, workers are replaced. Are the agents equal to the byte?"""
    shutil.rmtree(folder, ignore_errors=True)
    generator = random.Random(seed)  # noqa: S311 - moments, not secrets
    for workers in (0, 2):
        training = Job(Path(__file__), "job", "--episodes", str(episodes), "--workers", str(workers))
        whole = folder / f"whole-{workers}"
        seconds = training.finish(whole)
        table = Table("killed", "after s", "agent", title=f"{workers} workers, {seconds:.0f} s uninterrupted")
        for number in range(kills):
            moment = generator.uniform(0, seconds)
            interrupted = folder / f"learner-{workers}-{number}"
            outcome = training.kill(interrupted, moment)
            training.finish(interrupted)
            table.add_row(f"learner, {outcome}", f"{moment:.1f}", _compared(interrupted, whole))
        for number in range(kills if workers else 0):
            moment = generator.uniform(0, seconds)
            interrupted = folder / f"worker-{number}"
            training.finish(interrupted, meanwhile=partial(_kill_worker, moment))
            table.add_row("worker", f"{moment:.1f}", _compared(interrupted, whole))
        publish(table, output)


def _kill_worker(moment: float) -> None:
    time.sleep(moment)
    listing = subprocess.run(["pgrep", "-f", "ray::_Worker"], capture_output=True, text=True, check=False)  # noqa: S607
    if pids := listing.stdout.split():
        os.kill(int(pids[0]), signal.SIGKILL)


def _compared(interrupted: Path, whole: Path) -> str:
    weights = {(folder / "agent" / "model.safetensors").read_bytes() for folder in (interrupted, whole)}
    return "equal" if len(weights) == 1 else "DIFFERENT"


@app.command(hidden=True)
def job(folder: Path, episodes: int = 320, workers: int = 0) -> None:
    """Job that `kill` starts and kills: a training in a folder."""
    torch.set_num_threads(1)
    bench = Bench(1)
    sac = MaraSAC(
        bench.plain,
        bench.rewards,
        episodes=episodes,
        evaluate_every=64,
        output=folder,
        workers=workers,
        random_state=0,
        **LEARNING,
    )
    print("started", flush=True)
    sac.fit(training_prompts(0, 400)).agent_.save_pretrained(folder / "agent")


if __name__ == "__main__":
    torch.set_flush_denormal(True)
    app()
