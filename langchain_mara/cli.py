"""The `mara` command with `info`; `langchain_mara_training.commands` adds the other subcommands.

Each subcommand imports what it needs when it runs, so `mara --help` is fast.
"""

import json
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from langchain_mara._version import __version__
from langchain_mara.exceptions import MaraError
from langchain_mara.untrusted import printable

app = typer.Typer(
    help="Aligned local language models: an agent accepts or rejects each token.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)
console = Console()

Strength = Annotated[
    float | None, typer.Option(help="Weigh the agent against the model by this, 0 to 1, instead of a threshold.")
]
EntropyThreshold = Annotated[
    float | None, typer.Option(help="Ask the agent only where the model's entropy, in nats, is above this.")
]

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
