"""Middleware of LangChain's documentation in which the model does more than answer, on a scripted tiny model."""

from collections.abc import Callable
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import (
    LLMToolSelectorMiddleware,
    ModelRequest,
    SummarizationMiddleware,
    TodoListMiddleware,
    wrap_model_call,
)
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import tool
from parrot import AGENT_FOLDER
from parrot_lessons import call
from scripted import FORCED, turns_chat

ASKED: dict[str, Any] = {"messages": [HumanMessage("What is the weather in Paris?")]}
SUNNY = "It is sunny in Paris today."


@tool
def get_weather(city: str) -> str:
    """Get the weather in a city."""
    return f"It is sunny in {city}."


@tool
def calculate(expression: str) -> str:
    """Calculate a quotient, such as 6 / 2."""
    return expression


def texts(answer: dict[str, Any]) -> list[str]:
    return [message.text for message in answer["messages"]]


# docs.langchain.com/oss/python/langchain/middleware/built-in


@pytest.mark.slow
def test_a_to_do_list() -> None:
    todos = [{"content": "Book a hotel", "status": "in_progress"}]
    turns = {
        ("user", "Plan a trip."): call("write_todos", todos=todos),
        ("tool", f"Updated todo list to {todos}"): "I planned it.",
    }
    answer = create_agent(turns_chat(AGENT_FOLDER, turns), [], middleware=[TodoListMiddleware()]).invoke(
        {"messages": [HumanMessage("Plan a trip.")]}
    )
    assert answer["todos"] == todos  # type: ignore[typeddict-item]
    assert texts(answer)[-1] == "I planned it."


@pytest.mark.slow
def test_a_model_selects_the_tools_of_another() -> None:
    opening = '<tool_call>\n{"name": "ToolSelectionResponse", "arguments": '
    chat = turns_chat(
        AGENT_FOLDER,
        {
            ("user", f"What is the weather in Paris?{FORCED}{opening}"): '{"tools": ["get_weather"]}}\n</tool_call>',
            ("user", "What is the weather in Paris?"): call("get_weather", city="Paris"),
            ("tool", "It is sunny in Paris."): SUNNY,
        },
    )
    offered = []

    @wrap_model_call
    def see(request: ModelRequest, handler: Callable[..., Any]) -> Any:
        offered.append([each.name for each in request.tools])  # type: ignore[union-attr]
        return handler(request)

    agent: Any = create_agent(
        chat, [get_weather, calculate], middleware=[LLMToolSelectorMiddleware(model=chat, max_tools=1), see]
    )
    answer = agent.invoke(ASKED)
    assert (offered[0], texts(answer)[-1]) == (["get_weather"], SUNNY)


@pytest.mark.slow
def test_earlier_messages_are_summarized() -> None:
    chat = turns_chat(
        AGENT_FOLDER,
        {
            ("", "Sum it up."): "Bob said hello.",
            ("user", "What is the weather in Paris?"): SUNNY,
        },
    )
    summaries = SummarizationMiddleware(
        chat, trigger=("messages", 3), keep=("messages", 1), summary_prompt="{messages}\nSum it up."
    )
    said = [HumanMessage("Hi! My name is Bob."), AIMessage("Hello Bob!"), *ASKED["messages"]]
    agent: Any = create_agent(chat, [], middleware=[summaries])
    summary, question, answer = texts(agent.invoke({"messages": said}))
    assert "Bob said hello." in summary
    assert (question, answer) == ("What is the weather in Paris?", SUNNY)


# docs.langchain.com/oss/python/langchain/multi-agent/subagents


@pytest.mark.slow
async def test_an_agent_is_a_tool_of_another() -> None:
    chat = turns_chat(
        AGENT_FOLDER,
        {
            ("user", "What is the weather in Paris?"): call("ask_weather_agent", question="Paris?"),
            ("user", "Paris?"): call("get_weather", city="Paris"),
            ("tool", "It is sunny in Paris."): "Sunny.",
            ("tool", "Sunny."): SUNNY,
        },
    )
    weather_agent: Any = create_agent(chat, [get_weather], name="weather_agent")

    @tool
    def ask_weather_agent(question: str) -> str:
        """Ask an agent that knows the weather."""
        return str(weather_agent.invoke({"messages": [HumanMessage(question)]})["messages"][-1].text)

    supervisor: Any = create_agent(chat, [ask_weather_agent])
    for answer in (supervisor.invoke(ASKED), await supervisor.ainvoke(ASKED)):
        assert texts(answer)[-2:] == ["Sunny.", SUNNY]
