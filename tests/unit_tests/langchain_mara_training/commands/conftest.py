"""A folder with pairs and prompts for each test of a command, and runs in it."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import succeed


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, demo_pairs: list[dict[str, Any]]) -> None:
    """A folder of its own with pairs and prompts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    Path("pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in demo_pairs[:12]))
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": pair["prompt"]}) + "\n" for pair in demo_pairs[-4:]))


@pytest.fixture
def labeled() -> Path:
    """A run with labels."""
    succeed("label", "pairs.jsonl", "--output", "run", "--all-tokens", "--device", "cpu")
    return Path("run")


@pytest.fixture
def fitted(labeled: Path) -> Path:
    """A run with an agent."""
    succeed("fit", labeled, "--width", "8", "--epochs", "2", "--device", "cpu")
    return labeled
