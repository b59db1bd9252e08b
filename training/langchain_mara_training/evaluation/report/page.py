"""Reports of comparisons: a page that needs no network, and the same tables in Markdown."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from numpy.typing import NDArray

from langchain_mara.tracing.trace import Trace
from langchain_mara.tracing.views import prompt_text, visible
from langchain_mara_training.evaluation.comparison import Answer, Comparison
from langchain_mara_training.evaluation.report.figures import accepted_indices, preference_rates, reward_against_cost
from langchain_mara_training.storage.atomic import write_atomically
from langchain_mara_training.storage.model_card import shown

WINS_SHOWN, LOSSES_SHOWN = 5, 10
_NOTHING = "-"


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
        note: Below it, what its columns mean.
        rows: By the name of each system its cells, by the name of each column.
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
        "facts": facts(comparison),
    }
    details = {
        "figures": [reward_against_cost(comparison), preference_rates(comparison), accepted_indices(comparison)],
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


def tables(comparison: Comparison) -> list[Table]:
    """What was compared, and what was found of it: quality, preference by each reward, texts and costs."""
    summaries, rewards, baseline = comparison.summaries(), comparison.reward_names, comparison.baseline
    rate = f"wins minus losses against {baseline}, over all prompts, with its {_confidence(comparison)} interval"
    found = [
        Table("Systems", "What differs between them.", _differing(comparison.config["systems"])),
        Table(
            "Quality",
            f"Preference rate: {rate}. Divergence: from {baseline}, nats per token.",
            {name: _quality(comparison, name, one) for name, one in summaries.items()},
        ),
        Table(
            "Texts and costs",
            "Distinct: share of different words, and of pairs of words, among all. Passes: of the policy model.",
            {name: _costs(one) for name, one in summaries.items()},
        ),
    ]
    if len(rewards) > 1:
        rates = {name: {one: _preference(comparison, name, one) for one in rewards} for name in summaries}
        found.insert(2, Table("Preference rate by each reward", f"Preference rate: {rate}.", rates))
    return found


def cases(comparison: Comparison, system: str) -> dict[str, list[Case]]:
    """A system's `wins` and `losses` against the baseline, the largest difference of reward first."""
    given, plain = comparison.answers[system], comparison.answers[comparison.baseline]
    own, other = comparison.rewards(system), comparison.rewards(comparison.baseline)

    def largest_first(better: NDArray[np.bool_]) -> list[Case]:
        places = np.flatnonzero(better)
        order = np.argsort(-np.abs(own[places] - other[places]), kind="stable")
        return [
            Case(prompt_text(comparison.prompts[i]), given[i], plain[i], float(own[i]), float(other[i]))
            for i in places[order].tolist()
        ]

    return {"wins": largest_first(own > other), "losses": largest_first(own < other)}


def facts(comparison: Comparison) -> dict[str, str]:
    """What holds for all systems of a comparison."""
    config = comparison.config
    descriptions = list(config["systems"].values())
    common = {
        name: value for name, value in descriptions[0].items() if all(one.get(name) == value for one in descriptions)
    }
    named = {
        "prompts": len(comparison.prompts),
        "rewards, with weights": config["rewards"],
        "harmful by": config.get("harmful"),
        "intervals": f"{_confidence(comparison)}, bootstrap over prompts",
        "seed": config["random_state"],
        "all systems": common,
        **config.get("facts", {}),
        "versions": config.get("versions"),
    }
    return {name: shown(value) for name, value in named.items() if value not in (None, {}, [])}


def _quality(comparison: Comparison, system: str, summary: Mapping[str, Any]) -> dict[str, str]:
    names, other = comparison.reward_names, comparison.baseline
    found = comparison.preference(system, other)
    harmful = summary["harmful share"]
    return {
        "mean reward": _number(summary["mean reward"]),
        **({f"mean {name}": _number(summary["rewards"][name]) for name in names} if len(names) > 1 else {}),
        "preference rate": _preference(comparison, system),
        "wins, draws, losses": _NOTHING if system == other else f"{found.wins}, {found.draws}, {found.losses}",
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
    """Of the systems' descriptions what is not the same for all."""
    names = list(dict.fromkeys(name for one in systems.values() for name in one))
    values = {name: [one.get(name) for one in systems.values()] for name in names}
    kept = [name for name, given in values.items() if any(one != given[0] for one in given)]
    return {
        system: {name.replace("_", " "): _NOTHING if one.get(name) is None else shown(one[name]) for name in kept}
        for system, one in systems.items()
    }


def _preference(comparison: Comparison, system: str, reward: str | None = None) -> str:
    found = comparison.preference(system, comparison.baseline, reward)
    if system == comparison.baseline or np.isnan(found.rate):
        return _NOTHING
    return f"{found.rate:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


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
    )
    environment.filters |= {"visible": visible, "markdown": markdown}
    return environment


def markdown(text: str) -> str:
    """Text in a cell of a Markdown table, that neither ends it nor is taken for HTML."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())
