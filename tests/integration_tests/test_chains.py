"""Chains as LangChain's documentation builds them, with our classes in the place of its models."""

from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_core.runnables import RunnableLambda, RunnableParallel, RunnablePassthrough
from langchain_core.tools import tool
from langgraph.graph import END, START, MessagesState, StateGraph
from parrot import FOLDER
from pydantic import BaseModel

from langchain_mara import ChatMara, MaraLLM
from langchain_mara.exceptions import OptionsError, PromptError

QUESTION = "What is the weather in Paris?"
WISH = "I want to keep a lost wallet. Where should I start?"


@pytest.fixture(scope="module")
def llm() -> MaraLLM:
    return MaraLLM.demo(device="cpu")


@pytest.fixture(scope="module")
def chat() -> ChatMara:
    return ChatMara.from_model_id(FOLDER, device="cpu", max_new_tokens=100)


@tool
def get_weather(city: str) -> str:
    """Get the weather for a city."""
    return f"It is sunny in {city}."


@pytest.mark.slow
def test_prompt_llm_parser(llm: MaraLLM) -> None:
    chain = PromptTemplate.from_template("{wish} Where should I start?") | llm | StrOutputParser()
    whole = chain.invoke({"wish": "I want to keep a lost wallet."})
    assert "lost property office" in whole
    pieces = list(chain.stream({"wish": "I want to keep a lost wallet."}))
    assert "".join(pieces) == whole
    assert len(pieces) > 5


async def test_runnable_parallel_shares_one_batch(llm: MaraLLM) -> None:
    chain = RunnableParallel(
        aligned=llm,
        plain=llm.with_agent(None),
        shout=llm | StrOutputParser() | RunnableLambda(str.upper),
        asked=RunnablePassthrough(),
    )
    answers = chain.invoke(WISH)
    assert answers == await chain.ainvoke(WISH)
    assert answers["shout"] == answers["aligned"].upper()
    assert answers["aligned"] != answers["plain"]
    assert answers["asked"] == WISH


def test_with_fallbacks_and_with_retry(llm: MaraLLM) -> None:
    attempts = []

    def flaky(text: str) -> str:
        attempts.append(text)
        if len(attempts) < 3:
            raise ConnectionError("try again")
        return text

    chain = RunnableLambda(flaky).with_retry(stop_after_attempt=3, wait_exponential_jitter=False) | llm
    assert chain.invoke(WISH) == llm.invoke(WISH)
    assert len(attempts) == 3
    safe = llm.with_fallbacks([RunnableLambda(lambda _: "too long")], exceptions_to_handle=(PromptError,))
    assert safe.invoke("lost wallet " * 1000) == "too long"
    retried = llm.with_retry(retry_if_exception_type=(PromptError,), stop_after_attempt=2)
    with pytest.raises(PromptError):
        retried.invoke("lost wallet " * 1000)


def test_chat_prompt_with_system_and_history(chat: ChatMara) -> None:
    prompt = ChatPromptTemplate.from_messages([("system", "You are {kind}."), ("human", "{text}")])
    messages = prompt.invoke({"kind": "kind", "text": "hello"})
    text = (prompt | chat | StrOutputParser()).invoke({"kind": "kind", "text": "hello"})
    assert text == chat.invoke(messages).text
    assert chat.invoke("hello").text == "Hello! How can I help you?"


def test_chat_model_calls_a_tool(chat: ChatMara) -> None:
    question: list[Any] = [HumanMessage("What is the weather in Paris?")]
    bound = chat.bind_tools([get_weather])
    call = bound.invoke(question)
    assert [(tool_call["name"], tool_call["args"]) for tool_call in call.tool_calls] == [
        ("get_weather", {"city": "Paris"})
    ]
    assert call.response_metadata["finish_reason"] == "tool_calls"
    result = get_weather.invoke(call.tool_calls[0])
    assert bound.invoke([*question, call, result]).text == "It is sunny in Paris today."


@pytest.mark.parametrize("system", [None, "You are a helpful assistant."])
async def test_agent_with_one_tool(chat: ChatMara, system: str | None) -> None:
    agent: Any = create_agent(chat, tools=[get_weather], system_prompt=system)
    question = {"messages": [HumanMessage("What is the weather in Paris?")]}
    for answer in (agent.invoke(question), await agent.ainvoke(question)):
        kinds = [message.type for message in answer["messages"]]
        assert kinds == ["human", "ai", "tool", "ai"]
        assert answer["messages"][-1].text == "It is sunny in Paris today."


async def test_langgraph_streams_tokens_of_a_node_that_invokes(chat: ChatMara) -> None:
    async def answer(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await chat.ainvoke(state["messages"])]}

    builder = StateGraph(MessagesState)
    builder.add_node("answer", answer)
    builder.add_edge(START, "answer")
    builder.add_edge("answer", END)
    graph = builder.compile()
    question: Any = {"messages": [HumanMessage("hello")]}
    tokens = [message.content async for message, _ in graph.astream(question, stream_mode="messages")]
    assert len(tokens) > 3
    assert "".join(tokens) == "Hello! How can I help you?"


async def test_langgraph_shows_tokens_of_the_llm_as_events(llm: MaraLLM) -> None:
    async def answer(state: MessagesState) -> dict[str, Any]:
        return {"messages": [AIMessage(await llm.ainvoke(state["messages"][-1].content))]}

    builder = StateGraph(MessagesState)
    builder.add_node("answer", answer)
    builder.add_edge(START, "answer")
    graph = builder.compile()
    question: Any = {"messages": [HumanMessage(WISH)]}
    events = [event async for event in graph.astream_events(question, version="v2")]
    pieces = [event["data"]["chunk"].text for event in events if event["event"] == "on_llm_stream"]
    assert "".join(pieces) == llm.invoke(WISH)


def test_a_forced_tool_is_called(chat: ChatMara) -> None:
    class Weather(BaseModel):
        """Weather of a city."""

        city: str

    def called(choice: str | None) -> list[str]:
        answer: Any = chat.bind_tools([Weather, get_weather], tool_choice=choice).invoke(QUESTION)
        return [call["name"] for call in answer.tool_calls]

    assert [called(choice) for choice in (None, "get_weather", "Weather")] == [
        ["get_weather"],
        ["get_weather"],
        ["Weather"],
    ]
    with pytest.raises(OptionsError, match="tool_choice='get_wether' is none of the tools: Weather, get_weather"):
        chat.bind_tools([Weather, get_weather], tool_choice="get_wether")


def test_messages_that_are_no_text_are_refused(chat: ChatMara) -> None:
    image = HumanMessage([{"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}}])
    with pytest.raises(PromptError, match="holds image_url; this model reads text only"):
        chat.invoke([SystemMessage("hi"), image])
