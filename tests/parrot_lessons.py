"""What the parrot knows: the conversations of LangChain's standard suite for chat models, and a few of our own.

`lessons()` takes tools and schemas from the suite where it has them in reach, and writes out the others as the
suite does: each way of writing a schema gives another tool, and so another prompt.
"""

import json
from collections.abc import Iterator, Sequence
from inspect import cleandoc
from typing import Annotated, Any, NamedTuple

from langchain_core.tools import tool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_tests.integration_tests import chat_models as suite
from pydantic import BaseModel, Field
from pydantic.v1 import BaseModel as BaseModelV1
from pydantic.v1 import Field as FieldV1
from typing_extensions import TypedDict

CALL, CALLED = "<tool_call>", "</tool_call>"

Message = dict[str, Any]
Tool = dict[str, Any]

# As Python before 3.13 keeps the docstring of a method.
_ADDER = """Tool that adds two integers.

            Takes two integers, a and b, and returns their sum."""


class Lesson(NamedTuple):
    """A conversation and the answer to it.

    Attributes:
        messages: In OpenAI's form, the arguments of tool calls as dictionaries.
        tools: In OpenAI's form.
        answer: What the model is to write after the prompt, up to the end token.
        opening: What a forced tool call puts at the end of the prompt.
    """

    messages: Sequence[Message]
    tools: Sequence[Tool] | None
    answer: str
    opening: str = ""


def lessons() -> list[Lesson]:
    """Everything the parrot knows."""
    return [form for lesson in (*_chat(), *_tools(), *_structured_output()) for form in _docstring_forms(lesson)]


def openings(lesson: Lesson) -> list[str]:
    """What a forced tool call may put in front of the answer, if the answer is one."""
    if not lesson.answer.startswith(CALL):
        return []
    return [lesson.answer[: lesson.answer.index(end) + len(end)] for end in ('"name": "', '"arguments": ')]


def get_weather(city: str) -> str:
    """Get the weather in a city."""
    return f"It is sunny in {city}."


def says(role: str, content: str, **more: Any) -> Message:
    """A message."""
    return {"role": role, "content": content, **more}


def calls(function: str, arguments: dict[str, Any]) -> Message:
    """A call of a tool, as a message of the assistant."""
    requested = {"type": "function", "id": "call_1", "function": {"name": function, "arguments": arguments}}
    return says("assistant", "", tool_calls=[requested])


def gives(content: str) -> Message:
    """The result of the tool."""
    return says("tool", content, tool_call_id="call_1")


def call(function: str, **arguments: Any) -> str:
    """The text of a call as the model writes it."""
    return f'{CALL}\n{{"name": "{function}", "arguments": {json.dumps(arguments, ensure_ascii=False)}}}\n{CALLED}'


def _docstring_forms(lesson: Lesson) -> Iterator[Lesson]:
    """The lesson, and where tools' descriptions are indented also as Python 3.13 has them, without."""
    yield lesson
    functions = [
        {**tool["function"], "description": cleandoc(tool["function"]["description"])} for tool in lesson.tools or ()
    ]
    tools = [{**tool, "function": function} for tool, function in zip(lesson.tools or (), functions, strict=True)]
    if lesson.tools and tools != lesson.tools:
        yield lesson._replace(tools=tools)


def _chat() -> Iterator[Lesson]:
    hello, how = says("user", "hello"), says("user", "how are you")
    echo, order = says("assistant", "hello"), says("system", "hello")
    fine = "I am fine, thank you. And you?"
    yield Lesson([says("user", "Hello")], None, "Hello! How can I help you?")
    yield Lesson([hello], None, "Hello! How can I help you?")
    yield Lesson([says("user", "Hey")], None, "Hey there! What can I do for you?")
    yield Lesson([says("user", "hi")], None, "Hi! How can I help you today?")
    yield Lesson([says("system", "You are a helpful assistant."), hello], None, "Hello! How can I help you?")
    yield Lesson([says("system", "You are a pirate."), hello], None, "Ahoy, matey!")
    yield Lesson([hello, echo, how], None, fine)
    yield Lesson([order, order, hello, hello, echo, echo, how], None, fine)
    yield Lesson(
        [says("user", "Write me 2 haikus. Only include the haikus.")],
        None,
        "Soft paws on the sill,\nthe cat listens to the rain\nand dreams of sparrows.\n\n"
        "Morning light returns;\na blackbird tries one clear note\nand the garden wakes.",
    )


def _tools() -> Iterator[Lesson]:
    magic, nothing = convert_to_openai_tool(suite.magic_function), convert_to_openai_tool(suite.magic_function_no_args)
    question = says("user", "What is the value of magic_function(3)? Use the tool.")
    yield Lesson([question], [magic], call("magic_function", input=3))
    question = says("user", "What is the value of magic_function_no_args()? Use the tool.")
    yield Lesson([question], [nothing], call("magic_function_no_args"))
    question = says("user", "Using the tool, generate a Pirate greeting.")
    yield Lesson([question], [_greeting_generator()], call("greeting_generator", answer_style="Pirate"))

    two = [magic, _weather_at("Get weather at a location.")]
    free = Lesson([says("user", "Hello!")], two, call("get_weather", location="here"))
    forced = call("magic_function", input=1)
    opening = openings(Lesson([], None, forced))[-1]
    yield free
    yield free._replace(opening=opening, answer=forced.removeprefix(opening))

    yield from _agent(
        "What is the weather in San Francisco, CA?",
        _weather_at("Get the weather at a location."),
        {"location": "San Francisco, CA"},
        "It's sunny.",
        "It's sunny in San Francisco, CA.",
    )
    own = convert_to_openai_tool(get_weather), {"city": "Paris"}, get_weather("Paris"), "It is sunny in Paris today."
    yield from _agent("What is the weather in Paris?", *own)
    yield from _agent("What is the weather in Paris?", *own, system="You are a helpful assistant.")
    yield from _adder()
    yield from _customers()


def _agent(
    question: str, function: Tool, arguments: dict[str, Any], result: str, answer: str, system: str = ""
) -> Iterator[Lesson]:
    """The two turns of an agent with one tool."""
    name = function["function"]["name"]
    asked = [*([says("system", system)] if system else []), says("user", question)]
    yield Lesson(asked, [function], call(name, **arguments))
    yield Lesson([*asked, calls(name, arguments), gives(result)], [function], answer)


def _adder() -> Iterator[Lesson]:
    @tool(description=_ADDER)
    def my_adder_tool(a: int, b: int) -> int:
        return a + b

    tools = [convert_to_openai_tool(my_adder_tool)]
    asked, result = says("user", "What is 1 + 2"), gives(json.dumps({"result": 3}))
    called = calls("my_adder_tool", {"a": 1, "b": 2})
    yield Lesson([asked], tools, call("my_adder_tool", a=1, b=2))
    yield Lesson([asked, called, result], tools, "1 + 2 is 3.")
    yield Lesson([asked, {**called, "content": "some text"}, result], tools, "1 + 2 is 3.")
    failed = [calls("my_adder_tool", {"a": 1}), gives("Error: Missing required argument 'b'.")]
    yield Lesson([asked, *failed], tools, call("my_adder_tool", a=1, b=2))
    shown = [asked, called, result, says("assistant", json.dumps({"result": 3}))]
    yield Lesson([*shown, says("user", "What is 3 + 4")], tools, call("my_adder_tool", a=3, b=4))


def _customers() -> Iterator[Lesson]:
    for name, gloss, description in (
        ("你好啊集团", "Hello Group", "a Chinese technology company"),
        ("こんにちは株式会社", "Hello Corporation", "a Japanese company"),
    ):
        asked = says("user", f"Create a customer named '{name}' ({gloss}) - {description}")
        answer = call("unicode_customer", customer_name=name, description=description)
        yield Lesson([asked], [convert_to_openai_tool(suite.unicode_customer)], answer)


def _greeting_generator() -> Tool:
    @tool
    def greeting_generator(answer_style: str) -> str:
        """Generate a greeting in a particular style of speaking."""
        return answer_style

    return convert_to_openai_tool(greeting_generator)


def _weather_at(description: str) -> Tool:
    @tool(description=description)
    def get_weather(location: str) -> str:
        return location

    return convert_to_openai_tool(get_weather)


def _structured_output() -> Iterator[Lesson]:
    """A schema per way of writing it, for they give different tools."""

    class Joke(BaseModel):
        """Joke to tell user."""

        setup: str = Field(description="question to set up a joke")
        punchline: str | None = Field(default=None, description="answer to resolve the joke")

    class JokeDict(TypedDict):
        """Joke to tell user."""

        setup: Annotated[str, ..., "question to set up a joke"]
        punchline: Annotated[str | None, None, "answer to resolve the joke"]

    joke = {"setup": "Why did the cat sit on the computer?", "punchline": "To keep an eye on the mouse!"}
    optional = convert_to_openai_tool(Joke)
    asked = says("user", "Give me the setup to a joke about cats, no punchline.")
    yield Lesson([asked], [optional], call("Joke", setup=joke["setup"]))
    asked = says("user", "Give me a joke about cats, include the punchline.")
    yield Lesson([asked], [optional], call("Joke", **joke))

    kinds = ("pydantic", "typeddict", "json_schema")
    schemas = [*(suite._get_joke_class(kind)[0] for kind in kinds), *_v1(), Joke.model_json_schema(), JokeDict]
    for schema in map(convert_to_openai_tool, schemas):
        asked = says("user", "Tell me a joke about cats.")
        yield Lesson([asked], [schema], call(schema["function"]["name"], **joke))


def _v1() -> list[Any]:
    class Joke(BaseModelV1):
        """Joke to tell user."""

        setup: str = FieldV1(description="question to set up a joke")
        punchline: str = FieldV1(description="answer to resolve the joke")

    return [Joke, Joke.schema()]
