"""The house stays as DESIGN.md drew it: public names, one-way imports, rooms of a readable size."""

import ast
from pathlib import Path

import langchain_mara_training
import pytest

import langchain_mara

ROOT = Path(__file__).parents[3]
CORE = sorted((ROOT / "langchain_mara").rglob("*.py"))
TRAINING = sorted((ROOT / "training" / "langchain_mara_training").rglob("*.py"))

EXPECTED_ALL = ["ChatMara", "DecodingOptions", "MaraAgent", "MaraError", "MaraLLM", "__version__", "mara_generate"]
EXPECTED_TRAINING = [
    "Aligner", "Answer", "BeaverReward", "BestOf", "Comparison", "Decoded", "Decoding", "EnvironmentOptions",
    "MaraAligner", "MaraClassifier", "MaraSAC", "Preference", "PreferenceLabeler", "PreferenceReward", "Recipe",
    "RewardGuided", "RolloutLabeler", "RolloutOptions", "SequenceClassificationReward", "System", "TokenLabels",
    "UltraRMReward", "UpdateOptions", "WeightedRewards", "ZiyaReward", "best_of_n", "compare", "decode_system",
    "preference_rate", "retrace", "write_report",
]  # fmt: skip
# Each room may use the rooms to its left.
ORDER = [
    "exceptions", "_version", "candidates", "options", "packing", "fingerprints", "agent", "prefixes", "cache", "masks",
    "attention", "families", "probe", "compiled", "policy", "requests", "drafts", "rows", "table", "widths", "passes",
    "batch", "decoding", "generation", "stopping", "trace", "scheduler", "completions", "adapters", "loading",
    "templates", "demo", "tools", "local", "messages", "chat_models", "llms", "cli",
]  # fmt: skip


def imports(file: Path) -> set[str]:
    """Modules imported at run time, wherever in the file; `TYPE_CHECKING` blocks do not count."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    skipped = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def test_public_names() -> None:
    assert sorted(langchain_mara.__all__) == EXPECTED_ALL
    assert all(hasattr(langchain_mara, name) for name in EXPECTED_ALL)
    assert sorted(langchain_mara_training.__all__) == EXPECTED_TRAINING
    assert all(hasattr(langchain_mara_training, name) for name in EXPECTED_TRAINING)


@pytest.mark.parametrize("file", CORE, ids=lambda file: str(file.relative_to(ROOT)))
def test_core_never_imports_training(file: Path) -> None:
    assert not any(name.startswith("langchain_mara_training") for name in imports(file))


@pytest.mark.parametrize("file", [f for f in CORE if f.parent.name == "langchain_mara"], ids=lambda file: file.stem)
def test_dependencies_point_one_way(file: Path) -> None:
    if file.stem == "__init__":
        return
    own = ORDER.index(file.stem)
    used = {name.split(".")[1] for name in imports(file) if name.startswith("langchain_mara.")}
    assert {name for name in used if ORDER.index(name) > own} == set()


def test_only_the_langchain_rooms_import_langchain() -> None:
    users = {file.stem for file in CORE if any(name.startswith("langchain_core") for name in imports(file))}
    assert users <= {"llms", "chat_models", "messages"}


def test_only_loading_calls_from_pretrained() -> None:
    callers = {f.stem for f in CORE if ".from_pretrained(" in f.read_text() and f.parent.name == "langchain_mara"}
    assert callers <= {"loading", "adapters", "agent"}


@pytest.mark.parametrize("file", [*CORE, *TRAINING], ids=lambda file: str(file.relative_to(ROOT)))
def test_modules_open_with_what_they_do_and_stay_readable(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text))
    assert text.count("\n") <= 300


def test_nothing_generic_reaches_site_packages() -> None:
    packages = (ROOT / "pyproject.toml").read_text().split("[tool.hatch.build.targets.wheel]")[1].splitlines()[1]
    assert packages == 'packages = ["langchain_mara", "training/langchain_mara_training"]'
