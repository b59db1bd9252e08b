"""Middleware of LangChain's documentation in which the model does more than answer, on a scripted tiny model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import (
    FilesystemFileSearchMiddleware,
    LLMToolEmulator,
    LLMToolSelectorMiddleware,
    ModelRequest,
    ModelRetryMiddleware,
    SummarizationMiddleware,
    TodoListMiddleware,
    wrap_model_call,
)
from langchain.tools import ToolRuntime
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command
from parrot import AGENT_FOLDER
from parrot_lessons import call
from scripted import FORCED, turns_chat

from langchain_mara import ChatMara

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


@pytest.mark.slow
def test_a_call_of_the_model_is_tried_again() -> None:
    attempts = []

    class Busy(ChatMara):
        def _answers(self, *args: Any, **kwargs: Any) -> Any:
            attempts.append(1)
            if len(attempts) < 3:
                raise TimeoutError("busy")
            return super()._answers(*args, **kwargs)

    chat = Busy.from_llm(turns_chat(AGENT_FOLDER, {("user", "What is the weather in Paris?"): SUNNY}))
    retry = ModelRetryMiddleware(max_retries=2, initial_delay=0.0, jitter=False)
    assert texts(create_agent(chat, [], middleware=[retry]).invoke(ASKED))[-1] == SUNNY
    assert len(attempts) == 3


@pytest.mark.slow
def test_a_model_plays_a_tool() -> None:
    turns = {
        ("user", "What is the weather in Paris?"): call("get_weather", city="Paris"),
        ("", "Introduce variation into your responses."): "It rains.",
        ("tool", "It rains."): "It rains in Paris.",
    }
    chat = turns_chat(AGENT_FOLDER, turns)
    agent: Any = create_agent(chat, [get_weather], middleware=[LLMToolEmulator(model=chat)])
    assert texts(agent.invoke(ASKED))[2:] == ["It rains.", "It rains in Paris."]


@pytest.mark.slow
def test_files_are_searched(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("egg")
    turns = {
        ("user", "What is the weather in Paris?"): call("glob_search", pattern="*.txt"),
        ("tool", "/a.txt"): "I found a file.",
    }
    search = FilesystemFileSearchMiddleware(root_path=str(tmp_path))
    agent: Any = create_agent(turns_chat(AGENT_FOLDER, turns), [], middleware=[search])
    assert texts(agent.invoke(ASKED))[2:] == ["/a.txt", "I found a file."]


# docs.langchain.com/oss/python/langchain/multi-agent/handoffs


@pytest.mark.slow
def test_an_agent_hands_over_to_another() -> None:
    @tool
    def transfer(runtime: ToolRuntime) -> Command[Any]:
        """Hand over to the sales department."""
        done = ToolMessage("You are with sales now.", tool_call_id=runtime.tool_call_id)
        update = {"messages": [runtime.state["messages"][-1], done]}
        return Command(goto="sales", update=update, graph=Command.PARENT)

    turns = {
        ("user", "What is the weather in Paris?"): call("transfer"),
        ("tool", "You are with sales now."): "We sell umbrellas.",
    }
    chat = turns_chat(AGENT_FOLDER, turns)
    builder = StateGraph(MessagesState)
    builder.add_node("support", create_agent(chat, [transfer]))
    builder.add_node("sales", create_agent(chat, []))
    builder.add_edge(START, "support")
    answer: Any = builder.compile().invoke(ASKED)  # type: ignore[arg-type]
    assert texts(answer)[1:] == ["", "You are with sales now.", "We sell umbrellas."]


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
