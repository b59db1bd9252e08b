"""Text of models, prompts and folders is only shown: it moves no cursor, sets no color, and becomes no markup."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from command_line import mara, message_of
from families import tiny_agent
from langchain_mara_training.commands import evaluate as evaluate_command
from langchain_mara_training.evaluation.comparison import Answer, Comparison
from langchain_mara_training.evaluation.report.page import write_report
from langchain_mara_training.jobs import evaluate
from langchain_mara_training.paper.render import PaperTable
from langchain_mara_training.paper.settings import TableSettings
from langchain_mara_training.storage.model_card import save_agent

from langchain_mara import MaraLLM
from langchain_mara.untrusted import markdown, printable

# Clears the screen, sets the title, overwrites the line, erases, rings, turns the direction of writing.
CONTROLS = "\x1b[2J\x1b]0;owned\x07\rgood\x08\x9b31m\u202egood\u2066\x00\x7f"
MARKUP = "[red]a[/b][link=https://evil.test]x[/link]"
LINKS = "![x](https://evil.test/p.png) [x](javascript:alert(1)) [x][y] <img src=x> `code`\n\n# Title | cell"
EVIL = CONTROLS + MARKUP + LINKS


def harmless(text: str) -> bool:
    """Whether a text has no characters that control a terminal or the direction of writing."""
    return not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)


def test_control_characters_become_symbols() -> None:
    assert printable("a\tb\nc") == "a\tb\nc"
    assert printable("é 你 ع 😀 \u200f") == "é 你 ع 😀 \u200f"
    assert printable("\x1b[2J\r\x08\x7f\x9b\u202e") == "\u241b[2J\u240d\u2408\u2421\u2426\u2426"
    assert harmless(printable(CONTROLS))


def test_text_becomes_no_markdown() -> None:
    assert markdown("a|b\\c\r\n# d") == "a\\|b\\\\c\u240d # d"
    assert markdown("![x](y) [a][b] <b> `c` [+0.1, 0.2]") == "![x]\\(y) [a]\\[b] &lt;b> \\`c\\` [+0.1, 0.2]"


def test_answers_do_not_control_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = SimpleNamespace(stream=lambda _: iter(EVIL))
    monkeypatch.setattr(MaraLLM, "demo", lambda **_: llm)
    result = mara("generate", "Hi")
    assert harmless(result.stdout)
    assert result.stdout == printable(EVIL) + "\n"


def test_errors_do_not_control_the_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    message = message_of(mara("report", "\x1b[2J\r[red]nowhere[/b]"))
    assert harmless(message)
    assert "\u241b[2J\u240d[red]nowhere[/b] holds no comparison" in message


def test_tables_do_not_control_the_terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    values = dict.fromkeys(evaluate_command._HEADERS)
    found = SimpleNamespace(title=f"by [red]a[/b] {CONTROLS}", systems={"[b]": values, CONTROLS: values})
    monkeypatch.setattr(evaluate, "evaluate", lambda *_: found)
    result = mara("evaluate", "prompts.jsonl", "--agent", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert harmless(result.stdout)
    assert "by [red]a[/b]" in result.stdout
    assert "│ [b] " in result.stdout


def hostile_comparison() -> Comparison:
    def answer(number: int, reward: float) -> Answer:
        return Answer(
            number=number, completion=EVIL, rewards={EVIL: reward}, harmful=None, tokens=9, answer_tokens=9, passes=1.5,
            seconds=0.25, divergence=0.5, accepted_index=[], fallbacks=0,
        )  # fmt: skip

    config: dict[str, Any] = {
        "systems": {"plain": {"model_id": EVIL, "a": EVIL}, f"other {EVIL}": {"model_id": EVIL, "a": "b"}},
        "rewards": {EVIL: 1.0}, "baseline": "plain", "random_state": 0, "confidence": 0.95, "command": f"mara {EVIL}",
        "facts": {EVIL: EVIL}, "versions": {EVIL: EVIL},
    }  # fmt: skip
    answers = {"plain": [answer(0, 0.0)], f"other {EVIL}": [answer(0, 1.0)]}
    return Comparison([EVIL], answers, "plain", config)


def test_reports_show_text_as_it_is(tmp_path: Path) -> None:
    page, text = (file.read_text() for file in write_report(hostile_comparison(), tmp_path, title=EVIL))
    assert harmless(page)
    assert harmless(text)
    assert "<img" not in page
    lines = text.splitlines()
    [command] = [number for number, line in enumerate(lines) if line.startswith("    mara ")]
    assert lines[command + 2].startswith("    # Title")
    shown = [line for line in lines if not line.startswith("    ")]
    assert not any(re.search(r"\]\(|\]\[|(?<!\\)`|<", line) for line in shown)
    assert [line for line in shown if line.startswith("#")] == [
        f"# {markdown(EVIL)}", *[f"## {title}" for title in ("Systems", "Quality", "Texts and costs")]
    ]  # fmt: skip


def test_model_cards_show_text_as_it_is(tmp_path: Path) -> None:
    save_agent(tiny_agent(), tmp_path / "agent", {"Labels": {"model": EVIL, EVIL: "x"}})
    card = (tmp_path / "agent" / "README.md").read_text()
    table = card[card.index("## Labels") :]
    assert harmless(table)
    assert table.splitlines()[4:] == [f"| model | {markdown(' '.join(EVIL.split()))} |", f"| {markdown(EVIL)} | x |"]


def test_tables_of_the_paper_show_text_as_it_is(tmp_path: Path) -> None:
    table = PaperTable("1", TableSettings.load(), {EVIL: 3}, [])
    text = table.write(tmp_path, f"mara {EVIL}")[1].read_text()
    assert harmless(text)
    assert not any(line.startswith("# Title") for line in text.splitlines())
    assert "https://evil.test/p.png)" in text
    assert not any(re.search(r"\]\(|<", line) for line in text.splitlines() if not line.startswith("    "))
