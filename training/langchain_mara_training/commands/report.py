"""`mara report`: a comparison as a page."""

# Options reach the job through the context, and the job's libraries are imported only when the command runs.
# ruff: noqa: PLC0415

from pathlib import Path
from typing import Annotated

import typer

from langchain_mara.cli import console, one_sentence
from langchain_mara_training.commands.options import Device, count_option, name_option


def report(
    comparison: Annotated[Path, typer.Argument(help="Folder of a comparison.")],
    output: Annotated[Path | None, typer.Option(metavar="FILE.html", help="By default report.html in it.")] = None,
    title: Annotated[str | None, typer.Option(metavar="TEXT", help="Of the report.")] = None,
    agent: Annotated[str | None, name_option(help="Shows what this agent decided: a run folder or agent.")] = None,
    model: Annotated[str | None, name_option(help="Where its policy model is; by default where it was.")] = None,
    traces: Annotated[int, count_option(help="Most answers to show the agent's decisions of.")] = 5,
    device: Device = None,
) -> None:
    """Writes what a comparison found as a page for people, with the tables in Markdown beside it.

    Examples:
    $ mara report comparison
    $ mara report comparison --agent run --output report.html
    """
    with one_sentence():
        from langchain_mara_training import run_folder
        from langchain_mara_training.evaluation.comparison import Comparison
        from langchain_mara_training.evaluation.report.page import write_report
        from langchain_mara_training.evaluation.report.retrace import retrace

        found = Comparison.load(comparison)
        decided = None
        if agent is not None:
            decided = retrace(found, run_folder.agent_source(agent), model=model, device=device, count=traces)
        for file in write_report(found, output or comparison, title=title, traces=decided):
            console.print(file, style="bold", soft_wrap=True)
