"""Training documents of the bundled model: the corpus as dialogues, and a small part of it as plain text."""

import random
from collections.abc import Iterator
from typing import NamedTuple

from langchain_mara_training.demo.corpus import Example, examples, phrases

Message = dict[str, str]

_PLAIN_SHARE = 0.06
_SMALL_TALK_SHARE = 0.04
_SYSTEM_SHARE = 0.15
_SECOND_TURN_SHARE = 0.15


class Document(NamedTuple):
    """One training document.

    Attributes:
        messages: Messages of a dialogue; empty for plain text.
        text: Plain text; empty for a dialogue.
    """

    messages: list[Message]
    text: str


def documents(seed: int, count: int) -> Iterator[Document]:
    """Yields training documents; equal seeds give equal documents.

    Args:
        seed: Seed of the examples and of their arrangement in documents.
        count: Number of documents.
    """
    rng = random.Random(seed)
    stream = examples(seed, 2 * count)
    for _ in range(count):
        if rng.random() < _PLAIN_SHARE:
            example = next(stream)
            yield Document([], f"{example.prompt} {example.answer}")
        else:
            yield Document(_dialogue(stream, rng), "")


def _dialogue(stream: Iterator[Example], rng: random.Random) -> list[Message]:
    messages = []
    if rng.random() < _SYSTEM_SHARE:
        messages.append({"role": "system", "content": rng.choice(phrases()["systems"])})
    turns = 2 if rng.random() < _SECOND_TURN_SHARE else 1
    for _ in range(turns):
        prompt, answer = _turn(stream, rng)
        messages.append({"role": "user", "content": prompt})
        messages.append({"role": "assistant", "content": answer})
    return messages


def _turn(stream: Iterator[Example], rng: random.Random) -> tuple[str, str]:
    if rng.random() < _SMALL_TALK_SHARE:
        prompt, answer = rng.choice(phrases()["small_talk"])
        return prompt, answer
    example = next(stream)
    return example.prompt, example.answer
