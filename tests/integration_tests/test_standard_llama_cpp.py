"""LangChain's standard suites once more, with the model that knows them by heart run by llama.cpp."""

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from gguf_files import write_gguf
from integration_tests.test_standard import EXPLAINED_SKIPS as EXPLAINED
from integration_tests.test_standard import Overridable, Parrot
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests
from parrot import FOLDER

from langchain_mara.loading.models import load_model
from langchain_mara.policy.llama_cpp.model import LlamaCppModel
from langchain_mara.policy.llama_cpp.settings import LlamaCppSettings

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: make llamacpp")

EXPLAINED_SKIPS = {
    **EXPLAINED,
    "test_json_mode": "the parrot knows no JSON but that of calls; test_standard takes a model that does",
}


@cache
def converted() -> dict[str, Any]:
    """The model from a GGUF file, with its own tokenizer, whose rules for cutting words llama.cpp does not know."""
    model, tokenizer = load_model(FOLDER, device="cpu", dtype="float32")
    with tempfile.TemporaryDirectory() as folder:
        file = write_gguf(model, tokenizer, Path(folder, "parrot.gguf"))  # type: ignore[arg-type]
        loaded = LlamaCppModel(file, LlamaCppSettings(n_ctx=4096, n_threads=1))
    loaded.generation_config = model.generation_config
    return {"model": loaded, "tokenizer": tokenizer, "model_id": "parrot"}


class LlamaCppParrot(Parrot):
    """The same parrot on the other backend."""

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return converted()


class TestChatMaraUnit(LlamaCppParrot, ChatModelUnitTests):
    """Constructor, tools and tracing parameters."""


class TestChatMaraIntegration(Overridable, LlamaCppParrot, ChatModelIntegrationTests):
    """Real calls: text, streams, events, usage, tools, structured output, agents."""
