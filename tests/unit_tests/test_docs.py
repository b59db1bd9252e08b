"""The documentation tells the truth: options are complete, links and paths lead somewhere, code compiles and runs."""

import ast
import contextlib
import importlib
import inspect
import io
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import langchain_mara_training
import pytest
from langchain_mara_training import EnvironmentOptions, Recipe, RolloutOptions, UpdateOptions
from pydantic import BaseModel

import langchain_mara
from langchain_mara import ChatMara, DecodingOptions, MaraLLM

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = [*PAGES, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md"))]
OPTION_CLASSES = [DecodingOptions, MaraLLM, ChatMara, RolloutOptions, EnvironmentOptions, UpdateOptions, Recipe]
PACKAGES = ("langchain_mara", "training/langchain_mara_training")

_PYTHON = re.compile(r"^```python\n(.*?)^```(?:\s*^```text\n(.*?)^```)?", re.MULTILINE | re.DOTALL)
_TABLE = re.compile(r"^```\{option-table\} (\S+)\n(?::without: (\S+)\n)?```$", re.MULTILINE)
_PATH = re.compile(r"`([\w./-]+/|[\w./-]+\.(?:py|md|yaml|toml|png|ipynb))`")
_TOP_LEVEL = ("langchain_mara/", "training/", "docs/", "tests/", "benchmarks/", "cookbook/", ".github/")
_README_BYTES = 8_000

by_name = pytest.mark.parametrize("page", TEXTS, ids=lambda page: str(page.relative_to(ROOT)))


@pytest.fixture
def extension(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(DOCS / "extensions")
    return importlib.import_module


def imported(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def options_on_page(extension: Any, model: type[BaseModel]) -> dict[str, list[str]]:
    """What docs/options.md shows of a model's options, by name: its own table and the one it refers to."""
    tables = {imported(name): without for name, without in _TABLE.findall((DOCS / "options.md").read_text("utf-8"))}
    without = imported(tables[model]) if tables[model] else None
    table = extension("option_tables").option_table(model, without)
    rows = {row[0].strip("`"): row[1:] for row in map(cells_of, table.splitlines())}
    return rows if without is None else {**options_on_page(extension, without), **rows}


def cells_of(line: str) -> list[str]:
    """Cells of a line of a Markdown table."""
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def words(text: str) -> str:
    return " ".join(text.split())


# Options


@pytest.mark.parametrize("model", OPTION_CLASSES, ids=lambda model: model.__name__)
def test_every_option_is_on_the_page_with_default_and_description(extension: Any, model: type[BaseModel]) -> None:
    on_page = options_on_page(extension, model)
    ours = [owner for owner in model.__mro__ if owner.__module__.startswith("langchain_mara")]
    sources = words("\n".join(inspect.getsource(importlib.import_module(owner.__module__)) for owner in ours))
    langchain = {name for owner in model.__mro__ if owner not in ours for name in inspect.get_annotations(owner)}
    fields = {name: field for name, field in model.model_fields.items() if name not in langchain}
    assert fields
    for name, field in fields.items():
        _, default, description = on_page[name]
        value = field.get_default(call_default_factory=True)
        if field.is_required():
            assert default == "required"
        else:
            assert default.startswith(f"`{type(value).__name__}()`" if isinstance(value, BaseModel) else f"`{value!r}`")
        assert len(description) > 5
        assert description in sources


def test_an_option_without_description_is_refused(
    extension: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ("class Options(BaseModel):", "    told: int = 1", '    """Told."""', "    untold: int = 2", "")
    text = "from pydantic import BaseModel\n\n\n" + "\n".join(lines)
    (tmp_path / "langchain_mara_unheard.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    model = importlib.import_module("langchain_mara_unheard").Options
    with pytest.raises(ValueError, match="Options has fields without a description: untold"):
        extension("option_tables").option_rows(model)


def test_a_table_that_leaves_a_field_out_is_noticed(extension: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = extension("option_tables")
    rows = tables.option_rows
    monkeypatch.setattr(tables, "option_rows", lambda model: [row for row in rows(model) if row.name != "top_p"])
    with pytest.raises(KeyError, match="top_p"):
        test_every_option_is_on_the_page_with_default_and_description(extension, DecodingOptions)


def test_every_public_name_has_an_entry_in_the_api_pages() -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in (DOCS / "api").glob("*.md"))
    for package in (langchain_mara, langchain_mara_training):
        names = [name for name in package.__all__ if name not in ("__version__", "Aligner", "MaraError")]
        missing = [name for name in names if not re.search(rf":: {package.__name__}\.{name}$", pages, re.MULTILINE)]
        assert missing == []


# Links and paths


def links_of(page: Path) -> list[str]:
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", prose) if not link.startswith("http")]


def anchors_of(page: Path) -> set[str]:
    """Names of a page's headings, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@by_name
def test_relative_links_lead_somewhere(page: Path) -> None:
    for link in links_of(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), link
        # The generated pages have no place for other Markdown files.
        assert page not in PAGES or target.suffix != ".md" or target.resolve().is_relative_to(DOCS), link
        assert not anchor or anchor in anchors_of(target), link


def paths_of(text: str) -> Iterator[str]:
    """Paths that a text names; those of a table headed "in `FOLDER/`" are relative to that folder."""
    folder = ""
    for line in text.splitlines():
        head = re.match(r"\| in `([\w/]+/)` \|", line)
        folder = head.group(1) if head else folder if line.startswith("|") else ""
        for path in _PATH.findall(line):
            if path.startswith(_TOP_LEVEL):
                yield path
            elif folder and not head:
                yield folder + path


@by_name
def test_named_paths_exist(page: Path) -> None:
    named = [path for path in paths_of(page.read_text(encoding="utf-8")) if "PATH" not in path]
    # Results of a benchmark are not kept.
    assert [path for path in named if not (ROOT / path).exists() and not path.startswith("benchmarks/results")] == []


def test_the_architecture_names_every_folder() -> None:
    named = set(paths_of((DOCS / "architecture.md").read_text(encoding="utf-8")))
    folders = {
        f"{package}/{folder.name}/"
        for package in PACKAGES
        for folder in (ROOT / package).iterdir()
        if folder.is_dir() and any(folder.glob("*.py"))
    }
    assert folders - named == set()


def test_diagrams_name_files_that_exist(extension: Any) -> None:
    pictures = extension("mermaid_pictures")
    diagrams = [block for page in PAGES for block in pictures.blocks(page.read_text(encoding="utf-8"))]
    assert len(diagrams) == 2
    for diagram in diagrams:
        files = re.findall(r"[a-z_/]+\.py", diagram)
        assert len(files) > 5
        assert [file for file in files if not any((ROOT / package / file).exists() for package in PACKAGES)] == []
        assert pictures.is_current(diagram), "run python docs/extensions/mermaid_pictures.py"
        assert not pictures.is_current(diagram + " ")


# Code


def code_of(page: Path) -> list[tuple[str, str]]:
    """Python blocks of a page, and what they print; nothing for blocks that are only shown."""
    return _PYTHON.findall(page.read_text(encoding="utf-8"))


@by_name
def test_python_blocks_compile(page: Path) -> None:
    for code, _ in code_of(page):
        compile(code, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_pages_start_with_code(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert re.match(r"# .+\n\n```", text)


RUNNING = [page for page in PAGES if any(printed for _, printed in code_of(page))]


@pytest.mark.slow
@pytest.mark.parametrize("page", RUNNING, ids=lambda page: str(page.relative_to(DOCS)))
@pytest.mark.filterwarnings("ignore:.*nothing was learn.*")
def test_blocks_print_what_the_page_says(page: Path) -> None:
    """Blocks with an output run one after another, as a reader would run them."""
    module = ModuleType("page")
    for code, printed in code_of(page):
        if printed:
            with contextlib.redirect_stdout(io.StringIO()) as output:
                exec(compile(code, str(page), "exec"), module.__dict__)
            assert output.getvalue().strip() == printed.strip()


# Size


def test_the_readme_stays_short() -> None:
    assert (ROOT / "README.md").stat().st_size <= _README_BYTES


def test_every_row_about_langchain_names_a_test_that_is_there() -> None:
    rows = [cells_of(line) for line in (DOCS / "langchain.md").read_text("utf-8").splitlines() if line.startswith("|")]
    head, _, *rows = rows
    assert head[-2:] == ["ChatMara", "test"]
    assert len(rows) > 20
    for row in rows:
        file, _, name = row[-1].strip("`").partition("::")
        assert f"def {name}(" in (ROOT / file).read_text("utf-8") or not name, row[0]
