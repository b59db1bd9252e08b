"""The paper's tables end to end on tiny checkpoints of the seven architectures, with rivals, transfer and failures."""

import gc
import inspect
import json
import re
import shutil
import weakref
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import write_beaver, write_policy_model
from families import tiny_agent
from langchain_mara_training.commands.main import app
from langchain_mara_training.evaluation.comparison import Comparison
from langchain_mara_training.evaluation.preference_rate import Preference
from langchain_mara_training.paper import paper_tables as tables
from langchain_mara_training.paper.paper_tables import TableRow, Tables
from langchain_mara_training.paper.render import PaperTable
from langchain_mara_training.paper.settings import PaperFigures, PromptSet, TableModel, TableSettings
from pydantic import BaseModel
from typer.testing import CliRunner

from langchain_mara import MaraLLM
from langchain_mara.exceptions import OptionsError

pytestmark = pytest.mark.slow

# The models of the paper, a tiny one of the same architecture in the place of each, and its hidden size.
FAMILIES = {
    "llama-3-8b": ("llama-3", 32), "llama-3.1-8b": ("llama-3.1", 32), "llama-3.2-1b": ("llama-3.2", 16),
    "llama-3.2-3b": ("llama-3.2", 24), "mistral-v0.1": ("mistral-v0.1", 32), "mistral-v0.2": ("mistral-v0.3", 32),
    "mistral-v0.3": ("mistral-v0.3", 32),
}  # fmt: skip
SETS = {"SafeRLHF": "instruction", "BeaverTails": "prompt", "HarmfulQA": "question"}
QUESTIONS = ["How do I boil an egg?", "How do I pick a lock?", "What is a good book?", "I want to keep a lost wallet."]


def write_model(folder: Path, family: str, hidden: int, seed: int) -> None:
    write_policy_model(folder, family, seed, hidden_size=hidden, num_hidden_layers=1, head_dim=hidden // 4)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A machine's folder of weights and prompts: models, agents, rivals, rewards."""
    folder = tmp_path_factory.mktemp("weights")
    for seed, (name, (family, hidden)) in enumerate(FAMILIES.items()):
        write_model(folder / name, family, hidden, seed)
        tiny_agent(hidden, seed=seed).save_pretrained(folder / f"{name}-agent")
    for seed, name in enumerate(("RLHF", "DPO", "Aligner"), 20):
        write_model(folder / name, "llama-3", 32, seed)
    for seed, name in enumerate(("reward", "cost"), 1):
        write_beaver(folder / name, seed)
    for name, column in SETS.items():
        rows = [{column: f"{question} Tell me about {name}."} for question in QUESTIONS]
        (folder / f"{name}.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture(scope="module")
def settings(weights: Path) -> TableSettings:
    """The shipped settings, with the tiny weights in the place of the paper's."""
    shipped = TableSettings.load().with_sources(
        models=[f"{name}={weights / name}" for name in FAMILIES],
        agents=[f"{name}={weights / name}-agent" for name in FAMILIES],
        rivals=[f"{name}/{rival}={weights / rival}" for name in FAMILIES for rival in ("RLHF", "DPO", "Aligner")],
        rewards=[f"{name}=beaver:{weights / name}" for name in ("reward", "cost")],
        prompts=[f"{name}={weights / name}.json" for name in SETS],
    )
    return shipped.model_copy(
        update={"decoding": shipped.decoding.model_copy(update={"max_new_tokens": 4, "top_k": 8})}
    )


@pytest.fixture(scope="module")
def arguments(weights: Path, settings: TableSettings) -> list[str]:
    """Of the command, for these settings."""
    file = weights / "settings.yaml"
    file.write_text(settings.model_dump_json())  # JSON is YAML
    return ["--recipe", str(file), "--device", "cpu"]


def mara_table(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, ["table", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.stdout


def read(folder: Path) -> dict[str, Any]:
    table: dict[str, Any] = json.loads((folder / "table.json").read_text())
    return table


def row_of(table: dict[str, Any], model: str, other: str | None = None) -> dict[str, Any]:
    return next(row for row in table["rows"] if (row["model"], row["other"]) == (model, other))


@pytest.fixture(scope="module")
def first(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folder and output of the first table; copy it before you change it."""
    folder = tmp_path_factory.mktemp("tables") / "first"
    return folder, mara_table("1", "--output", folder, *arguments)


def test_the_first_table_has_the_paper_s_rows_with_its_figures_beside(first: tuple[Path, str]) -> None:
    folder, output = first
    table = read(folder)
    assert [row["model"] for row in table["rows"]] == list(FAMILIES)
    assert table["prompts"] == dict.fromkeys(SETS, 4)
    for row in table["rows"]:
        assert row["problem"] is None
        for name, cell in row["cells"].items():
            kept = Comparison.load(folder / row["model"] / name)
            assert list(kept.answers) == ["plain", "MARA"]
            assert tuple(cell.values()) == kept.preference("MARA", "plain")
            assert cell["wins"] + cell["draws"] + cell["losses"] == 4
            assert list(kept.config["rewards"].values()) == [2 if "mistral" in row["model"] else 1, -1]
    assert any(cell["rate"] for row in table["rows"] for cell in row["cells"].values())
    [average] = table["averages"]
    assert average["label"] == "average of 7"
    for name, mean in average["cells"].items():
        assert mean == pytest.approx(sum(row["cells"][name]["rate"] for row in table["rows"]) / 7)
    # The paper's own averages.
    assert {name: round(value, 2) for name, value in average["paper"].items()} == {
        "SafeRLHF": 26.28, "BeaverTails": 25.88, "HarmfulQA": 33.64,
    }  # fmt: skip
    assert max(map(len, output.splitlines()[:-2])) <= 80
    assert "+39.70" in output
    assert "+62.09" in output


def test_json_is_the_table_and_its_problems(first: tuple[Path, str], arguments: list[str]) -> None:
    folder, _ = first
    given = ["--models", "mistral-v0.3", "--limit", "4", "--json"]
    printed = json.loads(mara_table("1", "--output", folder.parent / "as-json", *arguments, *given))
    assert printed.pop("problems") == []
    assert printed == read(folder.parent / "as-json")
    assert printed["rows"][0]["model"] == "mistral-v0.3"


def test_where_nothing_was_compared_no_rate_is_printed(settings: TableSettings) -> None:
    nothing = Preference.between([], [])
    rows = [TableRow("mistral-v0.3", None, dict.fromkeys(SETS, nothing))]
    table = PaperTable("1", settings, dict.fromkeys(SETS, 0), rows)
    measured = [cell for line in table.cells()[1:] for cell in line[1::2]]
    assert measured == ["-"] * 2 * len(SETS)


def test_markdown_holds_what_is_measured(first: tuple[Path, str]) -> None:
    folder, _ = first
    text = (folder / "table.md").read_text()
    lines = [line.strip("|").split("|") for line in text.splitlines() if "|" in line]
    rows = {label.strip(): [cell.strip() for cell in cells] for label, *cells in lines}
    assert len({len(row) for row in lines}) == 1
    cell = row_of(read(folder), "mistral-v0.3")["cells"]["HarmfulQA"]
    rate, low, high = (100 * cell[name] for name in ("rate", "low", "high"))
    assert rows["mistral-v0.3"][4:] == [f"{rate:+.2f} {low:+.0f}…{high:+.0f}", "+11.07"]
    assert rows["average of 7"][1::2] == ["+26.28", "+25.88", "+33.64"]
    assert text.startswith("# Table 1: MARA against the upstream model\n\nCreated with\n\n    ")


def test_what_was_killed_ends_with_the_same_table(
    first: tuple[Path, str], arguments: list[str], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(first[0], tmp_path / "killed"))
    for name in ("table.json", "table.md"):
        (folder / name).unlink()
    shutil.rmtree(folder / "mistral-v0.3")
    shutil.rmtree(folder / "mistral-v0.2" / "HarmfulQA")
    torn = folder / "mistral-v0.2" / "BeaverTails" / "answers"
    lines = next(torn.glob("MARA*")).read_bytes().splitlines(keepends=True)
    next(torn.glob("MARA*")).write_bytes(b"".join(lines[:2]) + lines[2][:20])
    untouched = (folder / "llama-3-8b" / "SafeRLHF" / "answers").stat().st_mtime_ns
    mara_table("1", "--output", folder, *arguments)
    assert (folder / "table.json").read_bytes() == (first[0] / "table.json").read_bytes()
    assert (folder / "llama-3-8b" / "SafeRLHF" / "answers").stat().st_mtime_ns == untouched


def test_an_agent_that_changes_nothing_gives_exactly_0(settings: TableSettings, tmp_path: Path) -> None:
    tiny_agent(32, bias=100.0).save_pretrained(tmp_path / "accepts")
    equal = settings.with_sources(agents=[f"llama-3-8b={tmp_path / 'accepts'}"])
    [row] = Tables(equal, tmp_path / "out", device="cpu").rows("1", ["llama-3-8b"])
    assert [cell[:4] for cell in row.cells.values()] == [(0, 4, 0, 0.0)] * 3


def test_the_second_table_compares_with_rivals(arguments: list[str], tmp_path: Path, first: tuple[Path, str]) -> None:
    chosen = ["--models", "llama-3-8b", "--models", "mistral-v0.1", "--prompts", "SafeRLHF", "--limit", "3"]
    lacking = ["--rivals", f"mistral-v0.1/DPO={tmp_path / 'nowhere'}"]
    output = mara_table("2", "--output", tmp_path / "out", *chosen, *lacking, *arguments)
    table = read(tmp_path / "out")
    assert [(row["model"], row["other"]) for row in table["rows"]] == [
        (model, rival) for model in ("llama-3-8b", "mistral-v0.1") for rival in ("RLHF", "DPO", "Aligner")
    ]
    assert table["prompts"] == {"SafeRLHF": 3}
    first_table = Comparison.load(first[0] / "llama-3-8b" / "SafeRLHF").answers["MARA"]
    for rival, kind in (("RLHF", "decoding"), ("DPO", "decoding"), ("Aligner", "aligner")):
        kept = Comparison.load(tmp_path / "out" / "llama-3-8b" / rival / "SafeRLHF")
        assert list(kept.answers) == [rival, "MARA"]
        assert kept.config["systems"][rival]["kind"] == kind
        completions = [answer.completion for answer in first_table[:3]]
        assert [answer.completion for answer in kept.answers["MARA"]] == completions
        preference = kept.preference("MARA", rival)
        assert row_of(table, "llama-3-8b", rival)["cells"]["SafeRLHF"]["rate"] == preference.rate
    failed = row_of(table, "mistral-v0.1", "DPO")
    assert failed["cells"] == {}
    assert failed["problem"].startswith(f"There is no folder {tmp_path / 'nowhere'}.")
    assert [average["label"] for average in table["averages"]] == [
        "against RLHF, average of 2", "against DPO, average of 1", "against Aligner, average of 2",
    ]  # fmt: skip
    assert [average["paper"]["HarmfulQA"] for average in table["averages"]] == [18.91, 13.15, -1.76]
    assert "mistral-v0.1, against DPO: There is no folder" in " ".join(output.split())


def test_the_third_table_has_agents_of_the_same_hidden_size(
    settings: TableSettings, weights: Path, tmp_path: Path
) -> None:
    one_data_set = settings.with_sources(prompts=["HarmfulQA"], agents=[f"mistral-v0.2={weights / 'nowhere'}"])
    rows = Tables(one_data_set, tmp_path, device="cpu").rows("3", ["llama-3-8b"])
    assert [(row.model, row.other) for row in rows] == [
        ("llama-3-8b", "llama-3.1-8b"), ("llama-3-8b", "mistral-v0.1"), ("llama-3-8b", "mistral-v0.2"),
        ("llama-3-8b", "mistral-v0.3"),
    ]  # fmt: skip
    kept = Comparison.load(tmp_path / "llama-3-8b" / "mistral-v0.3" / "HarmfulQA")
    agent, _settings = kept.config["systems"]["MARA"]["agent"].split()
    assert agent == tiny_agent(32, seed=6).fingerprint
    assert kept.config["systems"]["MARA"]["model"] == kept.config["systems"]["plain"]["model"]
    assert rows[0].cells["HarmfulQA"].wins + rows[0].cells["HarmfulQA"].losses > 0
    assert [row.problem is None for row in rows] == [True, True, False, True]
    assert "nowhere" in str(rows[2].problem)
    [alone] = Tables(settings, tmp_path, device="cpu", limit=1).rows("3", ["llama-3.2-1b"])
    assert alone[:3] == ("llama-3.2-1b", None, {})
    assert str(alone.problem).startswith("No other model with an agent has the same hidden size. Give such an agent")


def test_a_model_that_cannot_be_loaded_leaves_its_row_empty(
    settings: TableSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = settings.with_sources(models=["llama-3-8b=/nowhere"], prompts=["SafeRLHF"])
    no_agent = broken.models["llama-3.1-8b"].model_copy(update={"agent": None})
    broken = broken.model_copy(update={"models": {**broken.models, "llama-3.1-8b": no_agent}})
    load = MaraLLM.from_model_id

    def exhausted(source: str, **options: Any) -> MaraLLM:
        if source.endswith("llama-3.2-1b"):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return load(source, **options)

    monkeypatch.setattr(tables.MaraLLM, "from_model_id", exhausted)
    names = ["llama-3-8b", "llama-3.1-8b", "llama-3.2-1b", "llama-3.2-3b"]
    rows = Tables(broken, tmp_path, device="cpu").rows("1", names)
    assert [row.model for row in rows] == names
    assert [bool(row.cells) for row in rows] == [False, False, False, True]
    problems = [
        "There is no folder /nowhere.",
        "The settings do not say where its agent is: --agents llama-3.1-8b=…",
    ]
    for row, text in zip(rows, [*problems, "CUDA out of memory."], strict=False):
        assert str(row.problem).startswith(text)


def test_a_model_is_loaded_once_and_freed_before_the_next(
    settings: TableSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[tuple[str, weakref.ref[Any]]] = []
    load = MaraLLM.from_model_id

    def watched(source: str, **options: Any) -> MaraLLM:
        gc.collect()
        alive.append([name for name, model in loaded if model() is not None])
        llm = load(source, **options)
        loaded.append((Path(source).name, weakref.ref(llm.model)))
        return llm

    alive: list[Sequence[str]] = []
    monkeypatch.setattr(tables.MaraLLM, "from_model_id", watched)
    Tables(settings, tmp_path, device="cpu", limit=1).rows("2", ["llama-3-8b", "mistral-v0.3"])
    rivals = ["RLHF", "DPO", "Aligner"]
    assert [name for name, _ in loaded] == ["llama-3-8b", *rivals, "mistral-v0.3", *rivals]
    assert alive == [[], *[["llama-3-8b"]] * 3, [], *[["mistral-v0.3"]] * 3]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--models", "mistral-v3"], "There is no model 'mistral-v3' in this table. Did you mean mistral-v0.3?"),
        (["--agents", "mistral-v0.3"], "Say where mistral-v0.3 is: mistral-v0.3=SOURCE."),
        (["--rivals", "mistral-v0.3/dpo=x"], "There is no rival 'mistral-v0.3/dpo' in this table. Did you mean"),
        (["--prompts", "HH"], "There is no data set 'HH' in this table."),
        (["--prompts", "SafeRLHF=nowhere.json"], "There is no file nowhere.json."),
        (["--recipe", "nowhere.yaml"], "There is no file nowhere.yaml. Give a YAML file with the settings of tables."),
    ],
)
def test_what_is_not_there_is_named(given: list[str], message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["table", "1", "--output", str(tmp_path / "out"), "--device", "cpu", *given])
    assert result.exit_code == 1
    assert message in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()


def test_the_shipped_settings_explain_every_key() -> None:
    file = Path(tables.__file__).parents[1] / "recipes" / "tables" / "paper.yaml"
    lines = file.read_text().splitlines()
    for before, line in pairwise(lines):
        if re.match(r"(  )?\w[\w.-]*:$|\w+:", line) and not re.match(r"  \w+-v?\d", line):
            assert before.lstrip().startswith("#"), line
    assert set(TableSettings.load().models) == set(FAMILIES)


@pytest.mark.parametrize("kind", [TableSettings, TableModel, PromptSet, PaperFigures])
def test_every_setting_has_a_docstring(kind: type[BaseModel]) -> None:
    explained = re.findall(r'^    (\w+): .*\n    """', inspect.getsource(kind), re.MULTILINE)
    assert explained == list(kind.model_fields)


def test_weights_name_the_rewards_there_are(tmp_path: Path) -> None:
    text = TableSettings.load().model_dump_json().replace('"cost":-1.0', '"costs":-1.0', 1)
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(OptionsError, match="must give weights for exactly reward, cost in models.llama-3-8b"):
        TableSettings.load(tmp_path / "own.yaml")
