"""Views of a trace: a page of HTML that stands alone, and a plot."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from math import isnan
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup, escape

from langchain_mara.tracing.statistics import DecisionStatistics, outcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from langchain_mara.tracing.trace import Trace

# Control characters have no place in HTML, and those that turn the direction of writing would turn what follows, too.
_TURNING = (*range(0x202A, 0x202F), *range(0x2066, 0x206A))
_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | dict.fromkeys(_TURNING, 0x2426)
_PICTURES |= {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0x2426)


def render_html(trace: "Trace", candidates: Callable[[int], list[tuple[str, float]]]) -> str:
    """A trace as ASCII HTML that needs neither network nor script.

    Args:
        trace: What to show.
        candidates: Text and accept probability of each candidate examined at a place of the trace.
    """
    html = _template().render(trace=trace, prompt=prompt_text(trace.prompt), candidates=candidates)
    return html.encode("ascii", "xmlcharrefreplace").decode()


def plot_accepted_indices(statistics: DecisionStatistics, axes: "Axes | None" = None) -> "Axes":
    """Draws how often the candidate at each index was accepted.

    Args:
        statistics: Of a trace.
        axes: To draw on; new ones by default.

    Raises:
        ModuleNotFoundError: If matplotlib is missing.
    """
    try:
        import matplotlib.pyplot as plt  # noqa: PLC0415 - it is optional, and slow to import
    except ModuleNotFoundError as error:
        needed = "Plots need matplotlib: pip install 'langchain-mara[plot]'"
        raise ModuleNotFoundError(f"{needed} ({error}).", name=error.name) from None
    axes = plt.subplots(layout="constrained")[1] if axes is None else axes
    counts = statistics.as_info()["accepted_index"]
    axes.bar(range(len(counts)), counts)
    axes.locator_params(integer=True)
    axes.set_xlabel("index of the accepted candidate")
    axes.set_ylabel("positions")
    axes.set_title(f"{statistics.decided} positions decided, {statistics.fallbacks} fallbacks", loc="left")
    return axes


def prompt_text(prompt: str | Sequence[Mapping[str, Any]]) -> str:
    """A prompt as text; messages with their roles, one a line."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def visible(text: str) -> Markup:
    """Text as inert HTML that shows it faithfully; line ends are marked, control characters are pictures."""
    return Markup('<span class="newline"></span>\n').join(map(escape, text.translate(_PICTURES).split("\n")))


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("langchain_mara.tracing", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"visible": visible, "outcome": outcome, "isnan": isnan}
    return environment.get_template("trace.html.j2")
