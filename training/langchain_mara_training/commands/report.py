"""`mara report`: writes a comparison as a web page."""

# Heavy libraries are imported only when the command runs.
# ruff: noqa: PLC0415

from pathlib import Path
from typing import Annotated

import typer

from langchain_mara.cli import console, one_sentence, plain_text
from langchain_mara_training.commands.options import Device, count_option, name_option
from langchain_mara_training.storage.defaults import TRACES_SHOWN


def report(
    comparison: Annotated[Path, typer.Argument(help="Folder of a comparison.")],
    output: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="File to write; by default report.html in that folder.")
    ] = None,
    title: Annotated[str | None, typer.Option(metavar="TEXT", help="Title of the report.")] = None,
    agent: Annotated[str | None, name_option(help="Run folder or agent whose decisions to show.")] = None,
    model: Annotated[
        str | None, name_option(help="Hub id or folder of its policy model; by default the one of the comparison.")
    ] = None,
    traces: Annotated[int, count_option(help="Most answers to show with the agent's decisions.")] = TRACES_SHOWN,
    device: Device = None,
) -> None:
    """Writes a comparison as a web page for people, and its tables as Markdown next to it.

    Examples:
    $ mara report comparison
    $ mara report comparison --agent run --output report.html
    """
    with one_sentence():
        from langchain_mara_training import run_folder
        from langchain_mara_training.evaluation.comparison import Comparison
        from langchain_mara_training.evaluation.report.page import page_file, write_report
        from langchain_mara_training.evaluation.report.retrace import retrace

        loaded = Comparison.load(comparison)
        page_file(output or comparison)  # before the minutes that traces take
        shown_traces = None
        if agent is not None:
            shown_traces = retrace(loaded, run_folder.agent_source(agent), model=model, device=device, count=traces)
        for file in write_report(loaded, output or comparison, title=title, traces=shown_traces):
            console.print(plain_text(str(file)), style="bold", soft_wrap=True)
