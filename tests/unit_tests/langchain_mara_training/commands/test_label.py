"""`mara label`: a failed start leaves the folder free for other options."""

import json
from pathlib import Path

from command_line import SMALL, mara, message_of, succeed


def test_a_labeling_that_failed_early_may_be_called_otherwise() -> None:
    Path("equal.jsonl").write_text(json.dumps({"prompt": "?", "chosen": "yes", "rejected": "yes"}) + "\n")
    assert "chosen and rejected have the same tokens" in message_of(mara("label", "equal.jsonl", "--output", "run"))
    assert not Path("run").exists()
    succeed("label", "pairs.jsonl", "--output", "run", *SMALL)
