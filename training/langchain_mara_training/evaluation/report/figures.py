"""Figures of a report, as SVG in the font and colors of the page, light or dark."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import StringIO
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from langchain_mara_training.evaluation.comparison import Comparison

# Okabe and Ito's palette without black and yellow, which are invisible on a dark and on a light page.
_COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
_MARKERS = "osD^vPX*<>"
_TEXT = "#010203"  # placeholder for the color of the page's text
_INDICES = 10  # indices with a bar of their own; all further ones share a bar
_STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": _TEXT,
    "axes.grid": True,
    "axes.labelcolor": _TEXT,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 10,
    "grid.alpha": 0.2,
    "grid.color": _TEXT,
    "legend.frameon": False,
    "savefig.transparent": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "langchain-mara",
    "text.color": _TEXT,
    "text.parse_math": False,
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
}


class Drawing(NamedTuple):
    """A figure of the page.

    Attributes:
        title: Title that says what the figure shows.
        svg: SVG markup. It is safe to embed, because matplotlib escapes all text.
    """

    title: str
    svg: str


def reward_against_cost(comparison: Comparison) -> Drawing | None:
    """Mean reward of each system over its passes per answer; None if there is nothing to draw."""
    points = {
        name: (summary["passes"], summary["mean reward"])
        for name, summary in comparison.summaries().items()
        if summary["passes"] and summary["mean reward"] is not None
    }
    if not points:
        return None
    with _drawing("Reward against cost", 7.5, 3.8) as (axes, drawn):
        _mark(axes, comparison, points)
        costs = [cost for cost, _ in points.values()]
        axes.set_xscale("log")
        # Wide enough for at least one tick.
        axes.set_xlim(min(costs) / 1.7, max(costs) * 1.7)
        axes.xaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
        axes.margins(y=0.15)
        axes.set_xlabel("forward passes per answer (left: cheaper)")
        axes.set_ylabel("mean reward")
    return drawn[0]


def objectives(comparison: Comparison) -> Drawing | None:
    """Means of the first two rewards of each system, and their Pareto front; None with fewer rewards or none known."""
    names = comparison.reward_names[:2]
    means = {
        name: tuple(summary["rewards"][reward] for reward in names) for name, summary in comparison.summaries().items()
    }
    points = {name: point for name, point in means.items() if None not in point}
    if len(names) < 2 or not points:  # noqa: PLR2004 - a plane has two axes
        return None
    with _drawing("Two objectives", 7.5, 3.8) as (axes, drawn):
        axes.plot(*zip(*pareto_front(list(points.values())), strict=True), color=_TEXT, linewidth=1, alpha=0.5)
        _mark(axes, comparison, points)
        axes.margins(0.15)
        axes.set_xlabel(f"mean of {names[0]} (right: better)")
        axes.set_ylabel(f"mean of {names[1]} (up: better)")
    return drawn[0]


def pareto_front(points: Sequence[tuple[float, ...]]) -> list[tuple[float, ...]]:
    """The points, in order, than which no other is at least as large everywhere and larger somewhere."""

    def dominates(point: tuple[float, ...], other: tuple[float, ...]) -> bool:
        return point != other and all(own >= others for own, others in zip(point, other, strict=True))

    return sorted(point for point in set(points) if not any(dominates(other, point) for other in points))


def preference_rates(comparison: Comparison) -> Drawing | None:
    """Preference rate of each system against the baseline, with its interval; None if there is none."""
    rates = {
        name: (summary["preference rate"], *summary["interval"])
        for name, summary in comparison.summaries().items()
        if summary["interval"] is not None
    }
    if not rates:
        return None
    title = f"Preference rate against {comparison.baseline}"
    with _drawing(title, 7.5, 1.1 + 0.4 * len(rates)) as (axes, drawn):
        for line, (name, (rate, low, high)) in enumerate(rates.items()):
            color, marker = _look(comparison, name)
            spread = [[max(0.0, rate - low)], [max(0.0, high - rate)]]
            axes.errorbar(rate, line, xerr=spread, fmt=marker, color=color, capsize=4, markersize=8)
        axes.axvline(0, color=_TEXT, linewidth=1)
        axes.set_yticks(range(len(rates)), list(rates))
        axes.set_ylim(len(rates) - 0.5, -0.5)
        axes.set_xlim(-1.05, 1.05)
        axes.set_xlabel(f"wins minus losses, with {100 * comparison.config['confidence']:g} % interval (right: better)")
    return drawn[0]


def accepted_indices(comparison: Comparison) -> Drawing | None:
    """How often each system's agent accepted the candidate at each index; None if no system has an agent."""
    shares = {
        name: bars
        for name, bars in ((name, _shares(comparison, name)) for name in comparison.answers)
        if bars is not None
    }
    if not shares:
        return None
    length = max(len(bars) for bars in shares.values()) - 1
    labels = [*map(str, range(length)), "fallback"]
    if length > _INDICES:
        labels[-2] = f"≥{_INDICES}"
    with _drawing("Index of the accepted candidate", 7.5, 3.2) as (axes, drawn):
        width = 0.8 / len(shares)
        for number, (name, bars) in enumerate(shares.items()):
            heights = np.concatenate([bars[:-1], np.zeros(length + 1 - len(bars)), bars[-1:]])
            centers = np.arange(length + 1) + (number - (len(shares) - 1) / 2) * width
            axes.bar(centers, heights, width, color=_look(comparison, name)[0], label=f" {name}")
        axes.set_xticks(range(length + 1), labels)
        axes.grid(visible=False, axis="x")
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("index in the candidate set, in order of examination")
        axes.set_ylabel("share of positions")
        axes.legend(loc="upper right")
    return drawn[0]


def _shares(comparison: Comparison, system: str) -> np.ndarray | None:
    """Shares of the positions that an agent decided, (bars,); None if there are none.

    The bars are the first indices one by one, all further indices together if there are any, and the fallbacks.
    """
    answers = comparison.answers[system]
    counts = np.zeros(max((len(answer.accepted_index) for answer in answers), default=0))
    for answer in answers:
        counts[: len(answer.accepted_index)] += answer.accepted_index
    further = [counts[_INDICES:].sum()] if len(counts) > _INDICES else []
    bars = np.array([*counts[:_INDICES], *further, sum(answer.fallbacks for answer in answers)])
    return bars / bars.sum() if bars.sum() else None


def _look(comparison: Comparison, system: str) -> tuple[str, str]:
    """A system's color and marker, the same in all figures."""
    number = list(comparison.answers).index(system)
    return _COLORS[number % len(_COLORS)], _MARKERS[number % len(_MARKERS)]


def _mark(axes: Axes, comparison: Comparison, points: Mapping[str, tuple[float, ...]]) -> None:
    """Draws the point of each system, with a legend beside the axes."""
    for name, point in points.items():
        color, marker = _look(comparison, name)
        # The space is for names that begin with an underscore: a legend would leave them out.
        axes.plot(*point, marker, color=color, markersize=9, label=f" {name}")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))


@contextmanager
def _drawing(title: str, width: float, height: float) -> Iterator[tuple[Axes, list[Drawing]]]:
    """Axes to draw on, width by height inches, and a list that holds the drawing after the context ends."""
    drawn: list[Drawing] = []
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure.add_subplot(), drawn
        drawn.append(Drawing(title, _svg(figure)))


def _svg(figure: Figure) -> str:
    stream = StringIO()
    no_metadata: Mapping[str, None] = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(stream, format="svg", metadata=no_metadata)
    svg = re.sub(r"^.*?(?=<svg)", "", stream.getvalue(), flags=re.DOTALL)
    # The style sheet would apply to the whole page, and the fixed size would not fit narrow pages.
    svg = re.sub(r"<defs>\s*<style.*?</defs>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r' (?:width|height)="[^"]*pt"', "", svg, count=2)
    return svg.replace(_TEXT, "currentColor")
