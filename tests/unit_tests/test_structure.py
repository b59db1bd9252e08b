"""The structure stays as docs/architecture.md draws it: public names, imports one way, modules of a readable size."""

import ast
from pathlib import Path

import langchain_mara_training
import pytest

import langchain_mara

ROOT = Path(__file__).parents[2]
SOURCES = {
    "langchain_mara": ROOT / "langchain_mara",
    "langchain_mara_training": ROOT / "training/langchain_mara_training",
}
MOST_LINES, MOST_MODULES = 300, 10

# The one list: each module may import the modules before it, and each folder the folders before it.
ORDER = """
langchain_mara: _version exceptions options
langchain_mara.policy.attention: masks grouped_attention
langchain_mara.policy: packed_linear fingerprints prefix_cache cache architectures loaded_model compilation model
    verification
langchain_mara.agents: reference_checkpoints agent
langchain_mara.decoding: request candidates oom ngram sequence candidate_table pass_width step batch loop
langchain_mara.loading: peft_adapters models
langchain_mara.tracing: statistics views trace
langchain_mara.text: detokenizer chat_template tool_calls
langchain_mara.serving: scheduler completion
langchain_mara: _base _messages chat_models llms custom_generate cli

langchain_mara_training.storage: defaults atomic progress records settings distributed job_checkpoint model_card
langchain_mara_training.data: column_formats known_datasets readers
langchain_mara_training.rewards: calling weighted preference_reward checkpoint_loading reward_model published specs
langchain_mara_training.generation: generate costs states
langchain_mara_training.labeling: token_labels shards preference rollout_options rollout
langchain_mara_training.evaluation: divergence systems reward_guided evaluate preference_rate comparison_store scoring
    comparison
langchain_mara_training.evaluation.report: figures page retrace
langchain_mara_training: run_folder
langchain_mara_training.paper: settings paper_tables render
langchain_mara_training.fitting: state_dataset net fit_loop validation classifier
langchain_mara_training.reinforcement: actor_critic environment replay_buffer rollout_workers tracking recipe
    training_loop sac
langchain_mara_training: aligner
langchain_mara_training.demo: topics corpus dialogues judge measure train_tokenizer train_model build train_agent
langchain_mara_training.jobs: inputs label fit evaluate rl
langchain_mara_training.commands: options demo label fit rl evaluate report table main
"""

EXPECTED_ALL = ["ChatMara", "DecodingOptions", "MaraAgent", "MaraError", "MaraLLM", "__version__", "mara_generate"]
EXPECTED_TRAINING = [
    "Aligner", "Answer", "BeaverReward", "BestOf", "Comparison", "CorrectorBaseline", "Decoded", "Decoding",
    "EnvironmentOptions", "MaraAligner", "MaraClassifier", "MaraSAC", "Preference", "PreferenceLabeler",
    "PreferenceReward", "Recipe", "RewardGuided", "RolloutLabeler", "RolloutOptions", "SequenceClassificationReward",
    "System", "TokenLabels", "UltraRMReward", "UpdateOptions", "WeightedRewards", "ZiyaReward", "best_of_n", "compare",
    "decode_system", "preference_rate", "retrace", "write_report",
]  # fmt: skip


def parse_order(text: str) -> list[str]:
    """Full names of all modules, in order."""
    lines = text.replace("\n    ", " ").strip().splitlines()
    rows = [line.partition(":") for line in lines if line]
    return [f"{folder}.{name}" for folder, _, names in rows for name in names.split()]


LISTED = parse_order(ORDER)
PLACE = {name: place for place, name in enumerate(LISTED)}


def modules_of(package: str) -> dict[str, Path]:
    """All modules of a package but `__init__` and `__main__`, by their full names."""
    root = SOURCES[package]
    files = sorted(file for file in root.rglob("*.py") if not file.stem.startswith("__"))
    return {".".join((package, *file.relative_to(root).with_suffix("").parts)): file for file in files}


MODULES = {name: file for package in SOURCES for name, file in modules_of(package).items()}
PACKAGES = [file for root in SOURCES.values() for file in root.rglob("__init__.py")]
EACH_MODULE = pytest.mark.parametrize("name", sorted(MODULES))


def imported_modules(text: str) -> set[str]:
    """Our modules that a text imports at run time, wherever in it; `TYPE_CHECKING` blocks do not count.

    A public name counts as the module that defines it.
    """
    tree = ast.parse(text)
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
            found |= {_defining_module(node.module, alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def _defining_module(module: str, name: str) -> str:
    package = {"langchain_mara": langchain_mara, "langchain_mara_training": langchain_mara_training}.get(module)
    public = {} if package is None else package._MODULES
    if name in public:
        return f"{module}.{public[name]}"
    submodule = f"{module}.{name}"
    return submodule if submodule in PLACE else module


def backward_imports(name: str, text: str) -> set[str]:
    """What a module imports of the modules that come after it, or that stand in no list."""
    used = {module for module in imported_modules(text) if module.startswith("langchain_mara")}
    used -= {"langchain_mara", "langchain_mara_training"}
    return {module for module in used if PLACE.get(module, len(PLACE)) >= PLACE[name]}


def test_public_names() -> None:
    assert sorted(langchain_mara.__all__) == EXPECTED_ALL
    assert all(hasattr(langchain_mara, name) for name in EXPECTED_ALL)
    assert sorted(langchain_mara_training.__all__) == EXPECTED_TRAINING
    assert all(hasattr(langchain_mara_training, name) for name in EXPECTED_TRAINING)


def test_every_module_is_in_the_list() -> None:
    assert set(MODULES) == set(LISTED)
    assert len(LISTED) == len(PLACE)


@EACH_MODULE
def test_imports_point_one_way(name: str) -> None:
    assert backward_imports(name, MODULES[name].read_text(encoding="utf-8")) == set()


@pytest.mark.parametrize(
    ("name", "text", "backward"),
    [
        ("langchain_mara.policy.cache", "from langchain_mara.policy.model import PolicyModel", "policy.model"),
        ("langchain_mara.policy.model", "def f():\n    from langchain_mara import MaraLLM", "llms"),
        ("langchain_mara.agents.agent", "from langchain_mara.agents import unheard_of", "agents"),
        ("langchain_mara.options", "import langchain_mara_training.aligner", "_training.aligner"),
    ],
)
def test_an_import_turned_round_is_found(name: str, text: str, backward: str) -> None:
    assert backward_imports(name, text) == {
        f"langchain_mara{'' if backward[0] == '_' and 'train' in backward else '.'}{backward}"
    }


def test_core_never_imports_training() -> None:
    core = [file.read_text(encoding="utf-8") for file in SOURCES["langchain_mara"].rglob("*.py")]
    assert not any("langchain_mara_training" in name for text in core for name in imported_modules(text))


def test_only_four_modules_import_langchain() -> None:
    users = {
        name
        for name, file in MODULES.items()
        if any(one.startswith("langchain_core") for one in imported_modules(file.read_text(encoding="utf-8")))
    }
    assert users <= {f"langchain_mara.{name}" for name in ("_base", "_messages", "chat_models", "llms")}


def test_only_loading_and_agents_call_from_pretrained() -> None:
    callers = {
        name
        for name, file in modules_of("langchain_mara").items()
        if ".from_pretrained(" in file.read_text(encoding="utf-8")
    }
    assert {name.split(".")[1] for name in callers} <= {"loading", "agents"}


@pytest.mark.parametrize("file", [*MODULES.values(), *PACKAGES], ids=lambda file: str(file.relative_to(ROOT)))
def test_modules_open_with_what_they_do_and_stay_readable(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text))
    assert text.count("\n") <= MOST_LINES


def test_folders_hold_few_modules() -> None:
    folders = {file.parent for file in MODULES.values()}
    sizes = {folder: sum(file.parent == folder for file in MODULES.values()) for folder in folders}
    assert {str(folder): size for folder, size in sizes.items() if size > MOST_MODULES} == {}


def test_tests_mirror_the_sources() -> None:
    """`tests/unit_tests/PATH/test_NAME.py` tests `PATH/NAME.py`; several files for one module are in `PATH/NAME/`."""
    here = Path(__file__).parent
    for package in SOURCES:
        for file in (here / package).rglob("test_*.py"):
            path = ".".join(file.relative_to(here).parent.parts)
            assert path in MODULES or f"{path}.{file.stem.removeprefix('test_')}" in MODULES, file


def test_nothing_generic_reaches_site_packages() -> None:
    packages = (ROOT / "pyproject.toml").read_text().split("[tool.hatch.build.targets.wheel]")[1].splitlines()[1]
    assert packages == 'packages = ["langchain_mara", "training/langchain_mara_training"]'
