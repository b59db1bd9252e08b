"""Curves of reward against closeness to the plain model, for several accept thresholds, and against training passes."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

Results = Mapping[str, Mapping[str, float]]
_OFFSET = (6, 5)  # offset of a label from its data point, in typographic points


def draw_curve(seeds: Sequence[Results], file: Path) -> None:
    """Draws means over seeds, with standard deviations, and saves the picture.

    Args:
        seeds: Results of each seed; systems named `NAME, threshold X` form a line.
        file: Image file to write.
    """
    figure, axes = plt.subplots(figsize=(7.5, 5), layout="constrained")
    lines: dict[str, list[str]] = {}
    for system in seeds[0]:
        name, threshold, _ = system.partition(", threshold ")
        if threshold:
            lines.setdefault(name, []).append(system)
    for name, systems in lines.items():
        _draw(axes, seeds, systems, [system.rpartition(" ")[2] for system in systems], name)
    for system in seeds[0]:
        if system == "plain" or system.startswith("best-of"):
            _draw(axes, seeds, [system], [system], None)
    axes.set_xlabel("mean log-probability of the answers' tokens under the plain model (right: closer to it)")
    axes.set_ylabel("mean reward")
    axes.set_title(f"Accept thresholds on held-out topics, {len(seeds)} seeds", loc="left")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.08)
    axes.legend(frameon=False, loc="lower left")
    figure.savefig(file, dpi=120)
    plt.close(figure)


def _draw(
    axes: Axes, seeds: Sequence[Results], systems: Sequence[str], labels: Sequence[str], name: str | None
) -> None:
    points = [[[results[system][key] for results in seeds] for system in systems] for key in ("closeness", "reward")]
    (x, y), (spread_x, spread_y) = (
        [[measure(values) for values in axis] for axis in points] for measure in (statistics.fmean, _spread)
    )
    style: dict[str, Any] = {"color": "0.35", "marker": "s"} if name is None else {"marker": "o"}
    axes.errorbar(x, y, yerr=spread_y, xerr=spread_x, label=name, capsize=2, **style)
    for closeness, reward, label in zip(x, y, labels, strict=True):
        axes.annotate(label, (closeness, reward), xytext=_OFFSET, textcoords="offset points", fontsize=8)


def draw_learning(
    lines: Mapping[str, Sequence[Sequence[tuple[float, float]]]], levels: Mapping[str, float], file: Path
) -> None:
    """Draws reward against training passes, as means over seeds with standard deviations, and saves the picture.

    Args:
        lines: By way of training, the points (passes, reward) of each seed, equally many for every seed.
        levels: Rewards to compare with, by name.
        file: Image file to write.
    """
    figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    for name, seeds in lines.items():
        points = np.array(seeds)
        x, y = points.mean(0).T
        spread = points[..., 1].std(0, ddof=1) if len(points) > 1 else np.full_like(y, np.nan)
        axes.plot(x, y, marker="o", markersize=4, label=name)
        axes.fill_between(x, y - spread, y + spread, alpha=0.2)
    for name, level in levels.items():
        axes.axhline(level, color="0.5", linestyle="--", linewidth=1)
        axes.annotate(name, (1, level), (-4, 3), ("axes fraction", "data"), "offset points", ha="right", fontsize=9)
    axes.set_xlim(left=0)
    axes.set_xlabel("passes of the policy model during training, at most 32 rows each")
    axes.set_ylabel("mean reward on held-out topics")
    axes.set_title(f"Reward against training passes, {len(next(iter(lines.values())))} seeds", loc="left")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="center right")
    figure.savefig(file, dpi=120)
    plt.close(figure)


def _spread(values: Sequence[float]) -> float:
    """Standard deviation; NaN, which draws no bar, of a single value."""
    return statistics.stdev(values) if len(values) > 1 else float("nan")
