"""The demo corpus: questions about everyday and risky topics, with answers of four qualities.

Everything is generated from the data files next to this module; equal seeds give equal results. Topics are split into
"train", for fitting the agent, and "test", for measuring it. The policy model learns from all topics: it is the model
to be aligned, and the agent is what is measured.
"""

import math
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Any

from langchain_mara_training.demo.topics import Split, Topic, gerund, load, topics

_OPENING_SHARE = {"helpful": 0.45, "harmful": 0.45, "curt": 0.25, "evasive": 0.3}
_LONG_SHARE = 0.3
_CURT_AND_EVASIVE_ON_RISKY = 0.12
_TASTE_SPREAD = 0.4
_FIRST_WORD_SPREAD = 0.8


class Quality(StrEnum):
    """Quality of an answer."""

    HELPFUL = "helpful"
    CURT = "curt"
    EVASIVE = "evasive"
    HARMFUL = "harmful"


@dataclass(frozen=True)
class Example:
    """A question with an answer of known quality.

    Attributes:
        prompt: The question.
        answer: The answer.
        quality: Quality of the answer.
        topic: Task of the topic.
        risky: Whether the topic is risky.
    """

    prompt: str
    answer: str
    quality: Quality
    topic: str
    risky: bool


@dataclass(frozen=True)
class PreferencePair:
    """Two answers to the same prompt.

    Attributes:
        prompt: The question.
        chosen: A helpful answer.
        rejected: A harmful answer to a risky question; a curt or evasive answer to an everyday one.
        topic: Task of the topic.
        risky: Whether the topic is risky.
    """

    prompt: str
    chosen: str
    rejected: str
    topic: str
    risky: bool


@cache
def phrases() -> dict[str, Any]:
    """The sentence templates of questions and answers."""
    table: dict[str, Any] = load("phrases.json")
    return table


def examples(seed: int, count: int) -> Iterator[Example]:
    """Yields the policy model's training examples, over all topics: risky and everyday questions in turn.

    Args:
        seed: Seed of the examples; equal seeds give equal examples.
        count: Number of examples.
    """
    rng = random.Random(seed)
    for number in range(count):
        topic = rng.choice(topics(risky=number % 2 == 0))
        form = rng.choice(phrases()["questions"])
        shares = quality_shares(topic, form)
        quality = rng.choices(list(shares), weights=list(shares.values()))[0]
        yield _example(topic, form, quality, rng)


def prompts(split: Split, risky: bool, count: int, seed: int = 0) -> list[str]:
    """Distinct questions about topics of one split and one kind, spread evenly over the topics.

    Args:
        split: "train" or "test".
        risky: True for risky topics, False for everyday ones.
        count: Number of questions.
        seed: Seed of the questions; equal seeds give equal questions.

    Raises:
        ValueError: If there are fewer than `count` distinct questions.
    """
    rng = random.Random(seed)
    forms: list[str] = phrases()["questions"]
    chosen = topics(split, risky)
    if count > len(forms) * len(chosen):
        raise ValueError(f"count={count} is above the {len(forms) * len(chosen)} prompts there are. Lower count.")
    rounds = zip(*(rng.sample(forms, len(forms)) for _ in chosen), strict=True)
    questions = [question(topic, form) for row in rounds for topic, form in zip(chosen, row, strict=True)][:count]
    rng.shuffle(questions)
    return questions


def preference_pairs(split: Split, seed: int, per_topic: int) -> list[PreferencePair]:
    """Pairs of answers to questions about all topics of one split, risky and everyday ones.

    Args:
        split: "train" or "test"; the two share no topic.
        seed: Seed of the pairs; equal seeds give equal pairs.
        per_topic: Number of pairs for each topic.
    """
    rng = random.Random(seed)
    return [_pair(topic, rng) for topic in topics(split) for _ in range(per_topic)]


def labeled_answers(split: Split, seed: int, per_topic: int) -> list[Example]:
    """Examples about all topics of one split, with each quality of the topic's kind equally often.

    Args:
        split: "train" or "test".
        seed: Seed of the examples; equal seeds give equal examples.
        per_topic: Number of examples for each topic.
    """
    rng = random.Random(seed)
    labeled = []
    for topic in topics(split):
        qualities = list(quality_shares(topic, ""))
        for number in range(per_topic):
            form = rng.choice(phrases()["questions"])
            labeled.append(_example(topic, form, qualities[number % len(qualities)], rng))
    return labeled


def quality_shares(topic: Topic, form: str) -> dict[Quality, float]:
    """How often the training stream answers a question with each quality.

    The shares differ between topics, forms and their combinations. So the trained model's most probable answer differs
    from question to question, while every quality stays within its nucleus.
    """
    lean = 0.5 * _beta(topic.task) + 0.3 * _beta(form) + 0.2 * _beta(f"{topic.task}|{form}")
    if topic.risky:
        harmful = 0.225 + 0.42 * lean
        return {
            Quality.HELPFUL: 1 - harmful - _CURT_AND_EVASIVE_ON_RISKY,
            Quality.HARMFUL: harmful,
            Quality.CURT: _CURT_AND_EVASIVE_ON_RISKY / 2,
            Quality.EVASIVE: _CURT_AND_EVASIVE_ON_RISKY / 2,
        }
    helpful = 0.37 + 0.45 * lean
    curt = (1 - helpful) * (0.25 + 0.5 * _beta(f"curt|{topic.task}"))
    return {Quality.HELPFUL: helpful, Quality.CURT: curt, Quality.EVASIVE: 1 - helpful - curt}


def question(topic: Topic, form: str) -> str:
    """The question of one form about one topic."""
    return _capitalized(form.format_map(_slots(topic, "my")))


def answer(topic: Topic, quality: Quality, rng: random.Random) -> str:
    """Draws an answer of one quality about one topic, one to three sentences long."""
    table = phrases()["risky" if topic.risky else "everyday"][quality]
    if "whole" in table:
        text = _pick(topic, table["whole"], rng)
    elif topic.risky:
        text = _risky_answer(topic, table, rng)
    else:
        long = rng.random() < _LONG_SHARE
        text = f"{_pick(topic, table['long' if long else 'stance'], rng)} {_pick(topic, table['closing'], rng)}"
    if rng.random() < _OPENING_SHARE[quality]:
        text = f"{_pick(topic, phrases()['openings'], rng)} {text}"
    return _capitalized(text.format_map({**_slots(topic, "your"), **_tips(topic, rng)}))


def _risky_answer(topic: Topic, table: dict[str, list[str]], rng: random.Random) -> str:
    shape = rng.choices(("comma", "reason", "first", "swap"), weights=(4, 3, 2, 2))[0]
    closing = _pick(topic, table["closing"], rng)
    if shape == "swap":
        return _pick(topic, table["swap"], rng)
    if shape == "first":
        return f"{_pick(topic, table['first'], rng)} {closing}"
    joint = "" if shape == "comma" else ". "
    return f"{_pick(topic, table['stance'], rng)}{joint}{_pick(topic, table[shape], rng)} {closing}"


def _example(topic: Topic, form: str, quality: Quality, rng: random.Random) -> Example:
    return Example(question(topic, form), answer(topic, quality, rng), quality, topic.task, topic.risky)


def _pair(topic: Topic, rng: random.Random) -> PreferencePair:
    form = rng.choice(phrases()["questions"])
    worse = [quality for quality in quality_shares(topic, form) if quality is not Quality.HELPFUL]
    return PreferencePair(
        prompt=question(topic, form),
        chosen=answer(topic, Quality.HELPFUL, rng),
        rejected=answer(topic, Quality.HARMFUL if topic.risky else rng.choice(worse), rng),
        topic=topic.task,
        risky=topic.risky,
    )


def _slots(topic: Topic, possessive: str) -> dict[str, str]:
    return {
        **topic.content,
        "task": topic.task.replace("{my}", possessive),
        "their_task": topic.task.replace("{my}", "their"),
        "doing": gerund(topic.task).replace("{my}", possessive),
    }


def _tips(topic: Topic, rng: random.Random) -> dict[str, str]:
    if topic.risky:
        return {}
    tips = [topic.content[f"tip{number}"] for number in (1, 2, 3)]
    return {"tip": rng.choice(tips)}


def _pick(topic: Topic, options: Sequence[str], rng: random.Random) -> str:
    return rng.choices(options, weights=[_taste(topic.task, option) for option in options])[0]


@cache
def _taste(task: str, option: str) -> float:
    """Weight of a phrase for a topic. Without it, the most probable answers would all begin alike."""
    first = random.Random(f"{task}|first|{option.split(maxsplit=1)[0]}").gauss(0, _FIRST_WORD_SPREAD)
    return math.exp(first + random.Random(f"{task}|{option}").gauss(0, _TASTE_SPREAD))


@cache
def _beta(key: str) -> float:
    return random.Random(key).betavariate(0.7, 0.7)


def _capitalized(text: str) -> str:
    return re.sub(r"(^|[.?!] )([a-z])", lambda match: match[1] + match[2].upper(), text)
