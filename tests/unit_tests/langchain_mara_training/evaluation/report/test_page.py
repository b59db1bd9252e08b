"""Reports say what the comparison found, number by number, and load and run nothing."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from langchain_mara_training.evaluation.comparison import Answer, Comparison
from langchain_mara_training.evaluation.report import page as report
from langchain_mara_training.evaluation.report.figures import (
    accepted_indices,
    objectives,
    pareto_front,
    preference_rates,
    reward_against_cost,
)
from langchain_mara_training.evaluation.report.page import cases, facts, markdown, write_report

from langchain_mara import MaraLLM

HOSTILE = "_<b>a|b</b> $x$"
VOID = {"meta", "br", "path", "use"}
COLUMNS = {
    "mean reward": "mean reward", "divergence": "divergence", "tokens/answer": "length", "distinct-1": "distinct-1",
    "distinct-2": "distinct-2", "tokens/s": "tokens/s", "passes/token": "passes/token", "passes/answer": "passes",
    "seconds": "seconds",
}  # fmt: skip


class Page(HTMLParser):
    """Reads a page: every element closed where it belongs, its tables by their titles, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.text = self.title = ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)
        if tag == "h2":
            self.title = ""
        if tag == "table":
            self.tables[self.title] = []
        if tag == "tr":
            self.tables[self.title].append([])
        if tag in ("th", "td"):
            self.tables[self.title][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if "h2" in self.open:
            self.title += data
        if self.open and self.open[-1] in ("th", "td"):
            self.tables[self.title][-1][-1] += data


def answer(number: int, text: str, good: float | None, short: float | None, **changes: Any) -> Answer:
    values = {
        "number": number, "completion": text, "rewards": {"good": good, "short": short}, "harmful": None, "tokens": 9,
        "answer_tokens": 9, "passes": 1.5, "seconds": 0.25, "divergence": 0.5, "accepted_index": [], "fallbacks": 0,
    }  # fmt: skip
    return Answer(**{**values, **changes})


@pytest.fixture
def comparison() -> Comparison:
    """Three systems on four prompts: of the second two wins, a draw and a loss against the first."""
    decided: dict[str, Any] = {"accepted_index": [5, 2, *[0] * 10, 1], "fallbacks": 2, "passes": 3.0}
    answers = {
        "plain": [
            answer(0, "So do it.", 1.0, 0.0, harmful=True),
            answer(1, "No", 2.0, 0.5, harmful=False),
            answer(2, "Perhaps not", 3.0, 0.0, harmful=False),
            answer(3, "Maybe", 4.0, 0.0, harmful=False),
        ],
        HOSTILE: [
            answer(0, "Rather\nleave it <script>alert(1)</script>", 2.0, 0.0, harmful=False, **decided),
            answer(1, "No", 2.0, 0.5, harmful=False, **decided),
            answer(2, "Please do not", 9.0, 0.5, harmful=False, **decided),
            answer(3, "Never | ever", 3.5, 0.0, harmful=False, **decided),
        ],
        "unscored": [answer(i, "", None, None, divergence=None, tokens=0, answer_tokens=0) for i in range(4)],
    }
    config = {
        "systems": {
            "plain": {"kind": "decoding", "model_id": "/home/me/models/tiny", "agent": None, "top_k": 40},
            HOSTILE: {"kind": "decoding", "model_id": "/home/me/models/tiny", "agent": "abc", "top_k": 40},
            "unscored": {"kind": "best-of-n", "model_id": "/home/me/models/tiny", "agent": None, "top_k": 40, "n": 2},
        },
        "rewards": {"good": 1.0, "short": 2.0},
        "harmful": "judge",
        "confidence": 0.9,
        "random_state": 7,
        "facts": {"max_new_tokens": 24},
        "versions": {"torch": "1.2.3"},
        "command": "mara evaluate prompts.jsonl --agent 'a & b'",
    }
    return Comparison(["How?", "Who?", [{"role": "user", "content": "<i>When?</i>"}], "Why?"], answers, "plain", config)


def page_of(comparison: Comparison, folder: Path, **options: Any) -> Page:
    return Page(write_report(comparison, folder, **options)[0].read_text(encoding="utf-8"))


def numbers(cell: str) -> list[float]:
    return [float(number.replace(",", "")) for number in re.findall(r"[-+]?[\d,]*\.?\d+", cell)]


def by_name(rows: list[list[str]]) -> dict[str, dict[str, str]]:
    """Cells of a table by system and column."""
    return {name: dict(zip(rows[0][1:], cells, strict=True)) for name, *cells in rows[1:]}


def read_markdown(text: str) -> dict[str, list[list[str]]]:
    """Tables by title; each well formed."""
    tables = {}
    for section in text.split("\n## ")[1:]:
        title, _, body = section.partition("\n")
        lines = [line for line in body.splitlines() if line.startswith("|")]
        rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
        assert len({len(row) for row in rows}) == 1
        assert all(re.fullmatch(r"-+:?", cell) for cell in rows[1])
        tables[title] = [rows[0], *rows[2:]]
    return tables


def test_all_numbers_are_those_of_the_comparison(comparison: Comparison, tmp_path: Path) -> None:
    tables = page_of(comparison, tmp_path).tables
    quality, costs = by_name(tables["Quality"]), by_name(tables["Texts and costs"])
    assert list(quality) == list(costs) == list(comparison.answers)
    for name, summary in comparison.summaries().items():
        cells = quality[name] | costs[name]
        for column, key in COLUMNS.items():
            expected = [] if summary[key] is None else [pytest.approx(summary[key], abs=0.06, rel=0.01)]
            assert numbers(cells[column].removesuffix("-")) == expected, (name, column)
        for reward, mean in summary["rewards"].items():
            assert numbers(cells[f"mean {reward}"].removesuffix("-")) == ([] if mean is None else [mean])
        share = summary["harmful share"]
        assert cells["harmful"] == ("-" if share is None else f"{100 * share:.1f} %")
    rate = comparison.preference(HOSTILE, "plain")
    assert (rate.wins, rate.draws, rate.losses, rate.rate) == (2, 1, 1, 0.25)
    assert quality[HOSTILE]["wins, draws, losses"] == "2, 1, 1"
    assert numbers(quality[HOSTILE]["preference rate"]) == pytest.approx([rate.rate, rate.low, rate.high], abs=1e-3)
    assert quality["plain"]["preference rate"] == quality["unscored"]["preference rate"] == "-"
    short = comparison.preference(HOSTILE, "plain", "short")
    by_reward = by_name(tables["Preference rate by each reward"])[HOSTILE]
    assert numbers(by_reward["short"]) == pytest.approx([short.rate, short.low, short.high], abs=1e-3)


def test_markdown_holds_the_same_tables(comparison: Comparison, tmp_path: Path) -> None:
    page, text = write_report(comparison, tmp_path)
    tables = Page(page.read_text()).tables
    in_markdown = read_markdown(text.read_text())
    assert (
        list(in_markdown) == list(tables) == ["Systems", "Quality", "Preference rate by each reward", "Texts and costs"]
    )
    assert in_markdown == {title: [[markdown(cell) for cell in row] for row in rows] for title, rows in tables.items()}
    assert in_markdown["Systems"][2][0] == r"_&lt;b>a\|b&lt;/b> $x$"
    assert "<b>" not in text.read_text()


def test_what_differs_and_what_does_not(comparison: Comparison, tmp_path: Path) -> None:
    page = page_of(comparison, tmp_path)
    assert page.tables["Systems"] == [
        ["system", "kind", "agent", "n"],
        ["plain", "decoding", "-", "-"],
        [HOSTILE, "decoding", "abc", "-"],
        ["unscored", "best-of-n", "-", "2"],
    ]
    shared = facts(comparison)
    assert shared["all systems"] == "model id tiny, top k 40"
    assert shared["rewards, with weights"] == "good 1, short 2"
    assert shared["intervals"] == "90 %, bootstrap over prompts"
    assert all(name in page.text and value in page.text for name, value in shared.items())
    assert "/home/me" not in page.text


def test_wins_and_losses_stand_side_by_side_the_largest_first(comparison: Comparison, tmp_path: Path) -> None:
    by_outcome = cases(comparison, HOSTILE)
    assert [(case.prompt, case.reward, case.baseline_reward) for case in by_outcome["wins"]] == [
        ("user: <i>When?</i>", 10.0, 3.0),
        ("How?", 2.0, 1.0),
    ]
    assert [case.answer.completion for case in by_outcome["losses"]] == ["Never | ever"]
    assert cases(comparison, "unscored") == {"wins": [], "losses": []}
    text = page_of(comparison, tmp_path).text
    order = [
        "Wins: all 2",
        "<i>When?</i>",
        "Please do not",
        "Perhaps not",
        "Rather",
        "So do it.",
        "Losses: all 1",
        "Never | ever",
    ]
    places = [text.index(words) for words in order]
    assert places == sorted(places)
    assert text.count("harmful\n") >= 1
    assert "No wins" in text


def test_only_the_largest_are_shown(comparison: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "WINS_SHOWN", 1)
    text = page_of(comparison, tmp_path).text
    assert "Wins: the 1 largest of 2" in text
    assert "Please do not" in text
    assert "So do it." not in text


def test_nothing_is_loaded_or_run(comparison: Comparison, tmp_path: Path, demo_llm: MaraLLM) -> None:
    traces = {HOSTILE: demo_llm.trace(["<script>"], max_new_tokens=3)}
    page = page_of(comparison, tmp_path, title="<script>x</script>", command="<script>y", traces=traces)
    assert not page.tags & {"script", "b", "i", "link", "img", "iframe", "object", "base"}
    assert "<script>alert(1)</script>" in page.text
    assert "<script>x</script>" in page.text
    named = dict(page.attributes)
    assert not [name for name in named if name.startswith("on") or name in ("src", "srcset", "action", "data")]
    links = [value or "" for name, value in page.attributes if name.endswith("href")]
    assert all(link.startswith("#") for link in links)
    html = (tmp_path / "report.html").read_text()
    # What is left are the names of XML's spaces.
    assert set(re.findall(r"https?://[^\"' )]*", html)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert "@import" not in html
    assert set(re.findall(r"url\((.)", html)) <= {"#"}


@pytest.mark.slow
def test_the_command_is_the_comparisons_or_the_one_given(comparison: Comparison, tmp_path: Path) -> None:
    assert "mara evaluate prompts.jsonl --agent 'a & b'" in page_of(comparison, tmp_path).text
    assert "    mara evaluate prompts.jsonl --agent 'a & b'\n" in (tmp_path / "report.md").read_text()
    page = page_of(comparison, tmp_path, title="Mine", command="make report")
    assert "make report" in page.text
    assert "mara evaluate" not in page.text
    assert (tmp_path / "report.md").read_text().startswith("# Mine\n\nCreated with\n\n    make report\n")


def test_traces_are_those_given(comparison: Comparison, tmp_path: Path, demo_llm: MaraLLM) -> None:
    [trace] = demo_llm.trace(["How do I boil an egg?"], max_new_tokens=3)
    html = write_report(comparison, tmp_path, traces={HOSTILE: [trace], "plain": []})[0].read_text()
    assert trace.to_html() in html
    assert html.count('<figure class="mara-trace">') == 1
    text = Page(html).text
    assert f"Decisions of the agent of {HOSTILE}" in text
    assert "Decisions of the agent of plain" not in text


def test_the_same_comparison_gives_the_same_bytes(comparison: Comparison, tmp_path: Path) -> None:
    written = [[file.read_bytes() for file in write_report(comparison, tmp_path / name)] for name in "ab"]
    assert written[0] == written[1]


def test_output_is_a_folder_or_a_page(comparison: Comparison, tmp_path: Path) -> None:
    assert write_report(comparison, tmp_path / "new") == [
        tmp_path / "new" / name for name in ("report.html", "report.md")
    ]
    assert write_report(comparison, tmp_path / "x.html") == [tmp_path / "x.html", tmp_path / "x.md"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["new", "x.html", "x.md"]


def texts(svg: str) -> list[str]:
    return [
        "".join(element.itertext()).strip() for element in ET.fromstring(svg).iter() if element.tag.endswith("text")
    ]


def test_figures_draw_every_system(comparison: Comparison) -> None:
    cost, rates, indices = reward_against_cost(comparison), preference_rates(comparison), accepted_indices(comparison)
    assert cost
    assert rates
    assert indices
    assert {"plain", HOSTILE} <= set(texts(cost.svg))
    assert HOSTILE in texts(rates.svg)
    assert {"0", "1", "9", "≥10", "fallback", HOSTILE} <= set(texts(indices.svg))
    assert "unscored" not in texts(cost.svg) + texts(rates.svg) + texts(indices.svg)
    for drawing in (cost, rates, indices):
        assert "currentColor" in drawing.svg
        assert "#010203" not in drawing.svg
        assert "<style" not in drawing.svg


def test_two_rewards_make_a_plane_with_its_front(comparison: Comparison) -> None:
    drawing = objectives(comparison)
    assert drawing
    assert {"plain", HOSTILE, "mean of good (right: better)", "mean of short (up: better)"} <= set(texts(drawing.svg))
    one = replace(comparison, config={**comparison.config, "rewards": {"good": 1.0}})
    assert objectives(one) is None


def test_the_front_holds_what_nothing_beats() -> None:
    points = [(0.0, 3.0), (1.0, 2.0), (1.0, 1.0), (2.0, 2.0), (3.0, 0.0), (3.0, 0.0), (-1.0, 3.0)]
    assert pareto_front(points) == [(0.0, 3.0), (2.0, 2.0), (3.0, 0.0)]


def test_a_figure_without_anything_to_show_is_left_out(comparison: Comparison, tmp_path: Path) -> None:
    alone = Comparison(comparison.prompts, {"plain": comparison.answers["unscored"]}, "plain", comparison.config)
    drawn = [draw(alone) for draw in (reward_against_cost, objectives, preference_rates, accepted_indices)]
    assert drawn == [None] * 4
    assert "svg" not in page_of(alone, tmp_path).tags


def test_shares_of_indices_are_those_of_the_decisions(comparison: Comparison) -> None:
    from langchain_mara_training.evaluation.report.figures import _shares  # noqa: PLC0415

    # Of each of four answers: five and two at the first indices, one at the twelfth, two fallbacks.
    shares = _shares(comparison, HOSTILE)
    assert shares is not None
    assert shares.tolist() == pytest.approx([0.5, 0.2, *[0] * 8, 0.1, 0.2])
    assert _shares(comparison, "plain") is None
