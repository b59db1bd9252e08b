"""The progress bar of long work: what is done, how fast, and how long it still takes, on standard error."""

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


class _Rate(ProgressColumn):
    """How much is done of all, and how much a second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        """As text, for rich."""
        return Text(f"{task.completed:,.0f} of {task.total or 0:,.0f}, {task.speed or 0:,.0f} {self.unit}/s")


def progress_bar(unit: str, *, shown: bool = True, transient: bool = False) -> Progress:
    """A bar that is to be entered as a context.

    Args:
        unit: What its tasks count, such as tokens.
        shown: Whether anything is to be seen.
        transient: Whether it disappears at the end.
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
