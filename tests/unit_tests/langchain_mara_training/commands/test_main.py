"""`mara label`, `fit`, `rl` and `evaluate`: a run from pairs to a comparison, and every error one sentence."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import COMMANDS, mara, message_of, succeed, table
from langchain_mara_training import run_folder

from langchain_mara import MaraAgent


@pytest.mark.slow
def test_from_pairs_to_a_comparison(demo_pairs: list[dict[str, Any]]) -> None:
    labels = table(succeed("label", "pairs.jsonl", "--output", "run", "--all-tokens", "--device", "cpu"))
    found = run_folder.read_labels("run")
    assert labels["labels"] == [f"{len(found):,}"]
    assert labels["accept share"] == [f"{found.y.mean():.3f}"]
    assert labels["groups"] == [str(len({pair["prompt"] for pair in demo_pairs[:12]}))]
    fit = table(succeed("fit", "run", "--width", "8", "--epochs", "2", "--device", "cpu"))
    assert int(fit["training labels"][0]) + int(fit["validation labels"][0]) == len(found)
    assert fit["epochs"] == ["2"]
    assert MaraAgent.from_pretrained("run/agent").width == 8
    given = ["--agent", "run", "--max-new-tokens", "6", "--best-of", "2", "--report", "report.json", "--device", "cpu"]
    output = succeed("evaluate", "prompts.jsonl", *given)
    report = json.loads(Path("report.json").read_text())
    assert "4 prompts, by PreferenceReward" in output
    systems = table(output)
    for name in ("plain", "MARA", "best-of-2"):
        reward, rate = report["systems"][name]["mean reward"], report["systems"][name]["preference rate"]
        assert systems[name][:2] == [f"{reward:.3f}", "-" if name == "plain" else f"{rate:.3f}"]
    low, high = report["systems"]["MARA"]["interval"]
    assert (systems["plain"][2], systems["MARA"][2]) == ("-", f"{low:.2f}…{high:.2f}")
    assert "harmful" not in output
    assert [answer["prompt"] for answer in report["answers"]] == [pair["prompt"] for pair in demo_pairs[-4:]]
    assert {item.name for item in Path("run").iterdir()} == {
        ".lock", "agent", "checkpoints", "config.json", "features", "log.jsonl", "versions.json",
    }  # fmt: skip


def test_commands_called_again_give_the_same(fitted: Path) -> None:
    files = [file for file in fitted.rglob("*") if file.is_file() and file.name != "log.jsonl"]
    before = [file.read_bytes() for file in files]
    again = table(succeed("label", "pairs.jsonl", "--output", "run", "--all-tokens", "--device", "cpu"))
    assert again["labels/s"] == ["-"]
    succeed("fit", "run", "--width", "8", "--epochs", "2", "--device", "cpu")
    assert [file.read_bytes() for file in files] == before


def test_other_options_are_refused(fitted: Path) -> None:
    label = mara("label", "pairs.jsonl", "--output", fitted, "--all-tokens", "--top-k", "9")
    assert message_of(label) == (
        "In run, mara label began with other options: top_k (40 there, 9 now). "
        "Give another --output, or the options it began with."
    )
    fit = mara("fit", fitted, "--width", "8", "--epochs", "3")
    assert "mara fit began with other options: epochs (2 there, 3 now)." in message_of(fit)


def test_rewards_of_the_current_folder() -> None:
    reward = "def short(completions, **_):\n    return [-float(len(one)) for one in completions]\n"
    Path("rewards_of_test_cli.py").write_text(reward)
    given = ["--reward", "rewards_of_test_cli:short", "--max-new-tokens", "6", "--device", "cpu"]
    few = ["--positions", "1", "--candidates", "3", "--top-k", "6"]
    succeed("label", "prompts.jsonl", "--output", "run", "--labeler", "rollout", *given, "--reward-weight", "0.5", *few)
    config = run_folder.read_config("run")["label"]
    assert (config["reward"], config["reward_weight"], config["top_k"]) == (["rewards_of_test_cli:short"], [0.5], 6)
    assert "all_tokens" not in config
    succeed("fit", "run", "--width", "8", "--epochs", "2", "--device", "cpu")
    again = ["--reward", "rewards_of_test_cli:short", "--limit", "2", "--report", "own.json"]
    output = succeed("evaluate", "prompts.jsonl", "--agent", "run", *again)
    assert "2 prompts, by short" in output
    own = json.loads(Path("own.json").read_text())
    answers = [item["completions"]["plain"] for item in own["answers"]]
    assert own["systems"]["plain"]["mean reward"] == -0.5 * sum(map(len, answers)) / 2
    assert {name: own["config"][name] for name in ("top_k", "max_new_tokens")} == {"top_k": 6, "max_new_tokens": 6}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("label nowhere.jsonl --output new", "There is no file nowhere.jsonl."),
        ("label prompts.jsonl --output new", "prompts.jsonl, row 0: chosen, rejected must be text or a list"),
        ("label pairs.jsonl --output new --model ./[b]nowhere", "There is no folder ./[b]nowhere."),
        ("label pairs.jsonl --output new --device tpu", "There is no device 'tpu' here; available: cpu"),
        ("label pairs.jsonl --output new --top-p 2", "Invalid options: top_p=2.0 should be"),
        ("label pairs.jsonl --output pairs.jsonl", "pairs.jsonl is a file. Give a folder as --output."),
        ("label pairs.jsonl --output pairs.jsonl/run", "pairs.jsonl is a file. Give another --output."),
        ("table 1 --output pairs.jsonl", "pairs.jsonl is a file. Give a folder as --output."),
        ("fit nowhere --output pairs.jsonl", "nowhere holds no labels."),
        ("label pairs.jsonl --output new --positions 2 --agent x", "--agent, --positions would have no effect with"),
        ("label pairs.jsonl --output new --labeler rollout --all-tokens", "--all-tokens would have no effect with"),
        ("label prompts.jsonl --output new --labeler rollout", "Rollouts are labeled by reward functions. Give at"),
        (
            "label prompts.jsonl --output new --labeler rollout --reward nowhere:f",
            "Cannot import the reward function nowhere:f: ModuleNotFoundError: No module named 'nowhere'.",
        ),
        (
            "label prompts.jsonl --output new --labeler rollout --reward math:fsum --reward-weight 1 --reward-weight 2",
            "1 reward functions need as many finite weights",
        ),
        ("rl --output new", "There are no prompts to answer. Give a file of prompts, or a --recipe that names one."),
        ("rl prompts.jsonl --output new", "Answers are scored by reward functions. Give at least one --reward"),
        ("rl --output new --recipe llama-3-8", "There is no recipe 'llama-3-8'. Did you mean llama-3-8b?"),
        ("rl prompts.jsonl --output new --reward a:b --tracker board", "There is no tracker 'board'. Give one of aim"),
        ("fit nowhere", "nowhere holds no labels. Make them first: mara label … --output nowhere"),
        ("evaluate prompts.jsonl --agent ./nowhere --reward math:fsum", "There is no folder ./nowhere."),
        ("evaluate prompts.jsonl --agent ./nowhere", "Choose what scores the answers: --reward module:"),
    ],
)
def test_errors_are_one_sentence_and_leave_no_agent(arguments: str, message: str) -> None:
    assert message in message_of(mara(*arguments.split()))
    assert not Path("new/features").exists()


def test_an_error_is_red(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert mara("fit", "nowhere").stderr.startswith("\x1b[31mnowhere holds no labels.")


@pytest.mark.parametrize(
    "arguments",
    [
        "label",
        "label pairs.jsonl",
        "rl prompts.jsonl",
        "rl --output run --preset paper",
        "fit",
        "fit run --width 2",
        "evaluate prompts.jsonl",
        "label a --top-k 0",
    ],
)
def test_wrong_usage_is_explained(arguments: str) -> None:
    result = mara(*arguments.split())
    assert result.exit_code == 2
    assert "Usage" in result.output


@pytest.mark.parametrize("command", ["label", "fit", "rl", "evaluate", "table"])
def test_help_has_examples_that_can_be_called(command: str) -> None:
    output = succeed(command, "--help", columns=80)
    examples = re.findall(r"^ \$ mara (.*?) *$", output, flags=re.MULTILINE)
    assert len(examples) == 2
    for example in examples:
        # The files they name do not exist, but the usage is right.
        assert mara(*example.split(), "--device", "tpu").exit_code == 1
    assert "…" not in output


@pytest.mark.parametrize("command", sorted(COMMANDS - {"generate", "report"}))
def test_every_command_that_prints_a_table_can_print_json(command: str) -> None:
    assert "--json" in succeed(command, "--help")


@pytest.mark.slow
def test_demo_as_json() -> None:
    found = json.loads(succeed("demo", "--prompts", "2", "--json"))
    assert [list(answer) for answer in found["answers"]] == [["prompt", "plain", "aligned"]] * 6
    assert found["shares"]["aligned"]["prompts"] == 2
    assert found["shares"]["plain"]["harmful"] in (0, 0.5, 1)


LOADED_MODULES = """
import json, sys

from langchain_mara_training.commands.main import app
from typer.testing import CliRunner

for arguments in json.loads(sys.argv[1]):
    assert CliRunner().invoke(app, arguments).exit_code == 0
print(json.dumps(sorted(sys.modules)))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "calls", [[], ["--help"], ["label --help"], ["fit --help", "rl --help", "evaluate --help", "table --help"]], ids=str
)
def test_help_loads_no_heavy_library(calls: list[str]) -> None:
    arguments = json.dumps([call.split() for call in calls])
    done = subprocess.run([sys.executable, "-c", LOADED_MODULES, arguments], capture_output=True, text=True, check=True)
    heavy = {"torch", "transformers", "langchain_core", "datasets", "sklearn", "numpy", "accelerate", "matplotlib"}
    assert heavy & set(json.loads(done.stdout)) == set()


WITHOUT_TRAINING = """
import json, sys

sys.modules.update(datasets=None, skorch=None, sklearn=None)
from langchain_mara_training.commands.main import app
from typer.testing import CliRunner

for arguments in json.load(sys.stdin):
    result = CliRunner().invoke(app, arguments)
    print(json.dumps([result.exit_code, result.stdout, " ".join(result.stderr.split())]))
"""


@pytest.mark.slow
def test_without_the_extra_only_the_training_commands_are_refused() -> None:
    training = [
        "label pairs.jsonl --output run",
        "fit run",
        "rl --output run",
        "evaluate prompts.jsonl --agent run",
        "report folder",
        "table 1 --output folder",
    ]
    calls = [*training, "--help", "info", "generate hi --max-new-tokens 4 --device cpu"]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TRAINING],
        input=json.dumps([call.split() for call in calls]),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    results = [json.loads(line) for line in done.stdout.splitlines()]
    for code, _, message in results[: len(training)]:
        assert code == 1
        assert message.startswith("This command needs more libraries: pip install 'langchain-mara[training]' (")
    assert [code for code, _, _ in results[len(training) :]] == [0, 0, 0]
    (_, listed, _), (_, info, _), (_, answer, _) = results[len(training) :]
    assert set(re.findall(r"^│ (\w+) ", listed, flags=re.MULTILINE)) >= COMMANDS
    assert "langchain-mara" in info
    assert answer == succeed(*calls[-1].split())
    assert not Path("run").exists()


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "resolved", lambda *_: {}["bug"])
    assert isinstance(mara("fit", "run").exception, KeyError)
