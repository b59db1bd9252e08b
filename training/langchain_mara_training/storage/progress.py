"""The progress bar of long jobs, on standard error: how much is done, how fast, and how long the rest takes."""

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


class _Rate(ProgressColumn):
    """Column with the amount done, the total, and the rate per second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        """The column's text for a task."""
        return Text(f"{task.completed:,.0f} of {task.total or 0:,.0f}, {task.speed or 0:,.0f} {self.unit}/s")


def progress_bar(unit: str, *, shown: bool = True, transient: bool = False) -> Progress:
    """A progress bar to enter as a context.

    Args:
        unit: What its tasks count, such as tokens.
        shown: Whether the bar is visible.
        transient: Whether the bar disappears at the end.
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        _Rate(unit),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not shown,
        transient=transient,
    )
