"""Tiny models of several families, in transformers and as GGUF files that llama.cpp has loaded."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

from families import tiny_model
from gguf_files import write_gguf
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from langchain_mara.policy.llama_cpp.model import LlamaCppModel
from langchain_mara.policy.llama_cpp.settings import LlamaCppSettings


@pytest.fixture(scope="session")
def gguf_file(
    make_tokenizer: Callable[[], PreTrainedTokenizerFast], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Writes the tiny model of a family, once."""
    folder = tmp_path_factory.mktemp("gguf")
    return cache(lambda family: write_gguf(tiny_model(family), make_tokenizer(), folder / f"{family}.gguf"))


@pytest.fixture(scope="session")
def loaded(gguf_file: Callable[[str], Path]) -> Callable[..., LlamaCppModel]:
    """Loads the tiny model of a family, once."""
    return cache(lambda family, cells=2048: LlamaCppModel(gguf_file(family), LlamaCppSettings(cells, n_threads=1)))


@pytest.fixture(scope="session")
def reference() -> Callable[[str], PreTrainedModel]:
    """The same model in transformers, in float64."""
    return cache(tiny_model)
