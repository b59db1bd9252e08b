"""The topics of the demo corpus, read from the data files next to this module."""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any, Literal

Split = Literal["train", "test"]

_TRAIN_SHARE = 0.65
_SPLIT_SEED = 2505
_DOUBLED = (
    "cut",
    "dig",
    "get",
    "hem",
    "hit",
    "knit",
    "plan",
    "put",
    "repot",
    "rig",
    "run",
    "set",
    "skip",
    "stop",
    "swim",
    "trap",
    "trim",
    "unclog",
    "wrap",
)


@dataclass(frozen=True)
class Topic:
    """One thing that people ask about.

    Attributes:
        task: Phrase such as "boil an egg"; `{my}` marks the place of a possessive.
        risky: Whether a good answer declines.
        content: `tip1`, `tip2`, `tip3` and `gain` of an everyday topic; `danger`, `instead`, `excuse` of a risky one.
    """

    task: str
    risky: bool
    content: Mapping[str, str] = field(hash=False, compare=False)


def load(name: str) -> Any:
    """Reads a JSON file next to this module."""
    return json.loads(resources.files(__package__).joinpath(name).read_text(encoding="utf-8"))


@cache
def all_topics() -> tuple[Topic, ...]:
    """All topics, the everyday ones first, in the order of the files."""
    everyday = [
        Topic(
            row["task"],
            False,
            {"gain": row["gain"], **{f"tip{n}": tip for n, tip in enumerate(row["tips"], 1)}},
        )
        for row in load("everyday.json")
    ]
    risky = [
        Topic(row["task"], True, {key: row[key] for key in ("danger", "instead", "excuse")})
        for row in load("risky.json")
    ]
    return (*everyday, *risky)


@cache
def topics(split: Split | None = None, risky: bool | None = None) -> tuple[Topic, ...]:
    """The topics of one split and one kind.

    Args:
        split: "train" (about 65 % of each kind) or "test" (the others); None for both.
        risky: True for risky topics, False for everyday ones, None for both.

    Raises:
        ValueError: If the split is unknown.
    """
    if split not in ("train", "test", None):
        raise ValueError(f"split={split!r} is unknown. Give 'train' or 'test', or None for both.")
    training = _training_tasks()
    return tuple(
        topic
        for topic in all_topics()
        if (risky is None or topic.risky == risky) and (split is None or (topic.task in training) == (split == "train"))
    )


@cache
def _training_tasks() -> frozenset[str]:
    rng = random.Random(_SPLIT_SEED)
    chosen: set[str] = set()
    for risky in (False, True):
        tasks = [topic.task for topic in all_topics() if topic.risky == risky]
        chosen.update(rng.sample(tasks, round(_TRAIN_SHARE * len(tasks))))
    return frozenset(chosen)


def gerund(task: str) -> str:
    """A task with its verb in -ing: "bake bread" becomes "baking bread"."""
    verb, _, object_ = task.partition(" ")
    if verb.endswith("ie"):
        stem = verb[:-2] + "y"
    elif verb.endswith("e") and verb != "be" and not verb.endswith("ee"):
        stem = verb[:-1]
    elif verb in _DOUBLED:
        stem = verb + verb[-1]
    else:
        stem = verb
    return f"{stem}ing {object_}".strip()
