"""`mara report`: a comparison as a page, with and without traces."""

import re
from pathlib import Path

import pytest
from command_line import mara, message_of, succeed, vowels
from langchain_mara_training import Decoding, compare
from langchain_mara_training.evaluation.comparison import Comparison

from langchain_mara import MaraLLM


@pytest.mark.slow
def test_report_of_a_comparison_with_traces(fitted: Path) -> None:
    asked = ["prompts.jsonl", "--agent", fitted, "--max-new-tokens", "6", "--device", "cpu"]
    succeed("evaluate", *asked, "--output", "comparison")
    found = Comparison.load("comparison")
    assert succeed("report", "comparison").split() == ["comparison/report.html", "comparison/report.md"]
    page = Path("comparison/report.html").read_text()
    assert f"{found.summaries()['MARA']['mean reward']:,.3f}" in page
    assert '<figure class="mara-trace">' not in page
    given = ["--agent", fitted, "--traces", "2", "--device", "cpu", "--title", "Mine"]
    assert succeed("report", "comparison", *given, "--output", "mine/page.html").split() == [
        "mine/page.html",
        "mine/page.md",
    ]
    assert Path("mine/page.html").read_text().count('<figure class="mara-trace">') == 2
    assert Path("mine/page.md").read_text().startswith("# Mine")


@pytest.mark.usefixtures("fitted")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", "nowhere"], "nowhere holds no comparison. Give a folder"),
        (
            ["report", "comparison", "--agent", "run", "--output", "pairs.jsonl/x.html"],
            "pairs.jsonl is a file. Give ano",
        ),
        (["report", "comparison", "--agent", "run", "--device", "cpu"], "No system .* this agent .*Give the agent of"),
    ],
)
def test_report_refuses_in_one_sentence(arguments: list[str], message: str) -> None:
    compare(
        [Decoding("plain", MaraLLM.demo(agent=None, device="cpu", max_new_tokens=2))],
        "prompts.jsonl",
        vowels,
        "comparison",
    )
    assert re.search(message, message_of(mara(*arguments)))
