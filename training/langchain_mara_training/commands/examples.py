"""Prints the examples of a dry run, each token in the color of its label."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from langchain_mara.cli import console
from langchain_mara.untrusted import printable
from langchain_mara_training.commands.options import print_json

if TYPE_CHECKING:
    from langchain_mara_training.jobs.examples import Example

_STYLES: dict[str | None, str] = {"accept": "green", "reject": "red", None: "dim"}
_LEGEND = Text.assemble(
    "Labels: ",
    ("accept", _STYLES["accept"]),
    ", ",
    ("reject", _STYLES["reject"]),
    ", ",
    ("none", _STYLES[None]),
    ". Without --all-tokens, tokens that had no alternative get none either.",
)
# Neighboring tokens are told apart by a line under every other one.
_EVERY_OTHER = ("", " underline")
_LINE_END = "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}\n"


def print_examples(examples: "Sequence[Example]", rows: int, *, as_json: bool) -> None:
    """Prints examples, and how many rows there are.

    Args:
        examples: The first rows as the model reads them.
        rows: Number of rows in all.
        as_json: Whether to print JSON instead of colored text.
    """
    if as_json:
        shown = [{"title": title, "tokens": [piece._asdict() for piece in pieces]} for title, pieces in examples]
        print_json({"rows": rows, "examples": shown})
        return
    for example in examples:
        console.print(Text(printable(example.title), style="bold"))
        console.print(_colored(example), soft_wrap=True)
        console.print()
    if any(piece.label for example in examples for piece in example.pieces):
        console.print(_LEGEND)
    console.print(f"{rows:,} rows. This was a dry run: nothing was computed or written.", highlight=False)


def _colored(example: "Example") -> Text:
    return Text.assemble(
        *(
            (printable(piece.text).replace("\n", _LINE_END), f"{_STYLES[piece.label]}{_EVERY_OTHER[number % 2]}")
            for number, piece in enumerate(example.pieces)
        )
    )
