"""Figures of a report, as SVG that takes the page's font and colours, in light and in dark."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import StringIO
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from langchain_mara_training.evaluation.comparison import Comparison

# Okabe and Ito's palette but for black and yellow, which vanish in dark and in light.
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
_MARKERS = "osD^vPX*<>"
_TEXT = "#010203"  # stands for the page's own colour
_INDICES = 10  # shown one by one; the rest is one bar
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
    """A figure in the page.

    Attributes:
        title: Says what is to be seen.
        svg: The picture, inert: matplotlib escapes what it writes.
    """

    title: str
    svg: str


def reward_against_cost(comparison: Comparison) -> Drawing | None:
    """Mean reward of each system over passes per answer; None where there is nothing to draw."""
    found = {name: (one["passes"], one["mean reward"]) for name, one in comparison.summaries().items()}
    points = {name: (cost, reward) for name, (cost, reward) in found.items() if cost and reward is not None}
    if not points:
        return None
    with _drawing("Reward against cost", 7.5, 3.8) as (axes, drawn):
        for name, (cost, reward) in points.items():
            colour, marker = _look(comparison, name)
            # A legend leaves out names that begin with an underscore.
            axes.plot(cost, reward, marker, color=colour, markersize=9, label=f" {name}")
        costs = [cost for cost, _ in points.values()]
        axes.set_xscale("log")
        # Wide enough that a tick is always in sight.
        axes.set_xlim(min(costs) / 1.7, max(costs) * 1.7)
        axes.xaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
        axes.margins(y=0.15)
        axes.set_xlabel("forward passes per answer (left: cheaper)")
        axes.set_ylabel("mean reward")
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return drawn[0]


def preference_rates(comparison: Comparison) -> Drawing | None:
    """Preference rate of each system against the baseline with its interval; None where there is none."""
    rates = {
        name: (one["preference rate"], *one["interval"])
        for name, one in comparison.summaries().items()
        if one["interval"] is not None
    }
    if not rates:
        return None
    title = f"Preference rate against {comparison.baseline}"
    with _drawing(title, 7.5, 1.1 + 0.4 * len(rates)) as (axes, drawn):
        for place, (name, (rate, low, high)) in enumerate(rates.items()):
            colour, marker = _look(comparison, name)
            spread = [[max(0.0, rate - low)], [max(0.0, high - rate)]]
            axes.errorbar(rate, place, xerr=spread, fmt=marker, color=colour, capsize=4, markersize=8)
        axes.axvline(0, color=_TEXT, linewidth=1)
        axes.set_yticks(range(len(rates)), list(rates))
        axes.set_ylim(len(rates) - 0.5, -0.5)
        axes.set_xlim(-1.05, 1.05)
        axes.set_xlabel(f"wins minus losses, with {100 * comparison.config['confidence']:g} % interval (right: better)")
    return drawn[0]


def accepted_indices(comparison: Comparison) -> Drawing | None:
    """How often candidates at each index were accepted, system by system; None where no agent was asked."""
    shares = {name: found for name in comparison.answers if (found := _shares(comparison, name)) is not None}
    if not shares:
        return None
    length = max(len(one) for one in shares.values()) - 1
    labels = [*map(str, range(length)), "fallback"]
    if length > _INDICES:
        labels[-2] = f"≥{_INDICES}"
    with _drawing("Index of the accepted candidate", 7.5, 3.2) as (axes, drawn):
        width = 0.8 / len(shares)
        for place, (name, given) in enumerate(shares.items()):
            heights = np.concatenate([given[:-1], np.zeros(length + 1 - len(given)), given[-1:]])
            at = np.arange(length + 1) + (place - (len(shares) - 1) / 2) * width
            axes.bar(at, heights, width, color=_look(comparison, name)[0], label=f" {name}")
        axes.set_xticks(range(length + 1), labels)
        axes.grid(visible=False, axis="x")
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("place in the candidate set, in order of examination")
        axes.set_ylabel("positions decided")
        axes.legend(loc="upper right")
    return drawn[0]


def _shares(comparison: Comparison, system: str) -> np.ndarray | None:
    """Of the positions an agent decided: shares of the first indices, of all others if there are, of fallbacks."""
    given = comparison.answers[system]
    counts = np.zeros(max(len(one.accepted_index) for one in given) if given else 0)
    for one in given:
        counts[: len(one.accepted_index)] += one.accepted_index
    rest = [counts[_INDICES:].sum()] if len(counts) > _INDICES else []
    both = np.array([*counts[:_INDICES], *rest, sum(one.fallbacks for one in given)])
    return both / both.sum() if both.sum() else None


def _look(comparison: Comparison, system: str) -> tuple[str, str]:
    """A system's colour and marker, the same in all figures."""
    place = list(comparison.answers).index(system)
    return _COLOURS[place % len(_COLOURS)], _MARKERS[place % len(_MARKERS)]


@contextmanager
def _drawing(title: str, width: float, height: float) -> Iterator[tuple[Axes, list[Drawing]]]:
    """Axes to draw on, of a size in inches, and where the drawing is found afterwards."""
    drawn: list[Drawing] = []
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure.add_subplot(), drawn
        drawn.append(Drawing(title, _svg(figure)))


def _svg(figure: Figure) -> str:
    stream = StringIO()
    nothing: Mapping[str, None] = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(stream, format="svg", metadata=nothing)
    svg = re.sub(r"^.*?(?=<svg)", "", stream.getvalue(), flags=re.DOTALL)
    # Its style sheet would hold for the whole page, and its size for narrow pages, too.
    svg = re.sub(r"<defs>\s*<style.*?</defs>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r' (?:width|height)="[^"]*pt"', "", svg, count=2)
    return svg.replace(_TEXT, "currentColor")
