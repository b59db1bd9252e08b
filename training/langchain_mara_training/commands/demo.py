"""`mara demo`: answers of the bundled model, plain and aligned, to prompts that the agent has never seen."""

# Heavy libraries are imported only when the command runs.
# ruff: noqa: PLC0415

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from langchain_mara.cli import console, one_sentence
from langchain_mara.untrusted import printable
from langchain_mara_training.commands.options import Json, print_json
from langchain_mara_training.storage.defaults import TRAINING_BATCH_SIZE

if TYPE_CHECKING:
    from langchain_mara import MaraLLM

_SHOWN_PER_KIND = 3
_STYLES: dict[str, str] = {"accepted": "", "steered": "bold green", "fallback": "red", "unasked": "dim"}
_LEGEND = Text.assemble(
    "first candidate accepted, ",
    ("an earlier candidate rejected", _STYLES["steered"]),
    ", ",
    ("all rejected: fallback", _STYLES["fallback"]),
    ", ",
    ("agent not asked", _STYLES["unasked"]),
)


def demo(
    prompts: Annotated[int, typer.Option(min=1, help="Number of held-out prompts of each kind to measure on.")] = 200,
    as_json: Json = False,
) -> None:
    """Generates with the bundled model, plain and aligned, and counts the harmful answers of both."""
    with one_sentence():
        _demo(prompts, as_json=as_json)


def _demo(prompts: int, *, as_json: bool) -> None:
    from langchain_mara import MaraLLM
    from langchain_mara_training.demo.corpus import prompts as held_out
    from langchain_mara_training.demo.judge import Judge
    from langchain_mara_training.demo.measure import measure

    aligned = MaraLLM.demo(batch_size=TRAINING_BATCH_SIZE)
    plain = aligned.with_agent(None)
    questions = [
        *held_out("test", risky=True, count=_SHOWN_PER_KIND),
        *held_out("test", risky=False, count=_SHOWN_PER_KIND),
    ]
    answers = list(
        zip(questions, _colored_answers(plain, questions), _colored_answers(aligned, questions), strict=True)
    )
    if not as_json:
        _print_answers(answers)
    judge = Judge.fit()
    progress = partial(track, console=Console(stderr=True), transient=True)
    shares = {
        "plain": measure(plain, judge, prompts, partial(progress, description="plain  ")),
        "aligned": measure(aligned, judge, prompts, partial(progress, description="aligned")),
    }
    if as_json:
        rows = [{"prompt": question, "plain": one.plain, "aligned": other.plain} for question, one, other in answers]
        print_json({"answers": rows, "shares": {name: asdict(found) for name, found in shares.items()}})
    else:
        _print_shares(shares, prompts)


def _print_answers(answers: list[tuple[str, Text, Text]]) -> None:
    table = Table("prompt", "plain", "aligned", show_lines=True, title="Prompts on topics the agent has never seen")
    for row in answers:
        table.add_row(*row)
    console.print(table)
    console.print(_LEGEND)


def _print_shares(shares: dict[str, Any], prompts: int) -> None:
    table = Table("", *shares, title=f"Judged on {prompts} held-out prompts of each kind")
    for label, name in (
        ("harmful answers to risky prompts", "harmful"),
        ("helpful answers to risky prompts", "helpful_risky"),
        ("helpful answers to everyday prompts", "helpful_everyday"),
    ):
        table.add_row(label, *(f"{getattr(found, name):.1%}" for found in shares.values()))
    console.print(table)


def _colored_answers(llm: "MaraLLM", questions: list[str]) -> Iterator[Text]:
    """Answers in which each token has the color of the decision that emitted it."""
    from langchain_mara.tracing.statistics import outcome

    for trace in llm.trace(questions):
        yield Text.assemble(*((printable(text), _STYLES[outcome(decision)]) for decision, text in trace))
