"""Mermaid diagrams as committed SVG pictures, so that building and reading the pages needs no network and no script.

GitHub draws the same fenced blocks itself. `python docs/extensions/mermaid_pictures.py` draws the pictures again; it
needs `mmdc` (npm's @mermaid-js/mermaid-cli) and a Chromium, which building the pages does not.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

DOCS = Path(__file__).parents[1]
FOLDER = DOCS / "diagrams"
_BLOCK = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_TITLE = re.compile(r"^\s*accTitle: (.+)$", re.MULTILINE)
_SOURCE = re.compile(r"<!-- source (\w+) -->")
_FLOWCHART = {"htmlLabels": False, "curve": "basis", "wrappingWidth": 320}
_STYLE = {"theme": "neutral", "flowchart": _FLOWCHART, "htmlLabels": False}


def blocks(text: str) -> list[str]:
    """The Mermaid sources in a Markdown text."""
    return [block.rstrip("\n") for block in _BLOCK.findall(text)]


def title_of(source: str) -> str:
    """A diagram's title, from its `accTitle` line.

    Raises:
        ValueError: If it has none.
    """
    titles = _TITLE.findall(source)
    if len(titles) != 1:
        raise ValueError("A Mermaid diagram needs one line 'accTitle: …', which names its picture.")
    return str(titles[0]).strip()


def picture_of(source: str) -> Path:
    """Where the picture of a diagram is kept."""
    return FOLDER / (re.sub(r"\W+", "-", title_of(source).lower()).strip("-") + ".svg")


def is_current(source: str) -> bool:
    """Whether the picture of a diagram exists and was drawn from this source."""
    picture = picture_of(source)
    drawn_from = _SOURCE.findall(picture.read_text(encoding="utf-8")) if picture.is_file() else []
    return drawn_from == [_digest(source)]


def draw(source: str) -> Path:
    """Draws a diagram and writes its picture."""
    picture = picture_of(source)
    with tempfile.TemporaryDirectory() as folder:
        there = Path(folder)
        (there / "in.mmd").write_text(source, encoding="utf-8")
        (there / "style.json").write_text(json.dumps(_STYLE), encoding="utf-8")
        (there / "browser.json").write_text('{"args": ["--no-sandbox"]}', encoding="utf-8")
        command = [os.environ.get("MMDC", "mmdc"), "--input", "in.mmd", "--output", "out.svg", "--quiet"]
        command += ["--configFile", "style.json", "--puppeteerConfigFile", "browser.json", "--backgroundColor", "white"]
        subprocess.run(command, cwd=there, check=True)  # noqa: S603 - a fixed command
        drawn = (there / "out.svg").read_text(encoding="utf-8")
    FOLDER.mkdir(exist_ok=True)
    picture.write_text(f"{drawn.rstrip()}\n<!-- source {_digest(source)} -->\n", encoding="utf-8")
    return picture


def _digest(source: str) -> str:
    return hashlib.sha256(source.encode()).hexdigest()[:16]


if __name__ == "__main__":
    for page in sorted(DOCS.rglob("*.md")):
        for block in blocks(page.read_text(encoding="utf-8")):
            if not is_current(block):
                sys.stdout.write(f"{draw(block)}\n")
