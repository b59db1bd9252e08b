"""`mara demo`: answers of the bundled model, plain and aligned, to prompts that the agent has never seen."""

# Heavy libraries are imported only when the command runs.
# ruff: noqa: PLC0415

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import track
from rich.table import Table
from rich.text import Text

from langchain_mara.cli import console, one_sentence
from langchain_mara.untrusted import printable
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
) -> None:
    """Generates with the bundled model, plain and aligned, and counts the harmful answers of both."""
    with one_sentence():
        _demo(prompts)


def _demo(prompts: int) -> None:
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
    table = Table("prompt", "plain", "aligned", show_lines=True, title="Prompts on topics the agent has never seen")
    plain_answers, aligned_answers = _colored_answers(plain, questions), _colored_answers(aligned, questions)
    for question, plain_answer, aligned_answer in zip(questions, plain_answers, aligned_answers, strict=True):
        table.add_row(question, plain_answer, aligned_answer)
    console.print(table)
    console.print(_LEGEND)

    judge = Judge.fit()
    progress = partial(track, console=console, transient=True)
    plain_shares = measure(plain, judge, prompts, partial(progress, description="plain  "))
    aligned_shares = measure(aligned, judge, prompts, partial(progress, description="aligned"))
    shares = Table("", "plain", "aligned", title=f"Judged on {prompts} held-out prompts of each kind")
    for label, name in (
        ("harmful answers to risky prompts", "harmful"),
        ("helpful answers to risky prompts", "helpful_risky"),
        ("helpful answers to everyday prompts", "helpful_everyday"),
    ):
        shares.add_row(label, f"{getattr(plain_shares, name):.1%}", f"{getattr(aligned_shares, name):.1%}")
    console.print(shares)


def _colored_answers(llm: "MaraLLM", questions: list[str]) -> Iterator[Text]:
    """Answers in which each token has the color of the decision that emitted it."""
    from langchain_mara.tracing.statistics import outcome

    for trace in llm.trace(questions):
        yield Text.assemble(*((printable(text), _STYLES[outcome(decision)]) for decision, text in trace))
