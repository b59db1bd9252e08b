"""`create_agent` and LangGraph as their documentation shows them, on a tiny real model that knows their turns."""

import operator
from collections.abc import Callable
from functools import reduce
from typing import Any, TypedDict

import pytest
from agent_lessons import (
    ARITHMETIC,
    BAD_RATING,
    CONTACT,
    QUESTION,
    REVIEW,
    CityFact,
    ContactInfo,
    ProductRating,
    add,
    calculate,
    search,
)
from langchain.agents import AgentState, create_agent
from langchain.agents.middleware import (
    ClearToolUsesEdit,
    ContextEditingMiddleware,
    HumanInTheLoopMiddleware,
    ModelCallLimitMiddleware,
    ModelFallbackMiddleware,
    ModelRequest,
    PIIMiddleware,
    SummarizationMiddleware,
    ToolCallLimitMiddleware,
    ToolRetryMiddleware,
    before_model,
    dynamic_prompt,
    wrap_model_call,
    wrap_tool_call,
)
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain.tools import ToolRuntime, tool
from langchain_core.messages import HumanMessage, RemoveMessage, SystemMessage, ToolMessage, trim_messages
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.config import get_stream_writer
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.graph.message import REMOVE_ALL_MESSAGES
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.pregel import Pregel
from langgraph.runtime import Runtime
from langgraph.store.memory import InMemoryStore
from langgraph.types import Command, interrupt
from parrot import AGENT_FOLDER, agent_lessons, encode, taught_probabilities

from langchain_mara import ChatMara
from langchain_mara.exceptions import PromptError

WEATHER: dict[str, Any] = {"messages": [HumanMessage("What is the weather in Paris?")]}
SUNNY = "It is sunny in Paris today."
THREAD: dict[str, Any] = {"configurable": {"thread_id": "1"}}


@pytest.fixture(scope="module")
def chat() -> ChatMara:
    return ChatMara.from_model_id(AGENT_FOLDER, device="cpu", max_new_tokens=100)


@tool
def get_weather(city: str) -> str:
    """Get the weather in a city."""
    return f"It is sunny in {city}."


def last(answer: dict[str, Any]) -> str:
    return str(answer["messages"][-1].text)


def kinds(answer: dict[str, Any]) -> list[str]:
    return [message.type for message in answer["messages"]]


def test_the_model_is_sure_of_every_turn(chat: ChatMara) -> None:
    least = min(min(taught_probabilities(chat.model, encode(chat.tokenizer, lesson))) for lesson in agent_lessons())
    assert least > 0.99


# docs.langchain.com/oss/python/langchain/agents


@pytest.mark.parametrize(
    "system", [None, "You are a helpful assistant.", SystemMessage("You are a helpful assistant.")]
)
def test_a_static_model_with_a_system_prompt(chat: ChatMara, system: Any) -> None:
    assert last(create_agent(chat, [get_weather], system_prompt=system).invoke(WEATHER)) == SUNNY


def test_a_dynamic_model(chat: ChatMara) -> None:
    other = chat.bind(max_tokens=1).bound.with_agent(None)

    @wrap_model_call
    def select(request: ModelRequest, handler: Callable[..., Any]) -> Any:
        return handler(request.override(model=other if len(request.state["messages"]) > 1 else chat))

    assert last(create_agent(chat, [get_weather], middleware=[select]).invoke(WEATHER)) == SUNNY


def test_model_settings_reach_the_call(chat: ChatMara) -> None:
    @wrap_model_call
    def shorten(request: ModelRequest, handler: Callable[..., Any]) -> Any:
        return handler(request.override(model_settings={"max_tokens": 2}))

    answer = create_agent(chat, [], middleware=[shorten]).invoke({"messages": [HumanMessage("Hi! My name is Bob.")]})
    assert answer["messages"][-1].usage_metadata["output_tokens"] == 2


def test_errors_of_tools_are_told_the_model(chat: ChatMara) -> None:
    @tool("get_weather", description="Get the weather in a city.")
    def closed(city: str) -> str:  # noqa: ARG001
        raise ValueError("the station is closed")

    @wrap_tool_call
    def handle(request: Any, handler: Callable[..., Any]) -> Any:
        try:
            return handler(request)
        except ValueError as error:
            text = f"Tool error: Please check your input and try again. ({error})"
            return ToolMessage(text, tool_call_id=request.tool_call["id"])

    answer = create_agent(chat, [closed], middleware=[handle]).invoke(WEATHER)
    assert last(answer) == "I could not find out the weather."


def test_a_dynamic_prompt_reads_the_context(chat: ChatMara) -> None:
    class Context(TypedDict):
        role: str

    seen = []

    @dynamic_prompt
    def prompt(request: ModelRequest) -> str:
        seen.append(request.runtime.context["role"])
        return "You are a helpful assistant."

    agent: Any = create_agent(chat, [get_weather], middleware=[prompt], context_schema=Context)
    assert last(agent.invoke(WEATHER, context={"role": "expert"})) == SUNNY
    assert seen == ["expert", "expert"]


def test_a_state_of_ones_own_and_a_tool_that_reads_and_writes_it(chat: ChatMara) -> None:
    class State(AgentState):
        asked: list[str]

    @tool("get_weather", description="Get the weather in a city.")
    def remembered(city: str, runtime: ToolRuntime) -> Any:
        result = ToolMessage(get_weather.invoke({"city": city}), tool_call_id=runtime.tool_call_id)
        return Command(update={"asked": [*runtime.state["asked"], city], "messages": [result]})

    agent: Any = create_agent(chat, [remembered], state_schema=State)
    answer = agent.invoke({**WEATHER, "asked": ["Rome"]})
    assert (last(answer), answer["asked"]) == (SUNNY, ["Rome", "Paris"])


# docs.langchain.com/oss/python/langchain/models


def test_a_stream_that_was_added_up_goes_back_into_the_conversation(chat: ChatMara) -> None:
    bound = chat.bind_tools([get_weather])
    messages: list[Any] = list(WEATHER["messages"])
    messages.append(reduce(operator.add, bound.stream(messages)))
    messages += [get_weather.invoke(call) for call in messages[-1].tool_calls]
    assert bound.invoke(messages).text == SUNNY


# docs.langchain.com/oss/python/langchain/event-streaming


@pytest.mark.skipif("stream_events" not in vars(Pregel), reason="LangGraph before 1.2 has no typed streams")
def test_messages_and_calls_stream_as_events(chat: ChatMara) -> None:
    agent: Any = create_agent(chat, [get_weather])
    run = agent.stream_events(WEATHER, version="v3")
    asked, told = [("".join(message.text), message.tool_calls.get(), message.output) for message in run.messages]
    assert [(call["name"], call["args"]) for call in asked[1]] == [("get_weather", {"city": "Paris"})]
    assert (told[0], told[1], told[2].text) == (SUNNY, [], SUNNY)
    assert asked[2].usage_metadata["output_tokens"] > 0
    assert last(run.output) == SUNNY


# docs.langchain.com/oss/python/langchain/structured-output


def test_a_structured_answer(chat: ChatMara) -> None:
    agent: Any = create_agent(chat, response_format=ToolStrategy(ContactInfo))
    answer = agent.invoke({"messages": [HumanMessage(CONTACT)]})
    assert answer["structured_response"] == ContactInfo(name="John Doe", email="john@example.com")


@pytest.mark.parametrize("schema", [ContactInfo, ProviderStrategy(ContactInfo)], ids=["auto", "provider"])
@pytest.mark.parametrize("tools", [[], [get_weather]], ids=["alone", "beside tools"])
def test_a_structured_answer_is_promised_where_the_grammar_can(chat: ChatMara, schema: Any, tools: list[Any]) -> None:
    agent: Any = create_agent(chat, tools, response_format=schema)
    # This model learned no JSON but calls. The question has no tool, so the promise is all that its answer follows.
    answer = agent.invoke({"messages": [HumanMessage(CONTACT)]})
    assert ContactInfo.model_validate_json(last(answer)) == answer["structured_response"]
    assert kinds(answer) == ["human", "ai"]


def test_a_bad_structured_answer_is_tried_again(chat: ChatMara) -> None:
    strategy = ToolStrategy(ProductRating, handle_errors=BAD_RATING, tool_message_content="Thank you.")
    agent: Any = create_agent(chat, response_format=strategy)
    answer = agent.invoke({"messages": [HumanMessage(REVIEW)]})
    assert answer["structured_response"] == ProductRating(rating=5, comment="Amazing product")
    assert kinds(answer) == ["human", "ai", "tool", "ai", "tool"]
    assert last(answer) == "Thank you."


# docs.langchain.com/oss/python/langchain/short-term-memory and long-term-memory


def test_a_checkpointer_remembers_a_thread(chat: ChatMara) -> None:
    agent: Any = create_agent(chat, [], checkpointer=InMemorySaver())
    assert last(agent.invoke({"messages": "Hi! My name is Bob."}, THREAD)) == "Hello Bob!"
    assert last(agent.invoke({"messages": "What is my name?"}, THREAD)) == "Your name is Bob."
    other: Any = {"configurable": {"thread_id": "2"}}
    assert last(agent.invoke({"messages": "What is my name?"}, other)) == "You have not told me."


def test_messages_are_trimmed_by_the_models_own_count(chat: ChatMara) -> None:
    most = chat.get_num_tokens_from_messages([HumanMessage("Hi! My name is Bob.")])

    @before_model
    def trim(state: AgentState, runtime: Runtime) -> dict[str, Any]:  # noqa: ARG001
        kept = trim_messages(state["messages"], token_counter=chat, max_tokens=most, start_on="human")
        return {"messages": [RemoveMessage(REMOVE_ALL_MESSAGES), *kept]}

    agent: Any = create_agent(chat, [], middleware=[trim], checkpointer=InMemorySaver())
    agent.invoke({"messages": "Hi! My name is Bob."}, THREAD)
    assert last(agent.invoke({"messages": "What is my name?"}, THREAD)) == "You have not told me."


def test_a_tool_reads_a_store(chat: ChatMara) -> None:
    store = InMemoryStore()
    store.put(("weather",), "Paris", {"text": "It is sunny in Paris."})

    @tool("get_weather", description="Get the weather in a city.")
    def stored(city: str, runtime: ToolRuntime) -> str:
        return str(runtime.store.get(("weather",), city).value["text"])

    assert last(create_agent(chat, [stored], store=store).invoke(WEATHER)) == SUNNY


# docs.langchain.com/oss/python/langchain/middleware


def test_limits_of_calls_end_the_run(chat: ChatMara) -> None:
    limit = ModelCallLimitMiddleware(run_limit=1, exit_behavior="end")
    assert kinds(create_agent(chat, [get_weather], middleware=[limit]).invoke(WEATHER))[:3] == ["human", "ai", "tool"]
    limits = ToolCallLimitMiddleware(run_limit=1)
    assert last(create_agent(chat, [get_weather], middleware=[limits]).invoke(WEATHER)) == SUNNY


def test_another_model_answers_when_one_fails(chat: ChatMara) -> None:
    class Failing(ChatMara):
        def _answers(self, *_: Any) -> Any:
            raise PromptError("no")

    first = Failing.from_llm(chat)
    agent: Any = create_agent(first, [get_weather], middleware=[ModelFallbackMiddleware(chat)])
    assert last(agent.invoke(WEATHER)) == SUNNY


def test_a_tool_is_tried_again(chat: ChatMara) -> None:
    attempts = []

    @tool("get_weather", description="Get the weather in a city.")
    def flaky(city: str) -> str:
        attempts.append(city)
        if len(attempts) < 3:
            raise ConnectionError("try again")
        return f"It is sunny in {city}."

    retry = ToolRetryMiddleware(max_retries=2, initial_delay=0.0, jitter=False)
    assert last(create_agent(chat, [flaky], middleware=[retry]).invoke(WEATHER)) == SUNNY
    assert len(attempts) == 3


def test_private_data_is_hidden_from_the_model(chat: ChatMara) -> None:
    agent: Any = create_agent(chat, [], middleware=[PIIMiddleware("email", strategy="redact")])
    answer = agent.invoke({"messages": "My mail is ann@example.com."})
    assert last(answer) == "Thank you for your address."


def test_summaries_know_the_size_of_the_context(chat: ChatMara) -> None:
    # Without a profile, a fraction of the context is refused.
    summaries = SummarizationMiddleware(chat, trigger=("fraction", 0.9), keep=("messages", 2))
    assert last(create_agent(chat, [get_weather], middleware=[summaries]).invoke(WEATHER)) == SUNNY


def test_old_results_are_cleared_by_the_models_own_count(chat: ChatMara) -> None:
    edit = ClearToolUsesEdit(trigger=10_000)
    editing = ContextEditingMiddleware(edits=[edit], token_count_method="model")
    assert last(create_agent(chat, [get_weather], middleware=[editing]).invoke(WEATHER)) == SUNNY


# docs.langchain.com/oss/python/langchain/human-in-the-loop


@pytest.mark.parametrize(
    ("decision", "told"),
    [
        ({"type": "approve"}, "It is sunny in Paris."),
        ({"type": "edit", "edited_action": {"name": "get_weather", "args": {"city": "Rome"}}}, "It is sunny in Rome."),
        ({"type": "reject", "message": "No, thank you."}, "No, thank you."),
    ],
    ids=["approve", "edit", "reject"],
)
def test_a_person_decides_on_a_call(chat: ChatMara, decision: dict[str, Any], told: str) -> None:
    ask = HumanInTheLoopMiddleware(interrupt_on={"get_weather": True})
    agent: Any = create_agent(chat, [get_weather], middleware=[ask], checkpointer=InMemorySaver())
    asked = agent.invoke(WEATHER, THREAD)
    [request] = asked["__interrupt__"][0].value["action_requests"]
    assert (request["name"], request["args"]) == ("get_weather", {"city": "Paris"})
    answer = agent.invoke(Command(resume={"decisions": [decision]}), THREAD)
    assert kinds(answer)[:4] == ["human", "ai", "tool", "ai"]
    assert told in answer["messages"][2].text
    # LangChain words what it tells the model of a changed call differently in each version, so the model knows none.
    assert decision["type"] != "approve" or last(answer) == SUNNY


# docs.langchain.com/oss/python/langgraph


def test_the_quickstart_of_langgraph(chat: ChatMara) -> None:
    bound = chat.bind_tools([add])

    def answer(state: MessagesState) -> dict[str, Any]:
        return {"messages": [bound.invoke([SystemMessage(ARITHMETIC), *state["messages"]])]}

    builder = StateGraph(MessagesState)
    builder.add_node("answer", answer)
    builder.add_node("tools", ToolNode([add]))
    builder.add_edge(START, "answer")
    builder.add_conditional_edges("answer", tools_condition)
    builder.add_edge("tools", "answer")
    result: Any = builder.compile().invoke({"messages": [HumanMessage("Add 3 and 4.")]})
    assert last(result) == "3 and 4 is 7."


class ThreeSteps:
    """An agent that searches, calculates and gives a structured answer."""

    def __init__(self, chat: ChatMara, **options: Any) -> None:
        self.agent: Any = create_agent(chat, [search, calculate], response_format=ToolStrategy(CityFact), **options)
        self.question = {"messages": [HumanMessage(QUESTION)]}
        self.fact = CityFact(city="Paris", people_per_square_kilometre=20000.0)


async def test_three_steps_to_a_structured_answer(chat: ChatMara) -> None:
    react = ThreeSteps(chat)
    for answer in (react.agent.invoke(react.question), await react.agent.ainvoke(react.question)):
        called = [call["name"] for message in answer["messages"] for call in getattr(message, "tool_calls", ())]
        assert called == ["search", "calculate", "CityFact"]
        assert answer["structured_response"] == react.fact


async def test_three_steps_in_every_stream_mode(chat: ChatMara) -> None:
    @before_model
    def tell(state: AgentState, runtime: Runtime) -> None:  # noqa: ARG001
        get_stream_writer()({"seen": len(state["messages"])})

    react = ThreeSteps(chat, middleware=[tell], checkpointer=InMemorySaver())
    modes = ["values", "updates", "messages", "custom", "debug", "checkpoints", "tasks"]
    seen: dict[str, list[Any]] = {mode: [] for mode in modes}
    for mode, event in react.agent.stream(react.question, THREAD, stream_mode=modes):
        seen[mode].append(event)
    assert all(seen.values())
    assert seen["values"][-1]["structured_response"] == react.fact
    assert seen["custom"] == [{"seen": 1}, {"seen": 3}, {"seen": 5}]
    assert [name for update in seen["updates"] for name in update if name in ("model", "tools")] == [
        "model", "tools", "model", "tools", "model",
    ]  # fmt: skip
    second: Any = {"configurable": {"thread_id": "2"}}
    streamed = [chunk async for chunk, _ in react.agent.astream(react.question, second, stream_mode="messages")]
    for chunks in ([chunk for chunk, _ in seen["messages"]], streamed):
        by_id: dict[str, list[Any]] = {}
        for chunk in chunks:
            if chunk.type == "AIMessageChunk":
                by_id.setdefault(chunk.id, []).append(chunk)
        assert len(by_id) == 3
        assert None not in by_id
        for pieces in by_id.values():  # each message calls one tool, whose arguments come in parts
            assert len([piece for piece in pieces if piece.tool_call_chunks]) > 3
            merged: Any = reduce(operator.add, pieces)
            assert [call["name"] for call in merged.tool_calls] in (["search"], ["calculate"], ["CityFact"])
    assert {message.id for message in seen["values"][-1]["messages"] if message.type == "ai"} == {
        chunk.id for chunk, _ in seen["messages"] if chunk.type == "AIMessageChunk"
    }


def test_three_steps_can_be_interrupted_and_gone_through_again(chat: ChatMara) -> None:
    react = ThreeSteps(chat, checkpointer=InMemorySaver(), interrupt_before=["tools"])
    react.agent.invoke(react.question, THREAD)
    assert react.agent.get_state(THREAD).next == ("tools",)
    react.agent.invoke(None, THREAD)
    assert react.agent.invoke(None, THREAD)["structured_response"] == react.fact
    history = list(react.agent.get_state_history(THREAD))
    first = next(state for state in reversed(history) if state.next == ("tools",))
    again = react.agent.invoke(None, first.config)
    assert again["messages"][2].text == search.invoke({"query": "Paris"})


def test_a_tool_asks_a_person(chat: ChatMara) -> None:
    @tool("calculate", description="Calculate a quotient, such as 6 / 2.")
    def confirmed(expression: str) -> str:
        return calculate.invoke({"expression": interrupt({"really": expression})})

    agent: Any = create_agent(chat, [search, confirmed], checkpointer=InMemorySaver())
    asked = agent.invoke({"messages": [HumanMessage(QUESTION)]}, THREAD)
    assert asked["__interrupt__"][0].value == {"really": "2100000 / 105"}
    answer = agent.invoke(Command(resume="2100000 / 105"), THREAD)
    assert last(answer) == "20000 people live on a square kilometre of Paris."


@pytest.mark.parametrize(
    "changes", [{"disable_streaming": True}, {"disable_streaming": "tool_calling"}, {"streaming": False}]
)
async def test_a_model_that_is_not_to_stream_gives_whole_messages(chat: ChatMara, changes: dict[str, Any]) -> None:
    agent: Any = create_agent(ChatMara.from_llm(chat, **changes), [get_weather])
    whole = agent.invoke(WEATHER)
    chunks = [chunk async for chunk, _ in agent.astream(WEATHER, stream_mode="messages")]
    for pieces in (chunks, [chunk for chunk, _ in agent.stream(WEATHER, stream_mode="messages")]):
        assert [piece.type for piece in pieces] == ["ai", "tool", "ai"]
        assert pieces[-1].text == last(whole) == SUNNY


def test_copies_of_a_model_still_stream(chat: ChatMara) -> None:
    agent: Any = create_agent(ChatMara(**dict(chat.with_agent(None))), [get_weather])
    pieces = [
        chunk.text for chunk, _ in agent.stream(WEATHER, stream_mode="messages") if chunk.type == "AIMessageChunk"
    ]
    assert len([piece for piece in pieces if piece]) > 3
