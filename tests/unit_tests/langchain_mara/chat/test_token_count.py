"""Token counts of conversations, and of the parts that a template refuses."""

from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage, trim_messages
from langchain_core.messages.tool import tool_call
from transformers import PreTrainedTokenizerFast

from langchain_mara import ChatMara, MaraLLM
from langchain_mara.exceptions import PromptError

CALLED = AIMessage("", tool_calls=[tool_call(name="f", args={"a": 1}, id="1")])
STRICT = (
    "{% for message in messages %}{% if message.role != ['user', 'assistant'][loop.index0 % 2] %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}<|user|>{{ message.content }}{% endfor %}"
)


@pytest.fixture
def strict(llm: MaraLLM, make_tokenizer: Callable[[], PreTrainedTokenizerFast]) -> ChatMara:
    """A chat model whose template insists on an order of roles."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = STRICT
    return ChatMara(model=llm.model, tokenizer=tokenizer)


def test_a_whole_conversation_is_counted_as_it_is_encoded(strict: ChatMara) -> None:
    assert strict.get_num_tokens_from_messages([HumanMessage("hi")]) == len(strict._encode([HumanMessage("hi")], ()))


@pytest.mark.parametrize(
    ("messages", "tokens"),
    [
        ([], 0),
        ([AIMessage("hi")], 2),
        ([AIMessage("hi"), HumanMessage("hi")], 4),
        ([AIMessage("")], 1),
    ],
    ids=str,
)
def test_parts_are_counted_by_their_texts(strict: ChatMara, messages: list[Any], tokens: int) -> None:
    # "hi" is one token, and so is what the template puts around a message.
    assert strict.get_num_tokens_from_messages(messages) == tokens


def test_calls_and_tools_count(strict: ChatMara) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    assert strict.get_num_tokens_from_messages([CALLED]) > 20
    assert strict.get_num_tokens_from_messages([], tools=[tool]) > 20
    assert strict.get_num_tokens_from_messages([HumanMessage("hi")], tools=[tool]) > 20


def test_a_conversation_is_trimmed_by_the_models_own_count(strict: ChatMara) -> None:
    messages = [
        SystemMessage("be nice"),
        HumanMessage("hi"),
        CALLED,
        ToolMessage("7", tool_call_id="1"),
        HumanMessage("a"),
    ]
    kept = trim_messages(messages, token_counter=strict, max_tokens=14, include_system=True, start_on="human")
    assert kept == [messages[0], messages[-1]]


def test_media_have_no_number_of_tokens(strict: ChatMara) -> None:
    with pytest.raises(PromptError, match="holds image_url"):
        strict.get_num_tokens_from_messages([HumanMessage([{"type": "image_url", "image_url": {"url": "a"}}])])
