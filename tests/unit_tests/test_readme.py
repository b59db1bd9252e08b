"""The README tells the truth: its first block runs as printed, and its commands exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from langchain_mara.loading.models import DEMO_AGENT_FOLDER, DEMO_MODEL_FOLDER

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_first_block_prints_what_stands_beside_it() -> None:
    found = re.search(r"```python\n(.*?)```\s*```text\n(.*?)```", README, re.DOTALL)
    assert found is not None
    code, printed = found.groups()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == printed.strip()


def test_commands_are_targets_of_the_makefile() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"^make (\w+)", README, re.MULTILINE))
    assert {"demo", "test"} <= named <= targets


def test_links_to_files_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_demonstration_stays_small_enough_for_the_wheel() -> None:
    size = sum(file.stat().st_size for file in DEMO_MODEL_FOLDER.parent.rglob("*") if file.is_file())
    assert size <= 6_000_000
    assert (DEMO_AGENT_FOLDER / "model.safetensors").exists()
