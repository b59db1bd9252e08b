"""Promised output in chats: response formats, agents with a provider's strategy, and tools beside a schema."""

import copy
import json
from typing import Any

import pytest
from grammars import TOKENIZER, json_llm, json_model, promised
from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy
from langchain_core.caches import InMemoryCache
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from pydantic import BaseModel, Field

from langchain_mara.chat_models import ChatMara

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if tools %}<tool_call>{% endif %}<|assistant|>"
)
TWO_CALLS = "\n".join(f'<tool_call>{{"name": "add", "arguments": {{"a": {n}}}}}</tool_call>' for n in (1, 2))


class Weather(BaseModel):
    """What the weather is like."""

    degrees: int = Field(ge=-40, le=50)
    sunny: bool


@tool
def add(a: int) -> int:
    """Adds one."""
    return a + 1


@pytest.fixture(scope="module")
def chat() -> ChatMara:
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.chat_template = TEMPLATE
    llm = json_llm(model=json_model(), tokenizer=tokenizer, max_new_tokens=60)
    return llm.as_chat()


@pytest.mark.parametrize("how", ["invoke", "stream", "batch"])
def test_a_schema_is_kept(chat: ChatMara, how: str) -> None:
    bound = chat.bind(response_format=promised(Weather.model_json_schema()))
    ask = {
        "invoke": lambda: bound.invoke("Hi").text,
        "stream": lambda: "".join(chunk.text for chunk in bound.stream("Hi")),
        "batch": lambda: bound.batch(["Hi"])[0].text,
    }
    assert Weather.model_validate_json(ask[how]())


async def test_so_it_is_in_async_calls(chat: ChatMara) -> None:
    answer = await chat.ainvoke("Hi", response_format=Weather)
    assert Weather.model_validate_json(answer.text)
    assert answer.response_metadata["finish_reason"] == "stop"


def test_an_agent_uses_the_provider_s_strategy(chat: ChatMara) -> None:
    agent = create_agent(chat, response_format=ProviderStrategy(Weather))
    result = agent.invoke({"messages": [("user", "Hi")]})
    assert isinstance(result["structured_response"], Weather)


def test_an_agent_with_tools_may_still_call_them(chat: ChatMara) -> None:
    sampled = chat.model_copy(update={"order": "sampled", "max_new_tokens": 80})
    bound = sampled.bind_tools([add], response_format=promised(Weather.model_json_schema(), strict=True))
    answers = [bound.invoke("Hi", seed=seed) for seed in range(12)]
    called = [answer for answer in answers if answer.tool_calls or answer.invalid_tool_calls]
    free = [
        answer for answer in answers if answer not in called and answer.response_metadata["finish_reason"] == "stop"
    ]
    assert called
    assert free
    for answer in free:
        assert Weather.model_validate_json(answer.text)
    for answer in called:
        assert {call["name"] for call in [*answer.tool_calls, *answer.invalid_tool_calls]} <= {"add", None, ""}


def test_a_forced_call_is_not_held_to_the_schema(chat: ChatMara) -> None:
    bound = chat.bind_tools([add], tool_choice="add")
    plain, formatted = bound.invoke("Hi"), bound.invoke("Hi", response_format=Weather)
    assert _calls(formatted) == _calls(plain)


def test_one_call_at_most(chat: ChatMara) -> None:
    exact = "".join(f"[{letter}]" if letter not in "\\^" else f"\\{letter}" for letter in TWO_CALLS)
    bound = chat.bind_tools([add], regex=exact, max_new_tokens=200)
    assert [call["args"] for call in bound.invoke("Hi").tool_calls] == [{"a": 1}, {"a": 2}]
    single = bound.invoke("Hi", parallel_tool_calls=False)
    assert [call["args"] for call in single.tool_calls] == [{"a": 1}]
    assert len(bound.invoke("Hi", parallel_tool_calls=True).tool_calls) == 2


def test_the_cache_tells_them_apart(chat: ChatMara) -> None:
    cached = chat.model_copy(update={"cache": InMemoryCache()})
    for options in ({}, {"choice": ["a"]}, {"choice": ["b"]}, {"response_format": Weather}):
        cached.invoke("Hi", **options)
    bound = cached.bind_tools([add])
    bound.invoke("Hi", parallel_tool_calls=False)
    bound.invoke("Hi", parallel_tool_calls=True)
    assert len(cached.cache._cache) == 6


def _calls(answer: AIMessage) -> str:
    calls: list[Any] = [*answer.tool_calls, *answer.invalid_tool_calls]
    return json.dumps([[call["name"], call["args"]] for call in calls])
