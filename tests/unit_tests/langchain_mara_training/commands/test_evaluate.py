"""`mara evaluate`: what it prints, keeps and refuses."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from command_line import mara, message_of, succeed, table, vowels
from langchain_mara_training.evaluation.comparison import Comparison, compare
from langchain_mara_training.evaluation.systems import Decoding

from langchain_mara import MaraLLM


@pytest.fixture(scope="module")
def compared(demo_pairs: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of two systems on the first prompts."""
    folder = tmp_path_factory.mktemp("comparisons") / "comparison"
    llm = MaraLLM.demo(agent=None, device="cpu", max_new_tokens=2)
    longer = llm.model_copy(update={"max_new_tokens": 6})
    prompts = [{"prompt": pair["prompt"]} for pair in demo_pairs[-4:-2]]
    compare([Decoding("plain", llm), Decoding("twin", longer)], prompts, vowels, folder)
    return folder


@pytest.fixture
def kept(compared: Path) -> None:
    """A copy in the folder `comparison`."""
    shutil.copytree(compared, "comparison")


@pytest.mark.slow
def test_a_comparison_is_kept_where_it_is_wanted(fitted: Path) -> None:
    Path("harm_of_test_cli.py").write_text(
        "def lengthy(completions, **_): return [len(text) > 20 for text in completions]"
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


@pytest.mark.usefixtures("kept")
def test_a_kept_comparison_is_scored_again() -> None:
    Path("rewards_of_test_rescore.py").write_text(
        "def short(completions, **_): return [-float(len(text)) for text in completions]\n"
        "def again(completions, **_): raise AssertionError('asked again')\n"
    )
    spec = ["--reward", "rewards_of_test_rescore:short"]
    output = succeed("evaluate", "--rescore", "comparison", *spec, "--output", "new", "--report", "new.json")
    found, earlier = Comparison.load("new"), Comparison.load("comparison")
    assert "2 prompts, by short" in output
    texts = {name: [answer.completion for answer in own] for name, own in earlier.answers.items()}
    assert {name: [answer.completion for answer in own] for name, own in found.answers.items()} == texts
    assert found.rewards("plain").tolist() == [-len(text) for text in texts["plain"]]
    assert json.loads(Path("new.json").read_text())["config"]["rescore"] == str(Path("comparison").absolute())
    with_columns = json.loads(succeed("evaluate", "prompts.jsonl", "--limit", "2", "--rescore", "new", *spec, "--json"))
    assert with_columns["systems"]["plain"]["mean reward"] == found.summaries()["plain"]["mean reward"]
    wide = json.loads(succeed("evaluate", "--rescore", "new", *spec, "--tolerance", "1000", "--json"))
    assert wide["systems"]["twin"]["preference rate"] == 0
    assert wide["title"] == "2 prompts, by short"


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--rescore comparison", "Choose what scores the answers: --reward module:function"),
        ("--rescore nowhere --reward math:fsum", "nowhere holds no comparison. Give a folder"),
        (
            "--rescore comparison --reward a:b --agent run --top-k 3",
            "--agent, --top-k would have no effect with --resc",
        ),
        ("pairs.jsonl --rescore comparison --reward math:fsum", "There are 12 prompts, but the comparison answered 2."),
        ("pairs.jsonl --agent x --output pairs.jsonl", "pairs.jsonl is a file. Give a folder as --output."),
        ("pairs.jsonl --agent x --report comparison", "comparison is a folder. Give a file as --report."),
        ("pairs.jsonl --agent x --report pairs.jsonl/a/b.json", "pairs.jsonl is a file. Give another --report."),
        ("--rescore comparison --reward math:fsum --report comparison", "comparison is a folder. Give a file as --rep"),
    ],
)
def test_what_cannot_work_is_refused_before_the_work(
    arguments: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("langchain_mara_training.jobs.evaluate.load_llm", None)
    before = sorted(map(str, Path().rglob("*")))
    assert message in message_of(mara("evaluate", *arguments.split()))
    assert sorted(map(str, Path().rglob("*"))) == before


def test_an_agent_is_looked_at_before_rewards_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("langchain_mara_training.jobs.evaluate.reward_function", None)
    given = ["--agent", "./nowhere", "--reward", "beaver:some/model"]
    assert "There is no folder ./nowhere." in message_of(mara("evaluate", "prompts.jsonl", *given))


def test_a_dry_run_shows_prompts_and_writes_nothing(fitted: Path) -> None:
    given = ["--agent", fitted, "--output", "kept", "--report", "report.json", "--dry-run", "--device", "cpu"]
    output = succeed("evaluate", "prompts.jsonl", *given)
    prompt = json.loads(Path("prompts.jsonl").read_text().splitlines()[0])["prompt"]
    assert f"<|user|>{prompt}<|end|><|assistant|>" in output
    assert output.count(", prompt") == 3
    assert "4 rows. This was a dry run: nothing was computed or written." in output
    assert not Path("kept").exists()
    assert not Path("report.json").exists()


def test_a_run_without_agent_cannot_be_evaluated(labeled: Path) -> None:
    message = message_of(mara("evaluate", "prompts.jsonl", "--agent", labeled))
    assert re.search(r"run holds labels but no agent yet\. Fit one first: mara fit \S+run$", message)
