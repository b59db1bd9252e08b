"""LangChain's standard suites on ChatMara, with a tiny model that knows the suite's conversations by heart."""

from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests
from parrot import FOLDER
from scripted import turns_chat

from langchain_mara import ChatMara
from langchain_mara.loading.models import load_model_once

JOKE = '{"setup": "Why did the cat sit on the computer?", "punchline": "To watch the mouse!"}'


class Parrot:
    """What both suites are told about the model under test."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatMara

    @property
    def chat_model_params(self) -> dict[str, Any]:
        model, tokenizer = load_model_once(str(FOLDER), "cpu", "float32")
        return {"model": model, "tokenizer": tokenizer, "model_id": "parrot"}

    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        # A local model knows no max_retries and no api_key, and refuses what it does not know.
        return {"temperature": 0, "max_tokens": 100, "timeout": 60, "stop": []}


class Overridable:
    """A call may name another model: the same folder once more."""

    @property
    def supports_model_override(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return str(FOLDER)


class TestChatMaraUnit(Parrot, ChatModelUnitTests):
    """Constructor, tools and tracing parameters."""


class TestChatMaraIntegration(Overridable, Parrot, ChatModelIntegrationTests):
    """Real calls: text, streams, events, usage, tools, structured output, agents."""

    @property
    def supports_json_mode(self) -> bool:
        return True

    @pytest.fixture
    def model(self, request: Any) -> BaseChatModel:
        if request.node.originalname == "test_json_mode":
            # The parrot knows no JSON but that of calls. This model does, and the grammar lets it say nothing else.
            return turns_chat(FOLDER, {("", "Return nothing other than JSON."): JOKE})
        changes = getattr(request, "param", None) or {}
        return ChatMara(**{**self.standard_chat_model_params, **self.chat_model_params, **changes})


# conftest.py fails every other test of this module that is skipped.
EXPLAINED_SKIPS = {
    "test_init_from_env": "there is nothing a local model reads from the environment",
    "test_serdes": "is_lc_serializable is False: weights are no JSON, and third-party classes fail on loading",
    "test_pdf_inputs": "the model reads text only",
    "test_audio_inputs": "the model reads text only",
    "test_image_inputs": "the model reads text only",
    "test_image_tool_message": "the model reads text only",
    "test_pdf_tool_message": "the model reads text only",
    "test_anthropic_inputs": "Anthropic's content blocks hold images",
    "test_stream_time": "times recorded network traffic (VCR), and there is none",
}
