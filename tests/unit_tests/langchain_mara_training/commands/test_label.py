"""`mara label`: a failed start leaves the folder free for other options, and a dry run shows the data."""

import json
import re
from pathlib import Path

import pytest
from command_line import SMALL, mara, message_of, succeed, table
from langchain_mara_training import run_folder
from rich.console import Console


def test_a_labeling_that_failed_early_may_be_called_otherwise() -> None:
    Path("equal.jsonl").write_text(json.dumps({"prompt": "?", "chosen": "yes", "rejected": "yes"}) + "\n")
    assert "chosen and rejected have the same tokens" in message_of(mara("label", "equal.jsonl", "--output", "run"))
    assert not Path("run").exists()
    succeed("label", "pairs.jsonl", "--output", "run", *SMALL)


def test_skipped_rows_are_counted_in_the_table_and_named_beside_it() -> None:
    rows = Path("pairs.jsonl").read_text().splitlines()[:4]
    Path("some.jsonl").write_text("\n".join([*rows, "{broken", json.dumps({"prompt": "?"})]))
    options = ("--device", "cpu", "--on-bad-row", "skip", "--too-long", "skip")
    result = mara("label", "some.jsonl", "--output", "run", *options)
    assert result.exit_code == 0, result.output
    assert table(result.stdout)["bad rows skipped"] == ["2"]
    assert f"Skipped: {Path.cwd()}/some.jsonl, line 5 is not JSON" in result.stderr
    assert f"Skipped: {Path.cwd()}/some.jsonl, row 5: chosen, rejected must be text" in result.stderr


def test_a_dry_run_shows_the_labels_of_three_pairs_and_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"prompt": "Why?", "chosen": "So it \x1b[31mis \u202e\N{GRINNING FACE}.\nYes.", "rejected": "So no."},
        {"prompt": "Same?", "chosen": "Yes.", "rejected": "Yes."},
        {"prompt": [{"role": "user", "content": "Hi."}], "chosen": "Hello.", "rejected": "Away!"},
        {"prompt": "Not shown.", "chosen": "a", "rejected": "b"},
    ]
    Path("own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with monkeypatch.context() as context:
        terminal = Console(force_terminal=True, color_system="standard")
        context.setattr("langchain_mara_training.commands.examples.console", terminal)
        colored = succeed("label", "own.jsonl", "--output", "run", "--dry-run", "--device", "cpu")
    assert not Path("run").exists()
    assert "\x1b[2mW\x1b[0m\x1b[2;4mhy\x1b[0m" in colored
    assert re.search(r"\x1b\[(4;)?31m no\x1b\[0m", colored)
    assert re.search(r"\x1b\[(4;)?32m\N{GRINNING FACE}\x1b\[0m", colored)
    assert re.search(r"\x1b\[(4;)?32m<\|end\|>\x1b\[0m", colored)
    output = succeed("label", "own.jsonl", "--output", "run", "--dry-run", "--device", "cpu")
    assert "\x1b" not in output
    assert "\u202e" not in output
    plain = re.sub(r"\[[+-](.+?)\](?=\[|\n|\w| )", r"\1", output)
    assert "So it \N{SYMBOL FOR ESCAPE}[31mis" in plain
    assert "row 1: chosen and rejected have the same tokens, so none gets a label" in output
    assert "Not shown" not in output
    assert "4 rows. This was a dry run" in output


def test_a_dry_run_as_json_gives_every_token_with_its_label() -> None:
    output = json.loads(succeed("label", "pairs.jsonl", "--output", "run", "--dry-run", "--json", "--device", "cpu"))
    pairs = [json.loads(line) for line in Path("pairs.jsonl").read_text().splitlines()]
    assert (output["rows"], len(output["examples"])) == (12, 6)
    for number, example in enumerate(output["examples"]):
        side, label = (("chosen", "accept"), ("rejected", "reject"))[number % 2]
        pair = pairs[number // 2]
        text = "".join(token["text"] for token in example["tokens"])
        assert text == f"<|begin|><|user|>{pair['prompt']}<|end|><|assistant|>{pair[side]}<|end|>"
        labels = [token["label"] for token in example["tokens"]]
        assert set(labels) == {None, label}
        assert labels == sorted(labels, key=lambda found: found is not None)  # from one token on


def test_a_dry_run_of_rollouts_shows_prompts() -> None:
    given = ["--labeler", "rollout", "--reward", "nowhere:f", "--output", "run", "--dry-run", "--device", "cpu"]
    output = succeed("label", "prompts.jsonl", *given)
    assert output.count(", prompt") == 3
    assert "Labels" not in output


def test_a_dry_run_finds_what_would_stop_the_job() -> None:
    Path("bad.jsonl").write_text(json.dumps({"prompt": "?"}) + "\n")
    assert "bad.jsonl, row 0" in message_of(mara("label", "bad.jsonl", "--output", "run", "--dry-run"))
    assert "is a file" in message_of(mara("label", "pairs.jsonl", "--output", "pairs.jsonl", "--dry-run"))


def test_counts_as_json() -> None:
    values = json.loads(succeed("label", "pairs.jsonl", "--output", "run", "--json", *SMALL))
    assert values["labels"] == len(run_folder.read_labels("run"))
    assert values["labels/s"] > 0
    assert "as_json" not in run_folder.read_config("run")["label"]
    again = json.loads(succeed("label", "pairs.jsonl", "--output", "run", "--json", *SMALL))
    assert again["labels/s"] is None
    assert list(json.loads(succeed("fit", "run", "--width", "8", "--epochs", "1", "--json", "--device", "cpu"))) == [
        "training labels", "epochs", "best epoch", "training loss", "validation labels", "validation accuracy",
        "majority share", "calibration error", "Brier score", "calibration error before", "Brier score before",
        "temperature", "seconds",
    ]  # fmt: skip


@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1", "FORCE_COLOR": "1"}])
def test_without_colors_labels_are_signs(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    Path("own.jsonl").write_text(json.dumps({"prompt": "Hi.", "chosen": "So it is.\nYes.", "rejected": "So no."}))
    terminal = Console(color_system="auto" if environment else None, _environ=environment)
    monkeypatch.setattr("langchain_mara_training.commands.examples.console", terminal)
    output = succeed("label", "own.jsonl", "--output", "run", "--dry-run", "--device", "cpu")
    output = re.sub(r"\x1b\[[\d;]*m", "", output)
    chosen, rejected = re.findall(r"<\|assistant\|>(.*?)\n\n", output, re.DOTALL)
    assert chosen.startswith("So[+ it]")
    assert chosen.endswith("[+<|end|>]")
    assert "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}]\n[+" in chosen
    assert rejected == "So[- no][-.][-<|end|>]"
    assert "Labels: [+accept], [-reject], none." in output
