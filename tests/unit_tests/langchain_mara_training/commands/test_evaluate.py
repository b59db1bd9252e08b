"""`mara evaluate`: what it prints, keeps and refuses."""

import json
import re
from pathlib import Path

import pytest
from command_line import mara, message_of, succeed, table
from langchain_mara_training.evaluation.comparison import Comparison


@pytest.mark.slow
def test_a_comparison_is_kept_where_it_is_wanted(fitted: Path) -> None:
    Path("harm_of_test_cli.py").write_text(
        "def lengthy(completions, **_): return [len(one) > 20 for one in completions]"
    )
    given = ["--agent", fitted, "--harmful", "harm_of_test_cli:lengthy", "--max-new-tokens", "6", "--output", "kept"]
    output = succeed("evaluate", "prompts.jsonl", *given, "--device", "cpu")
    kept = Comparison.load("kept")
    assert kept.config["harmful"] == "lengthy"
    for name, values in kept.summaries().items():
        assert table(output)[name][3] == f"{values['harmful share']:.3f}"
    assert "harmful" in output
    assert succeed("evaluate", "prompts.jsonl", *given, "--device", "cpu") == output
    other = message_of(mara("evaluate", "prompts.jsonl", *given, "--threshold", "0.7"))
    assert "kept holds another comparison; different: systems.MARA.accept_threshold (0.5 there, 0.7 now)." in other


def test_what_was_not_scored_is_shown_as_nothing(fitted: Path) -> None:
    Path("silent_rewards_of_test_cli.py").write_text("def nothing(completions, **_): return [None] * len(completions)")
    given = ["--agent", fitted, "--reward", "silent_rewards_of_test_cli:nothing", "--max-new-tokens", "2"]
    output = succeed("evaluate", "prompts.jsonl", *given, "--limit", "1", "--report", "report.json")
    assert table(output)["MARA"][:2] == ["-", "-"]
    assert json.loads(Path("report.json").read_text())["systems"]["MARA"]["mean reward"] is None


def test_a_run_without_agent_cannot_be_evaluated(labeled: Path) -> None:
    message = message_of(mara("evaluate", "prompts.jsonl", "--agent", labeled))
    assert re.search(r"run holds labels but no agent yet\. Fit one first: mara fit \S+run$", message)
