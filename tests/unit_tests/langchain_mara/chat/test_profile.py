"""What a chat model says of itself, and that another model says something else."""

from pathlib import Path

import pytest
from parrot import FOLDER

from langchain_mara import ChatMara, MaraLLM
from langchain_mara.chat.profile import profile_of


def test_a_profile_tells_what_the_model_and_its_template_can(llm: MaraLLM) -> None:
    profile = llm.as_chat().profile
    assert profile["max_input_tokens"] == 128
    assert not profile["tool_calling"]
    assert not profile["reasoning_output"]
    assert not profile["image_inputs"]
    assert profile["structured_output"]
    parrot = ChatMara.from_model_id(FOLDER, device="cpu").profile
    assert parrot["max_input_tokens"] == 2048
    assert parrot["tool_calling"]
    assert parrot["tool_choice"]


def test_a_name_that_langchain_does_not_know_is_left_out(llm: MaraLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("langchain_mara.chat.profile._KNOWN", {"tool_calling": bool})
    assert profile_of(llm.as_chat()) == {"tool_calling": False}
    monkeypatch.setattr("langchain_mara.chat.profile._KNOWN", None)
    assert profile_of(llm.as_chat())["max_input_tokens"] == 128


def test_a_template_that_thinks_is_told(llm: MaraLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = llm.as_chat()
    monkeypatch.setattr(chat.tokenizer, "chat_template", chat.tokenizer.chat_template + "{# <think></think> #}")
    assert ChatMara.from_llm(llm).profile["reasoning_output"]


def test_a_profile_can_be_given_and_is_kept_until_the_model_is_another(llm: MaraLLM, model_folder: Path) -> None:
    chat = llm.as_chat(profile={"max_input_tokens": 7})
    assert chat.with_agent(None).profile == {"max_input_tokens": 7}
    assert ChatMara(**dict(chat)).profile == {"max_input_tokens": 7}
    assert chat._on_model(str(model_folder), {}).profile["max_input_tokens"] == 128
