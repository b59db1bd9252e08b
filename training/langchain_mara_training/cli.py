"""The `mara` command with training: `label`, `fit` and `evaluate` join the commands of `langchain_mara.cli`."""

# ruff: noqa: PLC0415 - the command starts, and answers, without what only these subcommands need.

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from transformers.utils import logging

from langchain_mara import MaraLLM
from langchain_mara.cli import app, console
from langchain_mara.exceptions import MaraError, OptionsError, RewardError, TrainingError

_EMBEDDED = "langchain-mara demo"
_DATA = "A .json, .jsonl or .parquet file, or a dataset's name on the hub."
_REWARD = "Reward: module:function of your own, a reward model's hub id or folder, or pairs:FILE. Can be repeated."


class Labeler(StrEnum):
    """Where labels come from."""

    PREFERENCE = "preference"
    ROLLOUT = "rollout"


Data = Annotated[str, typer.Argument(help=_DATA)]
Model = Annotated[str | None, typer.Option(help="Hub id or folder; the embedded model by default.")]
Device = Annotated[str | None, typer.Option(help="Such as cuda or cpu.")]
Seed = Annotated[int, typer.Option(help="Of everything that is drawn.")]
Reward = Annotated[list[str] | None, typer.Option("--reward", help=_REWARD)]
Weight = Annotated[list[float] | None, typer.Option("--reward-weight", help="One for each reward; 1 by default.")]
Split = Annotated[str, typer.Option(help="Which split of a dataset on the hub.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Most rows to take; all by default.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")]
TopK = Annotated[int, typer.Option(min=1, help="Most candidates of a position.")]
TopP = Annotated[float, typer.Option(help="Nucleus mass.")]


@app.command()
def label(
    ctx: typer.Context,
    data: Data,
    output: Annotated[Path, typer.Option(help="Run folder; a command that was interrupted goes on there.")],
    model: Model = None,
    agent: Annotated[str | None, typer.Option(help="Agent whose rollouts to label; a run folder, for one.")] = None,
    labeler: Annotated[Labeler, typer.Option(help="What says which tokens to accept.")] = Labeler.PREFERENCE,
    reward: Reward = None,
    reward_weight: Weight = None,
    split: Split = "train",
    limit: Limit = None,
    candidate_filter: Annotated[bool, typer.Option(help="Only tokens the agent would be asked about.")] = True,
    generations: Annotated[int, typer.Option(min=1, help="Rollouts: answers per prompt.")] = 1,
    positions: Annotated[int, typer.Option(min=1, help="Rollouts: most positions of an answer.")] = 4,
    candidates: Annotated[int, typer.Option(min=2, help="Rollouts: most candidates of a position.")] = 8,
    continuations: Annotated[int, typer.Option(min=1, help="Rollouts: completions of a candidate.")] = 1,
    max_new_tokens: MaxNewTokens = 256,
    top_k: TopK = 40,
    top_p: TopP = 0.95,
    device: Device = None,
    seed: Seed = 0,
) -> None:
    """Labels tokens accept or reject: of preference pairs, or of rollouts that reward functions score.

    Examples:
        mara label pairs.jsonl --output run

        mara label prompts.jsonl --output run --labeler rollout --reward pairs:pairs.jsonl
    """
    with _one_sentence():
        from accelerate import PartialState

        from langchain_mara_training.data import read_rows
        from langchain_mara_training.labels import PreferenceLabeler
        from langchain_mara_training.rollouts import RolloutLabeler
        from langchain_mara_training.runs import Run, resolved

        run = Run(output, "label", resolved(ctx.params, "output"))
        if (labeler is Labeler.ROLLOUT) is not bool(reward):
            raise OptionsError("Rollouts are labelled by --reward, at least one; preference pairs by none.")
        rows = read_rows(data, split)[:limit]
        state = PartialState()
        place = str(state.device) if device is None and state.num_processes > 1 else device
        llm = _llm(model, agent, place, max_new_tokens=max_new_tokens, top_k=top_k, top_p=top_p)
        options: dict[str, Any] = {"candidate_filter": candidate_filter, "random_state": seed}
        if labeler is Labeler.ROLLOUT:
            options = {"generations": generations, "positions": positions, "candidates": candidates}
            options |= {"continuations": continuations, "reward_weights": reward_weight or None, "random_state": seed}
        scored = [[_reward(one, place) for one in reward]] if reward else []
        maker: Any = (RolloutLabeler if scored else PreferenceLabeler)(llm, *scored, **options)
        before = len([*run.features.glob("*.safetensors")])
        if state.is_main_process:
            run.begin()
        started = time.perf_counter()
        labels = maker.label(rows, run.features)
        if state.is_main_process:
            seconds = time.perf_counter() - started
            groups = len({*labels.groups.tolist()})
            values: dict[str, Any] = {"rows": len(labels), "accept share": float(labels.y.mean()), "groups": groups}
            # Shards that were there cost no time.
            values |= {"tokens/s": None if before else len(labels) / seconds, "seconds": seconds}
            run.log("labelled", **values)
            _print_values("Labels", values)


@app.command()
def fit(
    ctx: typer.Context,
    run: Annotated[Path, typer.Argument(help="Run folder with labels.")],
    output: Annotated[Path | None, typer.Option(help="Run folder for the agent; RUN by default.")] = None,
    width: Annotated[int, typer.Option(min=4, help="Units of the agent's first layer.")] = 1024,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the labels.")] = 10,
    batch_size: Annotated[int, typer.Option(min=1, help="Labels per training step.")] = 512,
    learning_rate: Annotated[float, typer.Option(min=1e-12, help="At the first step.")] = 1e-3,
    early_stopping: Annotated[bool, typer.Option(help="Stop when the loss on further groups rises.")] = False,
    validation_fraction: Annotated[float, typer.Option(min=0, max=0.9, help="Share of groups held out.")] = 0.1,
    device: Device = None,
    seed: Seed = 0,
) -> None:
    """Fits an agent to a run's labels, and measures it on groups (prompts) that took no part.

    Examples:
        mara fit run

        mara fit run --output narrow --width 256 --early-stopping
    """
    with _one_sentence():
        from langchain_mara_training.classifier import MaraClassifier
        from langchain_mara_training.evaluation import held_out_accuracy
        from langchain_mara_training.runs import Run, read_config, read_labels, resolved
        from langchain_mara_training.validation import split_by_group

        labels = read_labels(run)
        source = "features" if output is None else str(run.expanduser().absolute() / "features")
        job = Run(output or run, "fit", {**resolved(ctx.params, "run", "output"), "labels": source})
        job.begin()
        train, held_out = split_by_group(labels.y, labels.weight, labels.groups, validation_fraction, seed)
        weights = labels.weight.copy()
        if held_out is not None:
            weights[held_out] = 0
        labelled = read_config(run).get("label", {})
        classifier = MaraClassifier(
            width=width,
            max_epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction or 0.1,
            device=device,
            checkpoint_dir=job.checkpoints,
            random_state=seed,
            policy_model=labelled.get("model") or _EMBEDDED,
            verbose=True,
        )
        started = time.perf_counter()
        try:
            classifier.fit(labels.X, labels.y, sample_weight=weights, groups=labels.groups)
        except ValueError as error:
            raise error if isinstance(error, MaraError) else TrainingError(str(error)) from error
        seconds, epoch = time.perf_counter() - started, classifier.best_epoch_
        values: dict[str, Any] = {"rows": len(train), "epochs": classifier.n_iter_, "best epoch": epoch}
        values |= {"loss": classifier.loss_curve_[epoch - 1]}
        values |= held_out_accuracy(classifier, labels, [] if held_out is None else held_out.tolist())
        job.save_agent(classifier.agent_, {**labelled, **job.config}, values)
        job.log("fitted", **values, seconds=seconds, loss_curve=classifier.loss_curve_)
        _print_values("Fit", {**values, "seconds": seconds})


@app.command()
def evaluate(
    ctx: typer.Context,
    data: Data,
    agent: Annotated[str, typer.Option(help="Run folder, or agent: folder, hub id, .pth, or repo:file.")],
    model: Annotated[str | None, typer.Option(help="By default the run's, or else the embedded one.")] = None,
    reward: Reward = None,
    reward_weight: Weight = None,
    best_of: Annotated[list[int] | None, typer.Option(min=1, help="Best-of-n, too. Can be repeated.")] = None,
    output: Annotated[Path | None, typer.Option(help="File for a report as JSON, answers included.")] = None,
    split: Split = "test",
    limit: Limit = None,
    threshold: Annotated[float, typer.Option(help="Accept probability to exceed.")] = 0.5,
    batch_size: Annotated[int, typer.Option(min=1, help="Most prompts in one pass.")] = 32,
    max_new_tokens: MaxNewTokens = 256,
    top_k: TopK = 40,
    top_p: TopP = 0.95,
    device: Device = None,
    seed: Seed = 0,
) -> None:
    """Compares an agent with plain decoding, and with best-of-n, by reward and by cost.

    Without --reward it is the run's own, or that of the pairs the run was labelled by.

    Examples:
        mara evaluate prompts.jsonl --agent run --best-of 8

        mara evaluate prompts.jsonl --agent run --reward my_rewards:short --output report.json
    """
    with _one_sentence():
        from langchain_mara_training import runs
        from langchain_mara_training.data import read_prompts, read_rows
        from langchain_mara_training.evaluation import best_of_n, decode_system, side_by_side, summary
        from langchain_mara_training.rewards import WeightedRewards

        rows = read_prompts(read_rows(data, split)[:limit])
        labelled = runs.label_config(agent)
        weights = reward_weight or (None if reward else labelled.get("reward_weight")) or None
        rewards = WeightedRewards([_reward(one, device) for one in reward or runs.own_rewards(labelled)], weights)
        options = {"max_new_tokens": max_new_tokens, "top_k": top_k, "top_p": top_p, "seed": seed}
        options |= {"accept_threshold": threshold, "batch_size": batch_size}
        llm = _llm(model or labelled.get("model"), agent, device, **options)
        systems = []
        with Console(stderr=True).status("plain") as status:
            systems.append(decode_system(llm.with_agent(None), rows, rewards, "plain"))
            status.update("MARA")
            systems.append(decode_system(llm, rows, rewards, "MARA"))
            for n in best_of or ():
                status.update(f"best-of-{n}")
                systems.append(best_of_n(llm, rows, rewards, n, seed))
        summaries = {one.name: summary(one, systems[0]) for one in systems}
        if output is not None:
            report = {"config": runs.resolved(ctx.params, "output"), "versions": runs.library_versions()}
            output.parent.mkdir(parents=True, exist_ok=True)
            runs.write_json(output, {**report, "systems": summaries, "answers": side_by_side(systems)})
        if labelled:
            record = {"command": "evaluate", "event": "evaluated", "systems": summaries}
            runs.append_record(Path(agent).expanduser(), record)
        table = Table("system", *summaries["plain"], title=f"{len(rows)} prompts, by {', '.join(rewards.names)}")
        for name, values in summaries.items():
            table.add_row(name, *map(_shown, values.values()))
        console.print(table)


@contextmanager
def _one_sentence() -> Iterator[None]:
    """Prints an error as one red sentence and ends the command."""
    logging.disable_progress_bar()
    try:
        yield
    except MaraError as error:
        message = str(error)
    except ImportError as error:
        message = f"This command needs more libraries: pip install 'langchain-mara[training]' ({error})."
    else:
        return
    Console(stderr=True).print(message, style="red", markup=False)
    raise typer.Exit(1)


def _llm(model: str | None, agent: str | None, device: str | None, **options: Any) -> MaraLLM:
    from langchain_mara_training.runs import agent_source

    options |= {"agent": None if agent is None else agent_source(agent), "device": device}
    return MaraLLM.demo(**options) if model is None else MaraLLM.from_model_id(model, **options)


def _reward(spec: str, device: str | None) -> Callable[..., Any]:
    from langchain_mara_training.reward_models import SequenceClassificationReward
    from langchain_mara_training.rewards import PreferenceReward

    if spec.startswith("pairs:"):
        return PreferenceReward().fit(spec.removeprefix("pairs:"))
    if ":" not in spec or Path(spec).exists():
        return SequenceClassificationReward(spec, device=device)
    module, _, name = spec.partition(":")
    # A console script, unlike `python -m`, does not look for modules in the folder it is called in.
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise RewardError(
            f"Cannot import the reward function {spec}: {error}. Give module:function, of this folder or installed."
        ) from error
    finally:
        sys.path.pop(0)
    if not callable(found):
        raise RewardError(f"{spec} is no function but a {type(found).__name__}. Give module:function.")
    return found  # type: ignore[no-any-return]


def _print_values(title: str, values: dict[str, Any]) -> None:
    table = Table(show_header=False, title=title)
    for name, value in values.items():
        table.add_row(name, _shown(value))
    console.print(table)


def _shown(value: float | None) -> str:
    if value is None or value != value:  # noqa: PLR0124 - NaN
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3f}"
