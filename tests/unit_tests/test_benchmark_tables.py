"""Tables of the benchmarks: kept with their machine, and shown on one page; calls that arrive at random."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.table import Table

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
Script = Callable[[str], Any]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return import_module


def table(speed: str, title: str = "Speed") -> Table:
    made = Table("system", "tokens/s | row", title=title)
    made.add_row("engine | width 8", speed)
    made.add_row("reference", "[1]")
    return made


def test_a_table_comes_back_as_it_was(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tables, file = script("tables"), tmp_path / "new" / "decoding.jsonl"
    arguments = ["--output", str(file), "--model", "/home/me/tiny", "--batch=1"]
    monkeypatch.setattr("sys.argv", ["/home/me/decoding.py", *arguments])
    tables.publish(table("12.5"), file, {"engine": [12.0, 13.0]})
    tables.publish(table("7"), None)
    (record,) = tables.read(file)
    assert record.command == "decoding.py --model tiny --batch=1"
    assert (record.title, record.columns) == ("Speed", ["system", "tokens/s | row"])
    assert record.rows == [["engine | width 8", "12.5"], ["reference", "[1]"]]
    assert record.measured == {"engine": [12.0, 13.0]}
    assert record.machine == tables.Machine.here()
    assert "12.5" in (printed := capsys.readouterr().out)
    assert "7" in printed


def test_the_page_shows_the_last_of_each_table_by_machine(script: Script, tmp_path: Path) -> None:
    tables, page = script("tables"), script("page")
    for speed, title in (("1", "Speed"), ("2", "Other"), ("3", "Speed")):
        tables.publish(table(speed, title), tmp_path / "decoding.jsonl")
    (here, *_) = tables.read(tmp_path / "decoding.jsonl")
    gpu = here.machine.model_copy(update={"accelerator": "Fast GPU", "threads": 16})
    on_gpu = here.model_copy(update={"machine": gpu, "rows": [["engine", "99"]]})
    (tmp_path / "gpu.jsonl").write_text(on_gpu.model_dump_json() + "\n")
    page.main(tmp_path, tmp_path / "RESULTS.md")
    text = (tmp_path / "RESULTS.md").read_text()
    this_machine, gpu_machine = text.split("\n## ")[1:]
    assert this_machine.splitlines()[0] == page.hardware(here.machine)
    assert f"torch {here.machine.torch}" in this_machine
    assert f"measured on {here.date:%Y-%m-%d}." in this_machine
    rows = "| system | tokens/s \\| row |\n|---|---|\n| engine \\| width 8 | {} |\n| reference | [1] |\n"
    assert this_machine.count("|---|") == 2
    assert f"**Speed**\n\n{rows.format(3)}" in this_machine
    assert f"**Other**\n\n{rows.format(2)}" in this_machine
    assert "16 threads" in gpu_machine.splitlines()[0]
    assert gpu_machine.splitlines()[0].endswith("Fast GPU")
    assert gpu_machine.endswith("| engine | 99 |\n")


def test_a_page_of_nothing_is_refused(script: Script, tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter, match="holds no results. Measure first: make bench"):
        script("page").main(tmp_path, tmp_path / "RESULTS.md")


@pytest.mark.slow
def test_calls_arrive_in_one_rhythm_whatever_the_rate_and_all_are_heard(script: Script, tmp_path: Path) -> None:
    file = tmp_path / "serving.jsonl"
    script("serving").arrivals("demo", calls=5, new_tokens=4, share=[0.5, 2.0], batch_size=2, output=file)
    (record,) = script("tables").read(file)
    assert [row[0] for row in record.rows] == ["at once", "0.5", "at once", "2"]
    came = []
    for (name, heard), row in zip(record.measured, record.rows, strict=True):
        assert len(heard) == 5
        assert all(moment <= first < last for moment, first, last, _ in heard)
        assert all(2 <= tokens <= 6 for *_, tokens in heard)
        whole = sorted(1000 * (last - moment) for moment, _, last, _ in heard)
        percentiles = [float(percentile) for percentile in row[5].split(" / ")]
        assert percentiles[0] == pytest.approx(whole[2], abs=0.51)
        assert whole[2] - 1 <= percentiles[1] <= percentiles[2] <= whole[-1] + 1
        rate = sum(tokens for *_, tokens in heard) / max(last for _, _, last, _ in heard)
        assert float(row[2]) == pytest.approx(rate, abs=0.06)
        if name != "at once":
            came.append([moment for moment, *_ in heard])
    slow, fast = came
    assert slow == sorted(slow)
    assert [moment / slow[-1] for moment in slow] == pytest.approx([moment / fast[-1] for moment in fast])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "yardstick"), [("fitting", "MLPClassifier"), ("reinforcement", "a pass for each")])
def test_training_sums_up_the_tables_of_its_parts(script: Script, tmp_path: Path, name: str, yardstick: str) -> None:
    training = script("training")
    part = training.parts(pairs=1, long_pairs=1, rows=600, episodes=2, repeats=1)[name]
    first, *others = training.summary(part, tmp_path / "training.jsonl")
    assert first[0].startswith(yardstick)
    assert float(first[2]) == 1
    assert len(others) == 2
    assert all(speed.endswith(f" {part.unit}") and ratio == part.ratio for _, speed, _, ratio in (first, *others))


@pytest.mark.slow
def test_the_cost_of_a_grammar_is_told_as_a_ratio(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    script("grammar").main(batch=[1], new_tokens=4, repeats=1)
    rows = [line.split("│") for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert [row[1].strip() for row in rows] == ["none", "(?s:.*)", "schema"]
    assert float(rows[0][4]) == 1
    assert all(float(row[4]) > 0 for row in rows)
    assert all(float(row[5]) > 0 for row in rows[1:])
