"""The `mara` command."""

import platform
from collections.abc import Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text
from transformers.utils import logging

from langchain_mara._version import __version__
from langchain_mara.exceptions import MaraError
from langchain_mara.llms import MaraLLM
from langchain_mara.trace import Outcome, outcome

app = typer.Typer(
    help="Aligned local language models by token-level accept/reject decoding.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)
console = Console()

_LIBRARIES = (
    "torch", "transformers", "accelerate", "langchain-core", "huggingface_hub", "datasets", "scikit-learn", "skorch",
)  # fmt: skip
_SHOWN_PER_KIND = 3


@app.command()
def demo(
    prompts: Annotated[int, typer.Option(min=1, help="Held-out prompts of each kind to measure on.")] = 200,
) -> None:
    """Answers prompts with the embedded model, plain and aligned, and counts harmful answers of both."""
    try:
        from langchain_mara.demo.judge import Judge
        from langchain_mara.demo.measure import measure
    except ImportError as error:
        needed = "The demonstration's judge needs scikit-learn: pip install 'langchain-mara[training]'"
        raise _exit(f"{needed} ({error}).") from None
    from langchain_mara.demo.corpus import prompts as held_out

    logging.disable_progress_bar()
    aligned = MaraLLM.demo(batch_size=32)
    plain = aligned.with_agent(None)
    questions = [
        *held_out("test", risky=True, count=_SHOWN_PER_KIND),
        *held_out("test", risky=False, count=_SHOWN_PER_KIND),
    ]
    table = Table("prompt", "plain", "aligned", show_lines=True, title="Prompts on topics the agent has never seen")
    for question, left, right in zip(
        questions, _coloured(plain, questions), _coloured(aligned, questions), strict=True
    ):
        table.add_row(question, left, right)
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


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="Text to answer.")],
    model: Annotated[str | None, typer.Option(help="Hub id or folder; the embedded model by default.")] = None,
    agent: Annotated[str | None, typer.Option(help="Agent: folder, hub id, .pth, or repo:file.")] = None,
    device: Annotated[str | None, typer.Option(help="Such as cuda or cpu.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of the answer.")] = 256,
    top_k: Annotated[int, typer.Option(help="Most candidates of a position.")] = 40,
    top_p: Annotated[float, typer.Option(help="Nucleus mass.")] = 0.95,
    threshold: Annotated[float, typer.Option(help="Accept probability to exceed.")] = 0.5,
    plain: Annotated[bool, typer.Option("--plain", help="Decode without an agent.")] = False,
) -> None:
    """Streams the answer to one prompt.

    Example: mara generate "How do I boil an egg?"
    """
    logging.disable_progress_bar()
    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "top_k": top_k,
        "top_p": top_p,
        "accept_threshold": threshold,
    }
    try:
        if model is None:
            chosen = {} if agent is None else {"agent": agent}
            llm = MaraLLM.demo(device=device, **chosen, **options)
        else:
            llm = MaraLLM.from_model_id(model, agent=agent, device=device, **options)
        for text in (llm.with_agent(None) if plain else llm).stream(prompt):
            print(text, end="", flush=True)  # noqa: T201 - the answer itself, without markup
        print()  # noqa: T201
    except MaraError as error:
        raise _exit(str(error)) from None


@app.command()
def info() -> None:
    """Shows versions and devices, for bug reports."""
    table = Table(show_header=False)
    table.add_row("langchain-mara", __version__)
    table.add_row("python", platform.python_version())
    for library in _LIBRARIES:
        table.add_row(library, _version(library))
    table.add_row("cpu", f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        table.add_row(f"cuda:{i}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    console.print(table)


_STYLES: dict[Outcome, str] = {"accepted": "", "steered": "bold green", "fallback": "red", "unasked": "dim"}
_LEGEND = Text.assemble(
    "first candidate accepted, ",
    ("an earlier candidate rejected", _STYLES["steered"]),
    ", ",
    ("all rejected: fallback", _STYLES["fallback"]),
    ", ",
    ("agent not asked", _STYLES["unasked"]),
)


def _coloured(llm: MaraLLM, questions: list[str]) -> Iterator[Text]:
    """Answers, every token coloured by the decision that emitted it."""
    for answers in llm.trace(questions):
        yield Text.assemble(*((text, _STYLES[outcome(decision)]) for decision, text in answers))


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "not installed"


def _exit(message: str) -> typer.Exit:
    Console(stderr=True).print(message, style="red", markup=False)
    return typer.Exit(1)
