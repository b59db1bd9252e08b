"""Prints the examples of a dry run, each token in the color of its label, or with a sign where there are no colors."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from langchain_mara.cli import console
from langchain_mara.untrusted import printable
from langchain_mara_training.commands.options import print_json

if TYPE_CHECKING:
    from langchain_mara_training.jobs.examples import Example

_STYLES: dict[str | None, str] = {"accept": "green", "reject": "red", None: "dim"}
_SIGNS = {"accept": "+", "reject": "-"}
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
    has_colors = console.color_system is not None and not console.no_color
    for example in examples:
        console.print(Text(printable(example.title), style="bold"))
        console.print(_colored(example) if has_colors else _signed(example), soft_wrap=True)
        console.print()
    if any(piece.label for example in examples for piece in example.pieces):
        console.print(_legend(has_colors=has_colors), soft_wrap=True)
    console.print(f"{rows:,} rows. This was a dry run: nothing was computed or written.", highlight=False)


def _legend(*, has_colors: bool) -> Text:
    names = {
        label: (name, _STYLES[label]) if has_colors else (_signed_text(name, label), "")
        for label, name in (("accept", "accept"), ("reject", "reject"), (None, "none"))
    }
    rest = ". Without --all-tokens, tokens that had no alternative get none either."
    return Text.assemble("Labels: ", names["accept"], ", ", names["reject"], ", ", names[None], rest)


def _colored(example: "Example") -> Text:
    return Text.assemble(
        *(
            (_shown(piece.text), f"{_STYLES[piece.label]}{_EVERY_OTHER[number % 2]}")
            for number, piece in enumerate(example.pieces)
        )
    )


def _signed(example: "Example") -> Text:
    """The tokens with a label in brackets each, after + or -; the text around them as it is."""
    return Text("".join(_signed_text(_shown(piece.text), piece.label) for piece in example.pieces))


def _signed_text(text: str, label: str | None) -> str:
    if label is None:
        return text
    shown = text.removesuffix("\n")
    return f"[{_SIGNS[label]}{shown}]{text[len(shown) :]}"


def _shown(text: str) -> str:
    return printable(text).replace("\n", _LINE_END)
