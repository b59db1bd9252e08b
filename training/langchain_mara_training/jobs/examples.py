"""The first rows of a job's data as the model reads them: tokens with the labels that they get."""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from langchain_mara import MaraLLM
from langchain_mara.policy.verification import policy_of
from langchain_mara.text.detokenizer import IncrementalDetokenizer
from langchain_mara_training.data.readers import Row
from langchain_mara_training.generation.prompts import prompt_ids
from langchain_mara_training.labeling.answer_tokens import labeled_answers

EXAMPLES = 3
"""Rows that a dry run shows."""

Label = Literal["accept", "reject"]


class Piece(NamedTuple):
    """The text of a token; of several tokens where a character consists of several.

    Attributes:
        text: The text, special tokens included.
        label: Label of the token; None if it gets none.
    """

    text: str
    label: Label | None


class Example(NamedTuple):
    """A text as the model reads it.

    Attributes:
        title: Its row and what it is.
        pieces: Its tokens.
    """

    title: str
    pieces: list[Piece]


def pair_examples(llm: MaraLLM, rows: Sequence[Row]) -> list[Example]:
    """The first pairs with the labels of `PreferenceLabeler`, before tokens without alternatives are left out.

    Args:
        llm: Policy model with its chat template.
        rows: Rows with `prompt`, `chosen` and `rejected`.

    Raises:
        DataError: If a row cannot be labeled.
    """
    context = policy_of(llm.model).context
    examples = []
    for number, row in enumerate(rows[:EXAMPLES]):
        answers = labeled_answers(llm, row, number, context)
        for answer in answers:
            label: Label = "accept" if answer.label else "reject"
            own = [label if is_own else None for is_own in answer.is_own]
            labels = [None] * answer.start + own
            side = "chosen" if answer.label else "rejected"
            examples.append(Example(f"row {number}, {side}", list(_pieces(llm, answer.token_ids, labels))))
        if not answers:
            examples.append(
                Example(f"row {number}: chosen and rejected have the same tokens, so none gets a label", [])
            )
    return examples


def prompt_examples(llm: MaraLLM, rows: Sequence[Row]) -> list[Example]:
    """The first prompts as the model reads them.

    Args:
        llm: Policy model with its chat template.
        rows: Rows with a `prompt`.

    Raises:
        PromptError: If a prompt is too long.
    """
    encoded = [prompt_ids(llm, row) for row in rows[:EXAMPLES]]
    return [
        Example(f"row {number}, prompt", list(_pieces(llm, ids, [None] * len(ids))))
        for number, ids in enumerate(encoded)
    ]


def _pieces(llm: MaraLLM, token_ids: Sequence[int], labels: Sequence[Label | None]) -> Iterator[Piece]:
    tokenizer = llm.tokenizer
    special = [str(token.content) for token in tokenizer.added_tokens_decoder.values() if token.special]
    detokenizer = IncrementalDetokenizer(tokenizer, markers=special)
    for token, label in zip(token_ids, labels, strict=True):
        if text := detokenizer.push(token):
            yield Piece(text, label)
    if text := detokenizer.finish():
        yield Piece(text, labels[-1])
