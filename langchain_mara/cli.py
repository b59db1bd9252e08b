"""The `mara` command with `generate` and `info`; `langchain_mara_training.commands` adds the other subcommands.

Each subcommand imports what it needs when it runs, so `mara --help` is fast.
"""

import json
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from langchain_mara._version import __version__
from langchain_mara.exceptions import MaraError, OptionsError
from langchain_mara.options import DEFAULTS
from langchain_mara.untrusted import printable

app = typer.Typer(
    help="Aligned local language models: an agent accepts or rejects each token.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)
console = Console()

_OR = "by default what the agent recommends, or else {}"
_LIBRARIES = (
    "torch", "transformers", "accelerate", "langchain-core", "huggingface_hub", "datasets", "scikit-learn", "skorch",
)  # fmt: skip


@contextmanager
def one_sentence(extra: str = "training") -> Iterator[None]:
    """Prints an error as one red sentence and ends the command. Turns off transformers' progress bars.

    Args:
        extra: Extra of this package that holds the libraries of the command.
    """
    try:
        from transformers.utils import logging

        logging.disable_progress_bar()
        yield
    except (MaraError, OSError) as error:
        message = str(error)
    except ImportError as error:
        message = f"This command needs more libraries: pip install 'langchain-mara[{extra}]' ({error})."
    else:
        return
    Console(stderr=True).print(plain_text(message), style="red")
    raise typer.Exit(1)


def plain_text(text: str) -> Text:
    """Text for the terminal as it is: no markup, and control characters become symbols."""
    return Text(printable(text))


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="Prompt to answer.")],
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
    strength: Annotated[
        float | None, typer.Option(help="Weigh the agent against the model by this, 0 to 1, instead of a threshold.")
    ] = None,
    entropy_gate: Annotated[
        float | None, typer.Option(help="Ask the agent only where the model's entropy, in nats, is above this.")
    ] = None,
    trust_gate: Annotated[
        float | None, typer.Option(help="Let the agent guide only where trust is this many times its recent mean.")
    ] = None,
    rarity: Annotated[
        Path | None, typer.Option(help="Rarities of tokens for --trust-gate, as Rarity.save writes them.")
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Decode without an agent.")] = False,
) -> None:
    """Streams the answer to one prompt.

    Example: mara generate "How do I boil an egg?"
    """
    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "top_k": top_k,
        "top_p": top_p,
        "accept_threshold": threshold,
        **({} if strength is None else {"strategy": "guided", "strength": strength}),
    }
    # What is not given is left to the agent, which may recommend a value.
    options = {name: given for name, given in options.items() if given is not None}
    with one_sentence():
        from langchain_mara.llms import MaraLLM

        options["gate"] = _gate(entropy_gate, trust_gate, rarity)
        if model is None:
            agent_option = {} if agent is None else {"agent": agent}
            llm = MaraLLM.demo(device=device, **agent_option, **options)
        else:
            llm = MaraLLM.from_model_id(model, agent=agent, device=device, **options)
        for text in (llm.with_agent(None) if plain else llm).stream(prompt):
            print(printable(text), end="", flush=True)  # noqa: T201 - the answer itself, without markup
        print()  # noqa: T201


def _gate(entropy: float | None, trust: float | None, rarity: Path | None) -> dict[str, Any] | None:
    from langchain_mara.gates.rarity import Rarity

    if entropy is not None and trust is not None:
        raise OptionsError("Give --entropy-gate or --trust-gate, not both.")
    if trust is not None:
        return {"kind": "trust", "alpha": trust, "rarity": None if rarity is None else Rarity.load(rarity)}
    if rarity is not None:
        raise OptionsError("--rarity belongs to a trust gate. Add --trust-gate, such as --trust-gate 0.6.")
    return None if entropy is None else {"kind": "entropy", "threshold": entropy}


@app.command()
def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Shows versions and devices for bug reports."""
    import torch

    found = {"langchain-mara": __version__, "python": platform.python_version()}
    found |= {library: _version(library) for library in _LIBRARIES}
    found["cpu"] = f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        found[f"cuda:{i}"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    if as_json:
        print(json.dumps(found, indent=2))  # noqa: T201 - for other programs, so without rich
        return
    table = Table(show_header=False)
    for row in found.items():
        table.add_row(*row)
    console.print(table)


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "not installed"
