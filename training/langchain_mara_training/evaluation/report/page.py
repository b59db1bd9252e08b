"""Reports of comparisons: an HTML page that needs no network, and the same tables in Markdown."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from numpy.typing import NDArray

from langchain_mara.tracing.trace import Trace
from langchain_mara.tracing.views import prompt_text, visible
from langchain_mara.untrusted import markdown, printable
from langchain_mara_training.evaluation.comparison import Answer, Comparison
from langchain_mara_training.evaluation.report.figures import (
    accepted_indices,
    objectives,
    preference_rates,
    reward_against_cost,
)
from langchain_mara_training.storage.atomic import require_file, write_atomically
from langchain_mara_training.storage.model_card import shown

WINS_SHOWN, LOSSES_SHOWN = 5, 10
_NOTHING = "-"


class Case(NamedTuple):
    """A prompt that a system wins or loses against the baseline.

    Attributes:
        prompt: Text of the prompt.
        answer: Answer of the system.
        baseline: Answer of the baseline.
        reward: Reward of the system's answer.
        baseline_reward: Reward of the baseline's answer.
    """

    prompt: str
    answer: Answer
    baseline: Answer
    reward: float
    baseline_reward: float


class Table(NamedTuple):
    """A table with one row for each system.

    Attributes:
        title: Title above the table.
        note: Note below the table that explains its columns.
        rows: Cells by column name, by system name.
    """

    title: str
    note: str
    rows: dict[str, dict[str, str]]


def write_report(
    comparison: Comparison,
    output: str | Path,
    *,
    title: str | None = None,
    command: str | None = None,
    traces: Mapping[str, Sequence[Trace]] | None = None,
) -> list[Path]:
    """Writes a comparison's results for people to read: tables, figures, wins and losses, traces.

    The same arguments give the same bytes.

    Args:
        comparison: Comparison from `compare`, or from `Comparison.load`.
        output: Folder for `report.html` and `report.md`, or path of the HTML file; the Markdown file goes next to it.
        title: Title of the report.
        command: Command that repeats the comparison; by default the command that made it.
        traces: By system name, traces of answers from `MaraLLM.trace`.

    Returns:
        Paths of the HTML file and of the Markdown file.

    Raises:
        ModuleNotFoundError: If matplotlib is missing.
        TrainingError: If a file cannot be written.
    """
    page = page_file(output)
    systems = [name for name in comparison.answers if name != comparison.baseline]
    values = {
        "comparison": comparison,
        "title": title or f"{len(comparison.answers)} systems on {len(comparison.prompts)} prompts",
        "command": command or comparison.config.get("command"),
        "tables": tables(comparison),
        "facts": facts(comparison),
    }
    details = {
        "figures": [draw(comparison) for draw in (reward_against_cost, objectives, preference_rates, accepted_indices)],
        "shown": {"wins": WINS_SHOWN, "losses": LOSSES_SHOWN},
        "cases": {name: cases(comparison, name) for name in systems},
        "traces": traces or {},
    }
    written = {
        page: _environment().get_template("report.html.j2").render(values, **details),
        page.with_suffix(".md"): _environment().get_template("report.md.j2").render(values),
    }
    page.parent.mkdir(parents=True, exist_ok=True)
    for file, text in written.items():
        write_atomically(file, text.encode())
    return list(written)


def page_file(output: str | Path) -> Path:
    """The HTML file of a report.

    Args:
        output: Folder of the report, or path of the HTML file.

    Raises:
        TrainingError: If the file cannot be written.
    """
    page = Path(output).expanduser()
    page = page if page.suffix == ".html" else page / "report.html"
    require_file(page, "output")
    return page


def tables(comparison: Comparison) -> list[Table]:
    """The report's tables: systems, quality, preference rate by each reward, texts and costs."""
    summaries, rewards, baseline = comparison.summaries(), comparison.reward_names, comparison.baseline
    rate = (
        f"Preference rate: wins minus losses against {baseline}, divided by the number of prompts, with its "
        f"{_confidence(comparison)} interval."
    )
    report_tables = [
        Table("Systems", "Settings in which the systems differ.", _differing(comparison.config["systems"])),
        Table(
            "Quality",
            f"{rate} Divergence: from {baseline}, in nats per token.",
            {name: _quality(comparison, name, summary) for name, summary in summaries.items()},
        ),
        Table(
            "Texts and costs",
            "Distinct-1 and distinct-2: share of distinct words and of distinct pairs of words. "
            "Passes: passes of the policy model.",
            {name: _costs(summary) for name, summary in summaries.items()},
        ),
    ]
    if len(rewards) > 1:
        rates = {name: {reward: _preference(comparison, name, reward) for reward in rewards} for name in summaries}
        report_tables.insert(2, Table("Preference rate by each reward", rate, rates))
    return report_tables


def cases(comparison: Comparison, system: str) -> dict[str, list[Case]]:
    """A system's `wins` and `losses` against the baseline, the largest difference in reward first."""
    answers, baseline_answers = comparison.answers[system], comparison.answers[comparison.baseline]
    rewards, baseline_rewards = comparison.rewards(system), comparison.rewards(comparison.baseline)
    results = comparison.outcomes(system, comparison.baseline)

    def largest_first(selected: NDArray[np.bool_]) -> list[Case]:
        numbers = np.flatnonzero(selected)
        order = np.argsort(-np.abs(rewards[numbers] - baseline_rewards[numbers]), kind="stable")
        return [
            Case(
                prompt_text(comparison.prompts[i]),
                answers[i],
                baseline_answers[i],
                float(rewards[i]),
                float(baseline_rewards[i]),
            )
            for i in numbers[order].tolist()
        ]

    return {
        "wins": largest_first(results > 0),
        "losses": largest_first(results < 0),
    }


def facts(comparison: Comparison) -> dict[str, str]:
    """Settings that all systems of a comparison share, as text by name."""
    config = comparison.config
    descriptions = list(config["systems"].values())
    common = {
        name: value
        for name, value in descriptions[0].items()
        if all(description.get(name) == value for description in descriptions)
    }
    values = {
        "prompts": len(comparison.prompts),
        "rewards, with weights": config["rewards"],
        "harmful by": config.get("harmful"),
        "intervals": f"{_confidence(comparison)}, bootstrap over prompts",
        "draws": f"equal texts, and rewards that differ by at most {comparison.tolerance():.2g}",
        "seed": config["random_state"],
        "all systems": common,
        **config.get("facts", {}),
        "versions": config.get("versions"),
    }
    return {name: shown(value) for name, value in values.items() if value not in (None, {}, [])}


def _quality(comparison: Comparison, system: str, summary: Mapping[str, Any]) -> dict[str, str]:
    names, baseline = comparison.reward_names, comparison.baseline
    preference = comparison.preference(system, baseline)
    counts = f"{preference.wins}, {preference.draws}, {preference.losses}"
    harmful = summary["harmful share"]
    return {
        "mean reward": _number(summary["mean reward"]),
        **({f"mean {name}": _number(summary["rewards"][name]) for name in names} if len(names) > 1 else {}),
        "preference rate": _preference(comparison, system),
        "wins, draws, losses": _NOTHING if system == baseline else counts,
        "harmful": _NOTHING if harmful is None else f"{100 * harmful:.1f} %",
        "divergence": _number(summary["divergence"]),
    }


def _costs(summary: Mapping[str, Any]) -> dict[str, str]:
    return {
        "tokens/answer": _number(summary["length"], 1),
        "distinct-1": _number(summary["distinct-1"]),
        "distinct-2": _number(summary["distinct-2"]),
        "tokens/s": _number(summary["tokens/s"], 0),
        "passes/token": _number(summary["passes/token"]),
        "passes/answer": _number(summary["passes"], 2),
        "seconds": _number(summary["seconds"], 1),
    }


def _differing(systems: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """The values in which the systems' descriptions differ, as text by name, by system."""
    names = list(dict.fromkeys(name for description in systems.values() for name in description))
    values = {name: [description.get(name) for description in systems.values()] for name in names}
    kept = [name for name, column in values.items() if any(value != column[0] for value in column)]
    return {
        system: {
            name.replace("_", " "): _NOTHING if description.get(name) is None else shown(description[name])
            for name in kept
        }
        for system, description in systems.items()
    }


def _preference(comparison: Comparison, system: str, reward: str | None = None) -> str:
    preference = comparison.preference(system, comparison.baseline, reward)
    if system == comparison.baseline or np.isnan(preference.rate):
        return _NOTHING
    return f"{preference.rate:+.3f} [{preference.low:+.3f}, {preference.high:+.3f}]"


def _confidence(comparison: Comparison) -> str:
    return f"{100 * comparison.config['confidence']:g} %"


def _number(value: float | None, digits: int = 3) -> str:
    return _NOTHING if value is None else f"{value:,.{digits}f}"


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("langchain_mara_training.evaluation.report", "."),
        autoescape=jinja2.select_autoescape(["html.j2"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_finalize,
    )
    environment.filters |= {"visible": visible, "markdown": markdown, "indented": _indented}
    return environment


def _indented(text: str) -> str:
    """Text whose every line stays in an indented block of code."""
    return "\n    ".join(printable(text).splitlines())


def _finalize(value: Any) -> Any:
    """What a template prints, without characters that control a browser or a terminal."""
    return printable(value) if isinstance(value, str) else value
