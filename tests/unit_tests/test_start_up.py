"""What starting costs, by the modules that are loaded: times depend on the machine, modules do not."""

import subprocess
import sys
from functools import cache

import pytest

REFERENCE = """
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
import langchain_core.language_models.chat_models, langchain_core.language_models.llms
"""
"""What first use needs in any case."""
SMALL = (
    "langchain_mara", "langchain_core", "safetensors", "transformers.cache_utils", "huggingface_hub.hub_mixin",
    "pydantic", "statistics", "_statistics",
)  # fmt: skip
"""Beginnings of the names of modules that first use may load beyond that: this package, and what costs milliseconds."""
pytestmark = pytest.mark.slow
HEAVY = ("torch", "transformers", "langchain_core")


@cache
def loaded_modules(code: str) -> set[str]:
    """Names of the modules that a fresh interpreter has loaded after running some code."""
    command = [sys.executable, "-c", f"{code}\nimport sys; print('loaded:', *sys.modules)"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(result.stdout.rpartition("loaded:")[2].split())


@pytest.mark.parametrize(
    "code",
    [
        "import langchain_mara; dir(langchain_mara)",
        "from langchain_mara import DecodingOptions, MaraError",
        "import langchain_mara_training; dir(langchain_mara_training)",
    ],
)
def test_importing_the_packages_loads_nothing_heavy(code: str) -> None:
    assert loaded_modules(code).isdisjoint(HEAVY)


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"], ["label", "--help"], ["fit", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = f"""
from langchain_mara_training.commands.main import app
try:
    app({arguments}, prog_name="mara")
except SystemExit as end:
    assert end.code == 0
"""
    assert loaded_modules(code).isdisjoint(HEAVY)


@pytest.mark.parametrize("name", ["MaraLLM", "ChatMara"])
def test_first_use_loads_what_torch_transformers_and_langchain_load(name: str) -> None:
    extra = loaded_modules(f"from langchain_mara import {name}") - loaded_modules(REFERENCE)
    assert {module for module in extra if not module.startswith(SMALL)} == set()
