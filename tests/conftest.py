"""Tests run without network, on one thread (the models are tiny), and without denormals; slow ones start first."""

import gc
import json
import os
import random
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any

# Subprocesses inherit these: one thread each, so that the workers of pytest-xdist do not wait for one another.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
import torch
from hypothesis import settings

FULL_SET = Path(__file__).parents[2] / "shared" / "golden"
SUBSET = Path(__file__).parent / "data" / "golden"
GOLDEN = Path(os.environ.get("MARA_GOLDEN") or (FULL_SET if FULL_SET.is_dir() else SUBSET))
LONG_FILES = (
    "integration_tests/test_workers",
    "integration_tests/test_ray_data",
    "integration_tests/test_cookbook",
    "decoding/test_loop",
)

# The same examples in every run, and no limit of time; `--hypothesis-profile explore` draws new ones.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None)
settings.load_profile("repeatable")
torch.set_num_threads(1)
torch.set_flush_denormal(True)


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of the vectors recorded from the reference implementation: the full set, or what a clone carries."""
    return GOLDEN


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Seeds what a fixture draws."""
    seed_all()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    """Seeds what a test draws, whatever ran before it in this worker."""
    seed_all()


def seed_all() -> None:
    """Seeds the global generators."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 -- scikit-learn draws from it
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest tests first, so that no worker is left alone with one at the end."""

    def rank(item: pytest.Item) -> int:
        if item.get_closest_marker("slow") is None:
            return len(LONG_FILES) + 1
        return next((i for i, name in enumerate(LONG_FILES) if name in item.nodeid), len(LONG_FILES))

    items.sort(key=rank)


def pytest_collection_finish() -> None:
    """Spares the garbage collector what was imported: collecting is a fifth of a second cheaper, and tests collect."""
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fails a test that is skipped without a reason in its module's table `EXPLAINED_SKIPS`, where there is one."""
    report = yield
    module = getattr(item, "module", None)
    explained = getattr(module, "EXPLAINED_SKIPS", None)
    if explained is not None and report.skipped and not hasattr(report, "wasxfail"):
        name = getattr(item, "originalname", item.name)
        if name not in explained:
            report.outcome = "failed"
            report.longrepr = f"{name} was skipped, and EXPLAINED_SKIPS of {module.__name__} does not say why"
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Says in one line how many parity cases were not run, and why; the reports of workers arrive here, too."""
    reports = [
        report
        for reports in terminalreporter.stats.values()
        for report in reports
        if isinstance(report, pytest.TestReport) and "parity" in report.keywords
    ]
    manifest = GOLDEN / "subset.json"
    if not reports or not manifest.is_file():
        return
    counts = json.loads(manifest.read_text())
    missing = ", ".join(f"{whole - kept} of {whole} {name}" for name, (kept, whole) in counts.items())
    skipped = Counter(report.outcome for report in reports)["skipped"]
    terminalreporter.write_line(
        f"Parity with the reference: {missing} and {skipped} tests skipped; a clone holds a part of the golden vectors."
    )
