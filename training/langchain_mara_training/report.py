"""Reports of comparisons: a page that needs no network, and the same tables in Markdown."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np

from langchain_mara.trace import Trace, prompt_text, visible
from langchain_mara_training.cards import shown
from langchain_mara_training.comparison import Answer, Comparison
from langchain_mara_training.files import write_atomically
from langchain_mara_training.report_figures import accepted_indices, preference_rates, reward_against_cost

WINS_SHOWN, LOSSES_SHOWN = 5, 10
_NOTHING = "–"


class Case(NamedTuple):
    """A prompt whose two answers differ in reward.

    Attributes:
        prompt: As text.
        answer: The system's.
        baseline: The baseline's.
        reward: Of the system's answer.
        baseline_reward: Of the baseline's.
    """

    prompt: str
    answer: Answer
    baseline: Answer
    reward: float
    baseline_reward: float


class Table(NamedTuple):
    """A table of systems.

    Attributes:
        title: Above it.
        columns: Names of the columns behind the system's.
        rows: For each system its name and cells.
    """

    title: str
    columns: list[str]
    rows: dict[str, list[str]]


def write_report(
    comparison: Comparison,
    output: str | Path,
    *,
    title: str | None = None,
    command: str | None = None,
    traces: Mapping[str, Sequence[Trace]] | None = None,
) -> list[Path]:
    """Writes what a comparison found, for people: tables, figures, wins and losses, traces.

    The same arguments give the same bytes.

    Args:
        comparison: What `compare` returned, or `Comparison.load` of its folder.
        output: A folder, for `report.html` and `report.md`, or the name of the HTML file, with the Markdown beside it.
        title: Of the report.
        command: Repeats the comparison; by default the one it was made by.
        traces: By the name of a system some of its answers, as `MaraLLM.trace` gives them.

    Returns:
        The HTML file and the Markdown file.

    Raises:
        ModuleNotFoundError: If matplotlib is missing.
    """
    page = Path(output).expanduser()
    page = page if page.suffix == ".html" else page / "report.html"
    systems = [name for name in comparison.answers if name != comparison.baseline]
    values = {
        "comparison": comparison,
        "title": title or f"{len(comparison.answers)} systems on {len(comparison.prompts)} prompts",
        "command": command or comparison.config.get("command"),
        "tables": tables(comparison),
        "confidence": f"{comparison.config['confidence']:.0%}",
    }
    details = {
        "figures": [reward_against_cost(comparison), preference_rates(comparison), accepted_indices(comparison)],
        "cases": {name: cases(comparison, name) for name in systems},
        "traces": traces or {},
    }
    written = {
        page: _environment(autoescape=True).get_template("report.html.j2").render(values, **details),
        page.with_suffix(".md"): _environment(autoescape=False).get_template("report.md.j2").render(values),
    }
    page.parent.mkdir(parents=True, exist_ok=True)
    for file, text in written.items():
        write_atomically(file, text.encode())
    return list(written)


def tables(comparison: Comparison) -> list[Table]:
    """A comparison's figures in words and numbers: quality, preference by each reward, texts and costs."""
    summaries = comparison.summaries()
    quality: dict[str, Callable[[str], str]] = {"mean reward": lambda name: _number(summaries[name]["mean reward"])}
    if len(comparison.reward_names) > 1:
        for reward in comparison.reward_names:
            quality[f"mean {reward}"] = lambda name, reward=reward: _number(summaries[name]["rewards"][reward])
    quality |= {
        f"preference rate against {comparison.baseline}": partial(_preference, comparison),
        "wins / draws / losses": partial(_counts, comparison),
        "harmful": lambda name: _share(summaries[name]["harmful share"]),
        "divergence, nats per token": lambda name: _number(summaries[name]["divergence"]),
    }
    costs: dict[str, Callable[[str], str]] = {
        "tokens per answer": lambda name: _number(summaries[name]["length"], 1),
        "distinct-1": lambda name: _number(summaries[name]["distinct-1"]),
        "distinct-2": lambda name: _number(summaries[name]["distinct-2"]),
        "tokens/s": lambda name: _number(summaries[name]["tokens/s"], 1),
        "passes per token": lambda name: _number(summaries[name]["passes/token"]),
        "passes per answer": lambda name: _number(summaries[name]["passes"], 2),
        "seconds": lambda name: _number(summaries[name]["seconds"], 1),
    }
    found = [_table("Quality", quality, list(summaries)), _table("Texts and costs", costs, list(summaries))]
    if len(comparison.reward_names) > 1:
        by_reward = {name: partial(_preference, comparison, reward=name) for name in comparison.reward_names}
        found.insert(1, _table(f"Preference rate against {comparison.baseline} by each reward", by_reward, list(summaries)))
    return found


def cases(comparison: Comparison, system: str) -> dict[str, list[Case]]:
    """A system's `wins` and `losses` against the baseline, the largest difference of reward first."""
    own, other = comparison.rewards(system), comparison.rewards(comparison.baseline)

    def ordered(better: Any, gain: Any) -> list[Case]:
        places = np.flatnonzero(better)
        return [_case(comparison, system, int(place)) for place in places[np.argsort(-gain[places], kind="stable")]]

    with np.errstate(invalid="ignore"):
        return {"wins": ordered(own > other, own - other), "losses": ordered(own < other, other - own)}
