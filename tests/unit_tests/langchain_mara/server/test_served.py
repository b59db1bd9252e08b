"""A model and its agents by name."""

import pytest

from langchain_mara import MaraLLM
from langchain_mara.exceptions import OptionsError
from langchain_mara.server.errors import ApiError
from langchain_mara.server.served import ServedModels


def test_names(llm: MaraLLM) -> None:
    models = ServedModels(llm, "org/m", {"a": llm.agent, "b": llm.agent})  # type: ignore[dict-item]
    assert [model.name for model in models] == ["org/m", "org/m+a", "org/m+b"]
    assert models.find("org/m").llm.agent is None
    assert models.find(None) is models.default is models.find("org/m+a")
    assert models.find("org/m", "b") is models.find("org/m+b")
    assert models.find("org/m+b", "none") is models.find("org/m")
    assert len({id(model.llm.model) for model in models}) == 1


def test_without_agents_the_plain_model_is_the_default(llm: MaraLLM) -> None:
    assert ServedModels(llm, "m", {}).default.agent is None


def test_refusals(llm: MaraLLM) -> None:
    with pytest.raises(OptionsError, match="cannot be named none"):
        ServedModels(llm, "m", {"none": llm.agent})  # type: ignore[dict-item]
    models = ServedModels(llm, "m", {})
    with pytest.raises(ApiError, match="There are: m") as missing:
        models.find("m+a")
    assert missing.value.status == 404
    with pytest.raises(ApiError, match="There are: none"):
        models.find("m", "a")
    template, llm.tokenizer.chat_template = llm.tokenizer.chat_template, None
    try:
        silent = ServedModels(llm, "m", {})
        with pytest.raises(ApiError, match="no chat template"):
            silent.chat_of(silent.default)
    finally:
        llm.tokenizer.chat_template = template
