"""Agents of `real.py`, by the labels they are fitted to, and the settings in which they decode."""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from langchain_mara_training import (
    Decoding,
    MaraAligner,
    MaraClassifier,
    MaraSAC,
    PreferenceLabeler,
    System,
    UpdateOptions,
    distill,
)
from langchain_mara_training.demo.smollm2.model import smollm2_folder
from langchain_mara_training.demo.smollm2.own_answers import NEW_TOKENS
from langchain_mara_training.demo.smollm2.training import fit_agent, fitted
from real_bench import BATCH, Bench
from real_dpo import fit_dpo

from langchain_mara import MaraLLM
from langchain_mara.agents.base import Agent
from langchain_mara.agents.kinds import agent_from_pretrained
from langchain_mara.gates.fitting import entropy_gate, trust_gate

ROLLOUT_PROMPTS = 100
ROUND_PAIRS = 300
EPISODES = 640
DISTILLATION_PROMPTS = 200
GATE_PROMPTS = 40
Options = dict[str, Any]


def by_preference(bench: Bench, seed: int) -> Agent:
    """As the shipped one: human pairs, and own answers that tell it when to guide."""
    agent: Agent = fit_agent(bench.llm, bench.split.train, bench.folder, seed).agent_
    return agent


def by_human_pairs(bench: Bench, seed: int) -> Agent:
    """A look-ahead agent of the human pairs alone."""
    labels = PreferenceLabeler(bench.llm, judges="before").label(bench.split.train, bench.folder / "labels")
    agent: Agent = fitted(labels, seed).agent_
    return agent


def by_states_after(bench: Bench, seed: int) -> Agent:
    """The paper's agent, of the human pairs alone."""
    labels = PreferenceLabeler(bench.llm).label(bench.split.train, bench.folder / "labels-after")
    classifier = MaraClassifier(random_state=seed, calibration=None, device="cpu")
    agent: Agent = classifier.fit(labels.X, labels.y, labels.weight, labels.groups).agent_
    return agent


def by_distillation(bench: Bench, seed: int) -> Agent:
    """A look-ahead agent that learns the verdicts of the state agent of the same seed."""
    prompts = [{"prompt": pair["prompt"]} for pair in bench.split.train[:DISTILLATION_PROMPTS]]
    llm = bench.llm.model_copy(update=SETTINGS["first-accept"].options(bench, bench.llm))
    # A second round would take some twenty minutes more.
    return distill(agent_of(bench, "states after", seed), llm, prompts, rounds=1, random_state=seed).agent


def by_rollouts(bench: Bench, seed: int) -> Agent:
    """Fitted to rollouts of the model's own candidates, scored by the reward."""
    options = {"positions": 4, "candidates": 4, "prompts_per_shard": 20}
    aligner = MaraAligner(
        bench.llm, bench.reward, labeler="rollout", rounds=1, labeler_options=options,
        output=bench.folder / f"seed-{seed}" / "rollout labels, run", classifier=MaraClassifier(agent="look-ahead"),
        random_state=seed,
    )  # fmt: skip
    agent: Agent = aligner.fit([{"prompt": pair["prompt"]} for pair in bench.split.train[:ROLLOUT_PROMPTS]]).agent_
    return agent


def by_rounds(bench: Bench, seed: int) -> Agent:
    """Fitted to human pairs, and then to pairs of answers drawn with that agent, too."""
    aligner = MaraAligner(
        bench.llm, bench.reward, labeler="preference", rounds=2, labeler_options={"judges": "before"},
        output=bench.folder / f"seed-{seed}" / "rounds, run", classifier=MaraClassifier(agent="look-ahead"),
        random_state=seed,
    )  # fmt: skip
    agent: Agent = aligner.fit(bench.split.train[:ROUND_PAIRS]).agent_
    return agent


def by_reinforcement(bench: Bench, seed: int) -> Agent:
    """Soft actor-critic from scratch. The paper's 21,000 episodes would take a day, so it learns faster from fewer."""
    llm = bench.llm.model_copy(update=_FIRST_ACCEPT)
    sac = MaraSAC(
        llm, bench.reward, kind="look-ahead", episodes=EPISODES, parallel=32, width=256, batch_size=256, updates=4,
        warm_up=4, update=UpdateOptions(learning_rate_actor=1e-3, learning_rate_critic=1e-3),
        output=bench.folder / f"seed-{seed}" / "reinforcement, run", random_state=seed, verbose=True,
    )  # fmt: skip
    agent: Agent = sac.fit([{"prompt": pair["prompt"]} for pair in bench.split.train]).agent_
    return agent


AGENTS: dict[str, Callable[[Bench, int], Agent]] = {
    "preference labels": by_preference,
    "human pairs": by_human_pairs,
    "states after": by_states_after,
    "distilled": by_distillation,
    "rollout labels": by_rollouts,
    "rounds": by_rounds,
    "reinforcement": by_reinforcement,
}


def agent_of(bench: Bench, name: str, seed: int) -> Agent:
    """An agent of a kind of labels, trained once."""
    return kept_agent(bench.folder / f"seed-{seed}" / name, lambda: AGENTS[name](bench, seed))


def kept_agent(place: Path, make: Callable[[], Agent]) -> Agent:
    """The agent in a folder, made if it is not there; its seconds are in a file of the same name."""
    if not place.exists():
        started = time.perf_counter()
        make().save_pretrained(place.with_suffix(".part"))
        place.with_suffix(".json").write_text(json.dumps({"seconds": time.perf_counter() - started}))
        shutil.move(place.with_suffix(".part"), place)
    return agent_from_pretrained(place)


@dataclass(frozen=True)
class Setting:
    """Decoding options of an agent.

    Attributes:
        fixed: Options.
        gate: Makes the gate from bench and LLM; None for none.
    """

    fixed: Options
    gate: Callable[[Bench, MaraLLM], Any] | None = None

    def options(self, bench: Bench, llm: MaraLLM) -> Options:
        """All options, with the gate fitted to prompts or texts that are not measured on."""
        asked = llm.model_copy(update=self.fixed)
        return self.fixed if self.gate is None else {**self.fixed, "gate": self.gate(bench, asked)}


def _entropy_gate(bench: Bench, llm: MaraLLM) -> Any:
    prompts: Any = [pair["prompt"] for pair in bench.split.judge[:GATE_PROMPTS]]
    return entropy_gate(llm, prompts)


def _trust_gate(bench: Bench, llm: MaraLLM) -> Any:
    return trust_gate(llm, [pair[side][-1]["content"] for pair in bench.split.train for side in ("chosen", "rejected")])


def _guided(strength: float) -> Options:
    return {"strategy": "guided", "strength": strength}


_FIRST_ACCEPT: Options = {"strategy": "first-accept", "top_p": 0.8}
SETTINGS = {
    **{f"strength {strength}": Setting(_guided(strength)) for strength in (0.9, 0.93, 0.94, 0.95)},
    "strength 0.94, frequency penalty 0.6": Setting({**_guided(0.94), "frequency_penalty": 0.6}),
    **{f"threshold {value}": Setting({"accept_threshold": value}) for value in (0.4, 0.5, 0.6)},
    "strength 0.94, entropy gate": Setting(_guided(0.94), _entropy_gate),
    "strength 0.94, trust gate": Setting(_guided(0.94), _trust_gate),
    "first-accept": Setting(_FIRST_ACCEPT),
    "first-accept, entropy gate": Setting(_FIRST_ACCEPT, _entropy_gate),
    "first-accept, trust gate": Setting(_FIRST_ACCEPT, _trust_gate),
}
"""Settings by name. Where no nucleus is named, it is the default's."""
_FIRST_ACCEPTS = ("first-accept", "first-accept, entropy gate", "first-accept, trust gate")
MEASURED = {
    "preference labels": tuple(name for name in SETTINGS if name not in _FIRST_ACCEPTS),
    "human pairs": ("strength 0.9", "strength 0.94"),
    "states after": _FIRST_ACCEPTS,
    "distilled": _FIRST_ACCEPTS,
    "rollout labels": ("strength 0.94",),
    "rounds": ("strength 0.94",),
    "reinforcement": ("first-accept",),
}
"""Settings in the table, by the labels of the agents."""


def decoding(bench: Bench, name: str, kind: str, setting: str, seed: int) -> System:
    """Decoding with an agent of a kind in a setting."""
    llm = bench.llm.with_agent(agent_of(bench, kind, seed))
    return Decoding(name, llm.model_copy(update=SETTINGS[setting].options(bench, llm)))


def dpo(bench: Bench, seed: int) -> MaraLLM:
    """The model with an adapter fitted by DPO for as long as the agent of preference labels took."""
    place = bench.folder / f"seed-{seed}" / "DPO"
    if not place.exists():
        limit = json.loads((place.parent / "preference labels.json").read_text())["seconds"]
        started = time.perf_counter()
        epochs = fit_dpo(smollm2_folder(), bench.split.train, place, seconds=limit, seed=seed)
        facts = {"seconds": time.perf_counter() - started, "epochs": epochs}
        place.with_suffix(".json").write_text(json.dumps(facts))
    return MaraLLM.from_model_id(str(place), device="cpu", batch_size=BATCH, max_new_tokens=NEW_TOKENS)
