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
langchain_mara: _version exceptions untrusted
langchain_mara.gates: rarity kinds position
langchain_mara: options
langchain_mara.policy.attention: masks grouped_attention prompt_by_prompt
langchain_mara.policy: packed_linear fingerprints prefix_cache cache architectures loaded_model contract compilation
    model verification
langchain_mara.policy.llama_cpp: settings library known_logits context cache policy weights model
langchain_mara.agents: reference_checkpoints embedding_sketch recommended_options base agent look_ahead stacking
    mixture kinds
langchain_mara.decoding: request candidates recovery ngram sequence
langchain_mara.decoding.cutting: lines processing
langchain_mara.decoding.judging: asking before rows
langchain_mara.decoding: candidate_table pass_width step batch loop
langchain_mara.loading: declared_code peft_adapters gguf_tokenizer gguf models constructors
langchain_mara.tracing: statistics views trace
langchain_mara.text: own_tokenizer stop_strings detokenizer control_tokens reasoning chat_template answer_turns
    chat_fields token_texts
langchain_mara.text.tool_formats: calls base
langchain_mara.text.tool_formats.families: typed_values json_formats literal_formats tagged_formats
langchain_mara.text.tool_formats: table call_parts reading answer conversation
langchain_mara.grammar: specification engine constraint
langchain_mara.serving: ray_runtime scheduler mailbox completion generation_config settings beginning recording
    prompt_scores
langchain_mara.serving.vllm_plugin: settings at_hand layer processor
langchain_mara.gates: fitting
langchain_mara: _base _messages
langchain_mara.chat: configuration conversation prompts token_count tool_choice offer profile structured_output running
langchain_mara: chat_models llms custom_generate
langchain_mara.hooks: generate_method
langchain_mara: cli
langchain_mara.serving.vllm_plugin: command
langchain_mara.server: settings errors served
langchain_mara.server.reading: body
langchain_mara.server.protocol: messages fields decisions events answers chat completions output_items
    response_input responses
langchain_mara.server.playground: page
langchain_mara.server.telemetry: spans
langchain_mara.server: metrics state gatekeeper answering app process
langchain_mara.server.ray_serve: replica figures front running
langchain_mara.server: command

langchain_mara_training.storage: defaults atomic progress callbacks records settings distributed lock
langchain_mara_training.storage.identity: content_digest job_identity
langchain_mara_training.storage: job_checkpoint model_card
langchain_mara_training.engines: blocks ray_data
langchain_mara_training.data: column_formats known_datasets messages row_values row_report feedback files sources
    readers
langchain_mara_training.generation: prompts states
langchain_mara_training.rewards: calling weighted preference_reward checkpoint_loading adapter_loading reward_model
    published
langchain_mara_training.rewards.fitted: bradley_terry features saved_head state_reward
langchain_mara_training.rewards: specs
langchain_mara_training.generation: generate costs answer_file
langchain_mara_training.labeling: shard_list token_labels shards answer_tokens answer_store preference
    rollout_options prompt_rows rollout drawn_pairs
langchain_mara_training.evaluation: divergence systems reward_guided evaluate preference_rate comparison_store scoring
    results comparison rescoring
langchain_mara_training.evaluation.report: figures page retrace
langchain_mara_training.calibration: searches measurements calibrate
langchain_mara_training: run_folder
langchain_mara_training.paper: settings paper_tables render
langchain_mara_training.fitting: state_dataset networks net fit_loop temperature validation fit_job pair_scores
    predictions classifier
langchain_mara_training.distillation: verdicts distill
langchain_mara_training.reinforcement: actor_critic penalties environment replay_buffer rollout_workers tracking recipe
    training_loop setup sac
langchain_mara_training: aligner
langchain_mara_training.demo: topics corpus
langchain_mara_training.demo.smollm2: model pairs questions own_answers side_by_side training
langchain_mara_training.demo: dialogues judge measure train_tokenizer train_model build train_agent
langchain_mara_training.jobs: inputs engines examples label fit distill calibrate evaluate rl generate
langchain_mara_training.commands: options examples generate demo label fit rl evaluate report main
"""

EXPECTED_ALL = [
    "ChatMara", "DecodingOptions", "EntropyGate", "LookAheadAgent", "MaraAgent", "MaraError", "MaraLLM",
    "MixtureAgent", "TrustGate", "__version__", "mara_generate",
]  # fmt: skip
EXPECTED_TRAINING = [
    "Aligner", "Answer", "BeaverReward", "BestOf", "CalibratedDial", "Comparison", "CorrectorBaseline", "Decoded",
    "Decoding",
    "Distillation", "EnvironmentOptions", "JobCallback", "JobProgress", "MaraAligner", "MaraClassifier", "MaraSAC",
    "Preference",
    "PreferenceLabeler", "PreferenceReward", "Recipe", "RewardGuided", "RolloutLabeler", "RolloutOptions",
    "SequenceClassificationReward", "StateReward", "System", "TokenLabels", "UltraRMReward", "UpdateOptions",
    "WeightedRewards", "ZiyaReward", "best_of_n", "calibrate", "compare", "decode_system", "distill", "preference_rate",
    "rescore", "retrace", "write_report",
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
PACKAGES = {
    ".".join((package, *file.relative_to(root).parent.parts)): file
    for package, root in SOURCES.items()
    for file in root.rglob("__init__.py")
}
EACH_FILE = pytest.mark.parametrize("name", sorted({**MODULES, **{f"{name}.__init__": 0 for name in PACKAGES}}))
TOP_LEVEL_TESTS = {
    "structure",
    "docs",
    "readme",
    "start_up",
    "benchmarks",
    "real_benchmark",
    "benchmark_tables",
    "gpu_benchmark",
    "agents_benchmark",
}


def imported_modules(name: str, text: str) -> set[str]:
    """What a file imports at run time, wherever in it; the body of `if TYPE_CHECKING` does not count.

    A public name counts as the module that defines it, and a text that is a module's name as an import of that module,
    because `import_module` takes one.

    Args:
        name: Full name of the module, for relative imports.
        text: Its source.
    """
    tree = ast.parse(text)
    type_checking = [node for node in ast.walk(tree) if isinstance(node, ast.If) and _is_type_checking(node.test)]
    skipped = {inner for node in type_checking for child in node.body for inner in ast.walk(child)}
    imports: set[str] = set()
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.ImportFrom):
            parents = name.split(".")[: -node.level] if node.level else []
            module = ".".join(filter(None, (*parents, node.module)))
            imports |= {_defining_module(module, alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            imports |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Constant) and node.value in PLACE:
            imports.add(str(node.value))
    return imports


def _is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _defining_module(module: str, name: str) -> str:
    package = {"langchain_mara": langchain_mara, "langchain_mara_training": langchain_mara_training}.get(module)
    public = {} if package is None else {"__version__": "_version", **package._MODULES}
    if name in public:
        return f"{module}.{public[name]}"
    submodule = f"{module}.{name}"
    return submodule if submodule in PLACE or module in PACKAGES else module


def backward_imports(name: str, text: str) -> set[str]:
    """What a file imports of our modules that come after it, or of folders as a whole, or that are in no list.

    The `__init__` of a folder may import what its last module may; those of the two packages only the version.
    """
    ours = {module for module in imported_modules(name, text) if module.partition(".")[0] in SOURCES}
    return {module for module in ours if PLACE.get(module, len(PLACE)) >= place_of(name)}


def place_of(name: str) -> float:
    """Place of a file in the order."""
    folder, _, leaf = name.rpartition(".")
    if leaf != "__init__":
        return PLACE[name]
    if folder in SOURCES:
        return PLACE["langchain_mara._version"] + 0.5
    return max((place for module, place in PLACE.items() if module.startswith(f"{folder}.")), default=0)


def test_public_names() -> None:
    assert sorted(langchain_mara.__all__) == EXPECTED_ALL
    assert all(hasattr(langchain_mara, name) for name in EXPECTED_ALL)
    assert sorted(langchain_mara_training.__all__) == EXPECTED_TRAINING
    assert all(hasattr(langchain_mara_training, name) for name in EXPECTED_TRAINING)


def test_every_module_is_in_the_list() -> None:
    assert set(MODULES) == set(LISTED)
    assert len(LISTED) == len(PLACE)


@EACH_FILE
def test_imports_point_one_way(name: str) -> None:
    file = PACKAGES[name.removesuffix(".__init__")] if name.endswith(".__init__") else MODULES[name]
    assert backward_imports(name, file.read_text(encoding="utf-8")) == set()


@pytest.mark.parametrize(
    ("name", "text", "backward"),
    [
        ("policy.cache", "from langchain_mara.policy.model import PolicyModel", "policy.model"),
        ("policy.cache", "import langchain_mara.policy.model as model", "policy.model"),
        ("policy.cache", "from langchain_mara.policy import model", "policy.model"),
        ("policy.cache", "from .model import PolicyModel", "policy.model"),
        ("policy.cache", "from ..decoding import loop", "decoding.loop"),
        ("policy.cache", "from . import model", "policy.model"),
        ("policy.cache", "import_module('langchain_mara.policy.model')", "policy.model"),
        ("policy.cache", "if TYPE_CHECKING:\n    pass\nelse:\n    import langchain_mara.llms", "llms"),
        ("policy.model", "def f():\n    from langchain_mara import MaraLLM", "llms"),
        ("policy.model", "from langchain_mara import serving", "serving"),
        ("policy.model", "from langchain_mara import *", "*"),
        ("policy.model", "import langchain_mara", ""),
        ("policy.__init__", "def f():\n    import langchain_mara.llms", "llms"),
        ("__init__", "from langchain_mara.llms import MaraLLM", "llms"),
        ("agents.agent", "from langchain_mara.agents import unheard_of", "agents.unheard_of"),
    ],
)
def test_an_import_turned_round_is_noticed(name: str, text: str, backward: str) -> None:
    assert backward_imports(f"langchain_mara.{name}", text) == {f"langchain_mara.{backward}".rstrip(".")}


def test_what_is_only_for_type_checkers_may_look_ahead() -> None:
    text = "if TYPE_CHECKING:\n    from langchain_mara.serving.scheduler import Scheduler"
    assert backward_imports("langchain_mara.policy.loaded_model", text) == set()


def test_core_never_imports_training() -> None:
    root = SOURCES["langchain_mara"]
    assert not any("langchain_mara_training" in file.read_text(encoding="utf-8") for file in _code_files(root))


def _code_files(root: Path) -> list[Path]:
    """All modules but the command's, whose docstring says what the training package adds."""
    return [file for file in root.rglob("*.py") if file.name not in ("cli.py", "__init__.py")]


def test_few_modules_import_langchain() -> None:
    users = {
        name
        for name, file in MODULES.items()
        if any(
            module.startswith("langchain_core") for module in imported_modules(name, file.read_text(encoding="utf-8"))
        )
    }
    outside_chat = {name for name in users if not name.startswith("langchain_mara.chat.")}
    assert outside_chat <= {f"langchain_mara.{name}" for name in ("_base", "_messages", "chat_models", "llms")}


def test_only_loading_and_agents_call_from_pretrained() -> None:
    callers = {
        name
        for name, file in modules_of("langchain_mara").items()
        if ".from_pretrained(" in file.read_text(encoding="utf-8")
    }
    assert {name.split(".")[1] for name in callers} <= {"loading", "agents"}


@pytest.mark.parametrize("file", [*MODULES.values(), *PACKAGES.values()], ids=lambda file: str(file.relative_to(ROOT)))
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
    for file in here.rglob("test_*.py"):
        path = ".".join(file.relative_to(here).parent.parts)
        subject = file.stem.removeprefix("test_")
        assert path in MODULES or f"{path}.{subject}" in MODULES or (not path and subject in TOP_LEVEL_TESTS), file


def test_nothing_generic_reaches_site_packages() -> None:
    packages = (ROOT / "pyproject.toml").read_text().split("[tool.hatch.build.targets.wheel]")[1].splitlines()[1]
    assert packages == 'packages = ["langchain_mara", "training/langchain_mara_training"]'
