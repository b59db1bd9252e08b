"""What LangChain's packaging check runs alone (`pytest -m compile`): all tests and modules import."""

import importlib
import pkgutil

import langchain_mara_training
import pytest

import langchain_mara


@pytest.mark.compile
def test_every_module_imports() -> None:
    for package in (langchain_mara, langchain_mara_training):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            try:
                importlib.import_module(module.name)
            except ModuleNotFoundError as error:  # vLLM needs an environment of its own
                if error.name != "vllm" or ".vllm_plugin." not in module.name:
                    raise
