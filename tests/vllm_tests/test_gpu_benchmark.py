"""The parts of the GPU's benchmark about vLLM, rehearsed on the CPU with a tiny model."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: make test-vllm")

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SYSTEMS = {"vLLM": ["vLLM alone"], "vLLM with the plugin": ["plain", "look-ahead agent"]}


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import tables  # noqa: PLC0415

    return tables


def test_both_parts_are_done_on_the_cpu(tables: Any, tmp_path: Path) -> None:
    file = tmp_path / "tables.jsonl"
    parts = [word for part in SYSTEMS for word in ("--part", part)]
    small = ["--device", "cpu", "--no-compile", "--batch", "1", "--batch", "3", "--new-tokens", "2", "--minutes", "15"]
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "gpu.py", *small, *parts, "--output", file],
        env={**os.environ, "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    *measured, summary = tables.read(file)
    assert [row[::2] for row in summary.rows] == [[part, "done"] for part in SYSTEMS]
    wanted = [systems for systems in SYSTEMS.values() for _ in (1, 3)]
    assert [[row[0] for row in record.rows] for record in measured] == wanted
    assert all(float(row[1]) > 0 for record in measured for row in record.rows)
