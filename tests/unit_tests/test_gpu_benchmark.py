"""The benchmark of a GPU, rehearsed on the CPU: parts that fail or take too long leave the others alone."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from benchmark_scripts import benchmark
from typer.testing import CliRunner

pytestmark = pytest.mark.slow


@pytest.fixture
def gpu() -> Iterator[ModuleType]:
    with benchmark("gpu") as script:
        yield script


def settings(gpu: ModuleType, output: Path) -> Any:
    return gpu.Settings("cpu", new_tokens=2, batch=[1, 2], compile=False, output=output)


def test_without_a_gpu_nothing_is_measured(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    gpu.main(output=tmp_path / "tables.jsonl")
    assert "There is no GPU, so nothing was measured." in capsys.readouterr().out
    assert not (tmp_path / "tables.jsonl").exists()


def test_a_part_that_fails_leaves_the_others_alone(gpu: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "tables.jsonl"
    outcomes = list(gpu.run_parts(["vLLM with the plugin", "tiny"], settings(gpu, file), 400, "no-such-python"))
    assert [outcome.part for outcome in outcomes] == ["vLLM with the plugin", "tiny"]
    assert outcomes[0].outcome.startswith("failed: ")
    assert "no-such-python" in outcomes[0].outcome
    assert outcomes[1].outcome == "done"
    records = gpu.read(file)
    assert [record.title for record in records] == [f"tiny, {n} sequences, cpu, bfloat16" for n in (1, 2)]
    for record in records:
        systems = [row[0] for row in record.rows]
        assert systems == ["generate", "no agent", "look-ahead agent", "state agent, 70%"]
        speeds = record.measured["tokens_per_second"]
        fastest = max(speeds["generate"])
        assert all(row[4] == f"{max(speeds[row[0]]) / fastest:.2f}" for row in record.rows)


def test_a_part_that_takes_too_long_is_stopped(gpu: ModuleType, tmp_path: Path) -> None:
    (outcome,) = gpu.run_parts(["tiny"], settings(gpu, tmp_path / "tables.jsonl"), 1, "")
    assert outcome.outcome == "stopped after its 1 seconds"


def test_the_shares_fit_into_eight_minutes(gpu: ModuleType) -> None:
    assert sum(part.seconds for name, part in gpu.PARTS.items() if name != "tiny") <= 8 * 60
    shapes = {"1B": 1.24e9, "3B": 3.21e9, "8B": 8.03e9}
    for shape, size in shapes.items():
        with gpu.torch.device("meta"):
            model = gpu.LlamaForCausalLM(gpu.LlamaConfig(**gpu.SHAPES[shape]))
        assert model.num_parameters() == pytest.approx(size, rel=0.01)


def test_a_summary_ends_the_tables(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu, "_outcome", lambda _command, limit: f"done within {limit:.0f}")
    app = gpu.typer.Typer()
    app.command()(gpu.main)
    file = tmp_path / "tables.jsonl"
    given = ["--device", "cpu", "--part", "1B", "--part", "3B", "--minutes", "1", "--output", str(file)]
    assert CliRunner().invoke(app, given).exit_code == 0
    (record,) = gpu.read(file)
    assert record.title == "Parts on cpu"
    # The second part gets what the first one has left.
    assert [row[2] for row in record.rows] == ["done within 30", "done within 60"]
