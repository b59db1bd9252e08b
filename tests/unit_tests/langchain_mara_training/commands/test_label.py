"""`mara label`: a failed start leaves the folder free for other options."""

import json
from pathlib import Path

from command_line import SMALL, mara, message_of, succeed, table


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
