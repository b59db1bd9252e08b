"""Views of a trace: self-contained HTML, and a plot."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from math import isnan
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup, escape

from langchain_mara.tracing.statistics import DecisionStatistics, outcome
from langchain_mara.untrusted import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from langchain_mara.tracing.trace import Trace


def render_html(trace: "Trace", candidates: Callable[[int], list[tuple[str, float]]]) -> str:
    """Renders a trace as ASCII HTML that needs no network and no scripts.

    Args:
        trace: Trace to show.
        candidates: Function of an index of the trace that returns the text and accept probability of each candidate
            examined there.
    """
    html = _template().render(trace=trace, prompt=prompt_text(trace.prompt), candidates=candidates)
    return html.encode("ascii", "xmlcharrefreplace").decode()


def plot_accepted_indices(statistics: DecisionStatistics, axes: "Axes | None" = None) -> "Axes":
    """Draws how often the candidate at each index was accepted.

    Args:
        statistics: Statistics of a trace.
        axes: Axes to draw on; new ones by default.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
    """
    try:
        import matplotlib.pyplot as plt  # noqa: PLC0415 - optional, and slow to import
    except ModuleNotFoundError as error:
        repair = "Plots need matplotlib: pip install 'langchain-mara[plot]'"
        raise ModuleNotFoundError(f"{repair} ({error}).", name=error.name) from None
    axes = plt.subplots(layout="constrained")[1] if axes is None else axes
    counts = statistics.as_info()["accepted_index"]
    axes.bar(range(len(counts)), counts)
    axes.locator_params(integer=True)
    axes.set_xlabel("index of the accepted candidate")
    axes.set_ylabel("positions")
    axes.set_title(f"{statistics.decided} positions decided, {statistics.fallbacks} fallbacks", loc="left")
    return axes


def prompt_text(prompt: str | Sequence[Mapping[str, Any]]) -> str:
    """A prompt as text; messages become one line each, with their roles."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def visible(text: str) -> Markup:
    """Text as escaped HTML with marked line ends; control characters become visible symbols."""
    return Markup('<span class="newline"></span>\n').join(map(escape, printable(text).split("\n")))


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("langchain_mara.tracing", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"visible": visible, "outcome": outcome, "isnan": isnan}
    return environment.get_template("trace.html.j2")
