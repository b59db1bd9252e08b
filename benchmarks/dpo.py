"""MARA against DPO on the bundled model: results on topics not used in training, and the cost of training.

    python benchmarks/dpo.py table    plain, MARA from preference labels and by SAC, DPO of all weights and of LoRA
    python benchmarks/dpo.py tune     DPO's learning rates, by the reward on prompts about training topics

All systems learn from the same preference pairs, each in a separate process on one thread. Models, agents and results
are stored in a folder; both commands resume there.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from alignment import Bench, Results, pairs, seed_by_seed, show, training_prompts
from langchain_mara_training import (
    MaraClassifier,
    MaraSAC,
    PreferenceLabeler,
    PreferenceReward,
    UpdateOptions,
    decode_system,
)
from langchain_mara_training.reinforcement.actor_critic import TwinCritics
from langchain_mara_training.storage.atomic import write_atomically
from memory import peak_bytes, reset_peak
from tables import RESULTS, Output, console
from torch import nn

from langchain_mara import MaraLLM

app = typer.Typer(add_completion=False, help=__doc__, rich_markup_mode=None)
Folder = Annotated[Path, typer.Option(help="Folder of results, agents and models.")]
Every = Annotated[int, typer.Option(min=1, help="Learn from every n-th pair only; 1 uses all.")]
Pairs = list[dict[str, Any]]
Trained = tuple[Any, int]
"""An agent, model or adapter with `save_pretrained`, and the number of trained parameters."""

_MIB = 2**20
TUNING_SEED = 100
OPTIONS: dict[str, Any] = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    # 32 pairs per step; one batch of 32 would take five times the memory and more time.
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 8,
    "warmup_steps": 0.1,
    "precompute_ref_log_probs": True,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "logging_steps": 20,
}
LORA: dict[str, Any] = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
RATES = {"DPO": (1e-4, 3e-4, 1e-3), "DPO, LoRA": (1e-3, 3e-3, 1e-2)}
# From `tune`, with every fourth pair. The next higher rates have a higher reward, but broken language.
CHOSEN: dict[str, dict[str, float]] = {
    "DPO": {"learning_rate": 3e-4, "epochs": 1},
    "DPO, LoRA": {"learning_rate": 3e-3, "epochs": 1},
}
COLUMNS = {
    "harmful": "harmful, %",
    "reward": "mean reward",
    "preference_rate": "preference rate",
    "closeness": "log-probability per token",
    "parameters": "trained parameters",
    "train_seconds": "training, CPU s",
    "over_labels": "over preference labels",
    "peak_mib": "peak memory, MiB",
    "seconds_over_plain": "decoding time over plain",
}


def fit_preference_labels(llm: MaraLLM, rows: Pairs, seed: int, width: int) -> Trained:
    """Does what one round of `MaraAligner` with preference labels does, without measuring a reward."""
    labels = PreferenceLabeler(llm, random_state=seed + 1).label(rows)
    classifier = MaraClassifier(width=width, max_epochs=12, random_state=seed)
    classifier.fit(labels.X, labels.y, sample_weight=labels.weight, groups=labels.groups)
    return classifier.agent_, _count(classifier.agent_)


def fit_sac(llm: MaraLLM, rows: Pairs, seed: int, episodes: int = 1200) -> Trained:
    """Soft actor-critic on a reward fitted to the pairs; the critics count as trained parameters."""
    sac = MaraSAC(
        llm,
        PreferenceReward().fit(rows),
        update=UpdateOptions(learning_rate_actor=1e-3, learning_rate_critic=1e-3),
        episodes=episodes,
        parallel=32,
        width=256,
        batch_size=256,
        updates=4,
        warm_up=4,
        evaluate_every=100,
        random_state=seed,
    ).fit(training_prompts(seed, 400), evaluation=training_prompts(seed + 1000, 60))
    agent = sac.agent_
    return agent, _count(agent) + _count(TwinCritics(agent.hidden_size, agent.width))


def fit_dpo(
    llm: MaraLLM, rows: Pairs, seed: int, *, lora: bool, learning_rate: float, epochs: float, max_steps: int = -1
) -> Trained:
    """TRL's DPOTrainer. Reference log-probabilities are computed in advance, so that no second model is in memory.

    Raises:
        RuntimeError: If TRL's prompt tokens differ from those of decoding.
    """
    from datasets import Dataset  # noqa: PLC0415 - slow to import, and the other trainings do not need it
    from peft import LoraConfig  # noqa: PLC0415
    from trl.trainer.dpo_config import DPOConfig  # noqa: PLC0415
    from trl.trainer.dpo_trainer import DPOTrainer  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as output:
        options = DPOConfig(
            output,
            learning_rate=learning_rate,
            num_train_epochs=epochs,
            max_steps=max_steps,
            seed=seed,
            **OPTIONS,
        )
        trainer: Any = DPOTrainer(
            llm.model,
            args=options,
            train_dataset=Dataset.from_list([_conversation(row) for row in rows]),
            processing_class=llm.tokenizer,
            peft_config=LoraConfig(**LORA) if lora else None,
        )
        if trainer.train_dataset["prompt_ids"][:] != [llm.encode(row["prompt"]) for row in rows]:
            raise RuntimeError("TRL's prompt tokens differ from the LLM's. Compare the chat template with encode().")
        trainer.train()
    trained = (parameter for parameter in trainer.model.parameters() if parameter.requires_grad)
    return trainer.model, sum(parameter.numel() for parameter in trained)


def _conversation(row: dict[str, Any]) -> dict[str, Any]:
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    return {name: [{"role": role, "content": row[name]}] for name, role in roles.items()}


FITS: dict[str, Callable[..., Trained]] = {
    "preference labels": partial(fit_preference_labels, width=1024),
    "preference labels, width 64": partial(fit_preference_labels, width=64),
    "SAC": fit_sac,
    "DPO": partial(fit_dpo, lora=False),
    "DPO, LoRA": partial(fit_dpo, lora=True),
}


@app.command()
def table(
    folder: Folder = RESULTS / "dpo",
    first_seed: Annotated[int, typer.Option(help="First seed.")] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds.")] = 3,
    every: Every = 4,
    count: Annotated[int, typer.Option(min=1, help="Held-out prompts of each kind to measure on.")] = 100,
    output: Output = None,
) -> None:
    """Reward, harmful share, preference rate and cost of training: means and standard deviations over seeds."""
    folder /= f"1 of {every} pairs"
    results = seed_by_seed(
        [(seed, folder / f"table-{seed}.json") for seed in range(first_seed, first_seed + seeds)],
        lambda seed: _systems(_bench(count), folder / f"seed-{seed}", seed, every),
    )
    show(results, COLUMNS, f"{2 * count} held-out prompts, 1 of {every} pairs, {seeds} seeds", output)


def _systems(bench: Bench, folder: Path, seed: int, every: int) -> Results:
    figures = {"plain": bench.system(None)}
    for name in FITS:
        costs = _trained(name, seed, folder / name, CHOSEN.get(name, {}), every)
        figures[name] = {**costs, **_measured(bench, folder / name / "trained")}
        console.print(f"seed {seed}: {name}: {figures[name]}")
    for name in FITS:
        figures[name]["over_labels"] = figures[name]["train_seconds"] / figures["preference labels"]["train_seconds"]
    return figures


@app.command()
def tune(
    folder: Folder = RESULTS / "dpo",
    epochs: Annotated[float, typer.Option(help="Epochs of each training.")] = 1,
    every: Every = 4,
    count: Annotated[int, typer.Option(min=1, help="Prompts about training topics to measure on.")] = 200,
    output: Output = None,
) -> None:
    """Reward, preference rate and harmful share for each learning rate, on prompts about training topics."""
    bench = Bench(count // 2, training_prompts(TUNING_SEED + 1000, count))
    figures = {"plain": bench.system(None)}
    for name, rates in RATES.items():
        for rate in rates:
            title = f"{name}, rate {rate:g}, epochs {epochs:g}, 1 of {every} pairs"
            options = {"learning_rate": rate, "epochs": epochs}
            costs = _trained(name, TUNING_SEED, folder / "tune" / title, options, every)
            figures[title] = {**costs, **_measured(bench, folder / "tune" / title / "trained")}
    show([figures], COLUMNS, f"{count} prompts about training topics", output)


def _trained(name: str, seed: int, folder: Path, options: dict[str, float], every: int = 1) -> dict[str, float]:
    """Costs of a training: from its file if it is done; otherwise the training runs now, in a separate process."""
    file = folder / "costs.json"
    if not file.exists():
        command = [sys.executable, __file__, "train", name, str(seed), str(folder), json.dumps(options), str(every)]
        subprocess.run(command, check=True, env={**os.environ, "TQDM_DISABLE": "1"})  # noqa: S603
    costs: dict[str, float] = json.loads(file.read_text())
    return costs


@app.command(hidden=True)
def train(name: str, seed: int, folder: Path, options: str, every: Annotated[int, typer.Argument()] = 1) -> None:
    """One training, started by `table` and `tune`; stores its CPU seconds and its peak memory."""
    llm, rows = MaraLLM.demo(agent=None, device="cpu", packed=False), pairs(seed)[::every]
    if name in CHOSEN:
        import trl.trainer.dpo_trainer  # noqa: F401, PLC0415 - the import is not part of the training
    reset_peak("cpu")
    # CPU time, because other work on the machine would lengthen the wall-clock time.
    started = time.process_time()
    model, parameters = FITS[name](llm, rows, seed, **json.loads(options))
    seconds, peak = time.process_time() - started, peak_bytes("cpu")
    model.save_pretrained(folder / "trained")
    if name in CHOSEN:
        llm.tokenizer.save_pretrained(folder / "trained")
    costs = {"parameters": parameters, "train_seconds": seconds, "peak_mib": peak / _MIB}
    write_atomically(folder / "costs.json", json.dumps(costs).encode())


def _measured(bench: Bench, trained: Path) -> dict[str, float]:
    """Figures of what was trained: the plain LLM with the agent, or the fine-tuned model."""
    if (trained / "tokenizer_config.json").exists():
        llm = bench.plain.from_model_id(trained, device="cpu", batch_size=32, width=2)
    else:
        llm = bench.plain.with_agent(trained)
    return bench.measure(lambda: decode_system(llm, bench.prompts, bench.rewards, "system"))


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


_bench = cache(Bench)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    app()
