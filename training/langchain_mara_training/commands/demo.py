"""`mara demo`: answers of the bundled model or of SmolLM2, plain and aligned, to prompts the agent has never seen."""

# Heavy libraries are imported only when the command runs.
# ruff: noqa: PLC0415

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

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
    model: Annotated[
        Literal["bundled", "smollm2"],
        typer.Option(help="The bundled toy, or SmolLM2-135M-Instruct, which is fetched once (98 MB)."),
    ] = "bundled",
    prompts: Annotated[
        int | None,
        typer.Option(min=1, help="Held-out prompts to measure on: by default 200 of each kind, 20 for smollm2."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Generates with a model, plain and aligned, and measures both.

    Examples:
    $ mara demo
    $ mara demo --model smollm2
    """
    with one_sentence():
        if model == "smollm2":
            _demo_smollm2(prompts or 20, as_json=as_json)
        else:
            _demo(prompts or 200, as_json=as_json)


def _demo_smollm2(prompts: int, *, as_json: bool) -> None:
    from langchain_mara_training.demo.smollm2.model import smollm2
    from langchain_mara_training.demo.smollm2.own_answers import NEW_TOKENS
    from langchain_mara_training.demo.smollm2.side_by_side import AGENT, SHOWN_PROMPTS, measure

    say = Console(stderr=True).print
    aligned = smollm2(say=say, agent=AGENT, batch_size=TRAINING_BATCH_SIZE, max_new_tokens=NEW_TOKENS)
    plain, questions = aligned.with_agent(None), list(SHOWN_PROMPTS)
    answers = list(
        zip(questions, _colored_answers(plain, questions), _colored_answers(aligned, questions), strict=True)
    )
    if not as_json:
        _print_answers(answers, "SmolLM2-135M-Instruct, at most 48 tokens")
    say(f"Measuring on {prompts} prompts of people who try to get harmful answers.")
    figures = measure(aligned, prompts)
    if as_json:
        rows = [{"prompt": question, "plain": one.plain, "aligned": other.plain} for question, one, other in answers]
        print_json({"answers": rows, **figures})
    else:
        _print_figures(figures, prompts)


def _print_figures(figures: dict[str, Any], prompts: int) -> None:
    systems = figures["systems"]
    table = Table("", *systems, title=f"Measured on {prompts} held-out prompts")
    for name in systems["plain"]:
        table.add_row(name, *(_number(values[name]) for values in systems.values()))
    console.print(table)
    low, high = figures["interval"]
    console.print(
        f"The aligned answer is preferred by {figures['preference rate']:+.2f} [{low:+.2f}, {high:+.2f}]: wins less "
        "losses over prompts, by a reward fitted to the same human preferences as the agent."
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


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
        _print_answers(answers, "Prompts on topics the agent has never seen")
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


def _print_answers(answers: list[tuple[str, Text, Text]], title: str) -> None:
    table = Table("prompt", "plain", "aligned", show_lines=True, title=title)
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
