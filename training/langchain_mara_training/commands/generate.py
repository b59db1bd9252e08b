"""`mara generate` streams the answer to one prompt, or answers the prompts of a file into another file."""

# The options are read from the context. Heavy libraries are imported only when the command runs, and those of training
# only for files.
# ruff: noqa: ARG001, PLC0415

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from langchain_mara.cli import EntropyThreshold, Strength, one_sentence
from langchain_mara.exceptions import OptionsError
from langchain_mara.options import DEFAULTS
from langchain_mara.untrusted import printable
from langchain_mara_training.commands.options import (
    EngineOption,
    Limit,
    Split,
    Workers,
    count_option,
    name_option,
    print_values,
    refuse_unused,
)
from langchain_mara_training.storage.defaults import TRAINING_BATCH_SIZE, OnBadRow, TooLong

if TYPE_CHECKING:
    from langchain_mara.llms import MaraLLM

_OR = "by default what the agent recommends, or else {}"
_OF_FILES = (
    "output", "batch_size", "prompt_column", "split", "limit", "too_long", "on_bad_row", "engine", "workers",
)  # fmt: skip
_file_option = {"rich_help_panel": "Files"}


def generate(
    ctx: typer.Context,
    prompt: Annotated[str | None, typer.Argument(help="Prompt to answer, if there is no --input.")] = None,
    model: Annotated[str | None, typer.Option(help="Hub id or folder; by default the bundled model.")] = None,
    agent: Annotated[str | None, typer.Option(help="Agent: folder, hub id, .pth, or repo:file; a+b mixes.")] = None,
    device: Annotated[str | None, typer.Option(help="Device such as cuda or cpu.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of the answer.")] = DEFAULTS.max_new_tokens,
    top_k: Annotated[
        int | None, typer.Option(help=f"Most candidates at a position; {_OR.format(DEFAULTS.top_k)}.")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help=f"Nucleus mass of the candidates; {_OR.format(DEFAULTS.top_p)}.")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help=f"Accept probability that a token must exceed; {_OR.format(DEFAULTS.accept_threshold)}."),
    ] = None,
    strength: Strength = None,
    entropy_gate: EntropyThreshold = None,
    trust_gate: Annotated[
        float | None, typer.Option(help="Let the agent guide only where trust is this many times its recent mean.")
    ] = None,
    rarity: Annotated[
        Path | None, typer.Option(help="Rarities of tokens for --trust-gate, as Rarity.save writes them.")
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Decode without an agent.")] = False,
    data: Annotated[
        str | None,
        name_option("--input", help="Prompts to answer: a file or folder, or the name of a data set.", **_file_option),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File for the rows with their answers: .jsonl or .parquet.", **_file_option),
    ] = None,
    prompt_column: Annotated[
        str | None, name_option(help="Column of the prompts; by default prompt, instruction or question.")
    ] = None,
    split: Split = "train",
    limit: Limit = None,
    batch_size: Annotated[int, count_option(help="Most prompts in one pass.", **_file_option)] = TRAINING_BATCH_SIZE,
    too_long: Annotated[
        TooLong, name_option(help="What a prompt that leaves no room for an answer does: error, skip or truncate-left.")
    ] = "error",
    on_bad_row: Annotated[OnBadRow, name_option(help="What a row without a prompt does: error or skip.")] = "error",
    engine: EngineOption = "process",
    workers: Workers = None,
) -> None:
    """Streams the answer to one prompt, or answers all prompts of a file.

    Examples:
    $ mara generate "How do I boil an egg?"
    $ mara generate --input prompts.jsonl --output answers.jsonl --engine ray --workers 8
    """
    if (prompt is None) == (data is None) or (data is None) != (output is None):
        raise typer.BadParameter("Give a prompt, or --input and --output.", ctx)
    with one_sentence():
        if data is not None and output is not None:
            from langchain_mara_training import run_folder
            from langchain_mara_training.jobs.engines import EngineChoice
            from langchain_mara_training.jobs.generate import generate as answer_file

            options = run_folder.resolved(ctx.params, "output", "prompt", "engine", "workers")
            print_values("Answers", answer_file(output, options, load_llm, EngineChoice(engine, workers)))
            return
        refuse_unused(ctx, _OF_FILES, "without --input")
        for text in load_llm(ctx.params, device).stream(str(prompt)):
            print(printable(text), end="", flush=True)  # noqa: T201 - the answer itself, without markup
        print()  # noqa: T201


def load_llm(options: Mapping[str, Any], device: str | None) -> "MaraLLM":
    """The LLM that the command's options name.

    Args:
        options: Options of the command.
        device: Device of the model.

    Raises:
        MaraError: If the model, the agent or an option cannot be used.
    """
    from langchain_mara.llms import MaraLLM

    names = {"max_new_tokens": "max_new_tokens", "top_k": "top_k", "top_p": "top_p", "threshold": "accept_threshold"}
    # What is not given is left to the agent, which may recommend a value.
    given = {field: options[name] for name, field in names.items() if options[name] is not None}
    if options["strength"] is not None:
        given |= {"strategy": "guided", "strength": options["strength"]}
    gate = _gate(options["entropy_gate"], options["trust_gate"], options["rarity"])
    fields = {**given, "gate": gate, "device": device, "batch_size": options["batch_size"]}
    if options["model"] is None:
        llm = MaraLLM.demo(**({} if options["agent"] is None else {"agent": options["agent"]}), **fields)
    else:
        llm = MaraLLM.from_model_id(options["model"], agent=options["agent"], **fields)
    return llm.with_agent(None) if options["plain"] else llm


def _gate(entropy: float | None, trust: float | None, rarity: Path | None) -> dict[str, Any] | None:
    from langchain_mara.gates.rarity import Rarity

    if entropy is not None and trust is not None:
        raise OptionsError("Give --entropy-gate or --trust-gate, not both.")
    if trust is not None:
        return {"kind": "trust", "alpha": trust, "rarity": None if rarity is None else Rarity.load(rarity)}
    if rarity is not None:
        raise OptionsError("--rarity belongs to a trust gate. Add --trust-gate, such as --trust-gate 0.6.")
    return None if entropy is None else {"kind": "entropy", "threshold": entropy}
