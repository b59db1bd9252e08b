"""What the second parrot knows: the turns of agents as LangChain's and LangGraph's documentation builds them."""

from collections.abc import Iterator
from typing import Any

from langchain_core.tools import tool
from langchain_core.utils.function_calling import convert_to_openai_tool
from parrot_lessons import Lesson, Message, call, calls, get_weather, gives, says
from pydantic import BaseModel, Field

QUESTION = "How many people live on a square kilometre of Paris?"
ARITHMETIC = "You are a helpful assistant tasked with performing arithmetic on a set of inputs."
CONTACT = "Extract contact info from: John Doe, john@example.com"
REVIEW = "Parse this: Amazing product, 10/10!"
BAD_RATING = "Please provide a valid rating between 1-5."
CLOSED = "Tool error: Please check your input and try again. (the station is closed)"


@tool
def search(query: str) -> str:
    """Search for facts."""
    return f"{query}: 2100000 people, 105 square kilometres."


@tool
def calculate(expression: str) -> str:
    """Calculate a quotient, such as 6 / 2."""
    dividend, divisor = map(float, expression.split("/"))
    return str(dividend / divisor)


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


class CityFact(BaseModel):
    """A number about a city."""

    city: str
    people_per_square_kilometre: float


class ContactInfo(BaseModel):
    """Contact information for a person."""

    name: str = Field(description="The name of the person")
    email: str = Field(description="The email address of the person")


class ProductRating(BaseModel):
    """A rating of a product."""

    rating: int = Field(description="Rating from 1-5", ge=1, le=5)
    comment: str = Field(description="Review comment")


def agent_lessons() -> list[Lesson]:
    """Everything the second parrot knows."""
    return [*_three_steps(), *_weather(), *_structured(), *_memory(), *_arithmetic()]


def _tools(*tools: Any) -> list[dict[str, Any]]:
    return [convert_to_openai_tool(each) for each in tools]


def _three_steps() -> Iterator[Lesson]:
    """Search, calculate, and a structured answer; the question also without the last."""
    asked: list[Message] = [says("user", QUESTION)]
    facts, quotient = {"query": "Paris"}, {"expression": "2100000 / 105"}
    found = [*asked, calls("search", facts), gives(search.invoke(facts))]
    known = [*found, calls("calculate", quotient), gives(calculate.invoke(quotient))]
    for tools in (_tools(search, calculate, CityFact), _tools(search, calculate)):
        yield Lesson(asked, tools, call("search", **facts))
        yield Lesson(found, tools, call("calculate", **quotient))
    yield Lesson(known, _tools(search, calculate), "20000 people live on a square kilometre of Paris.")
    fact = call("CityFact", city="Paris", people_per_square_kilometre=20000.0)
    yield Lesson(known, _tools(search, calculate, CityFact), fact)


def _weather() -> Iterator[Lesson]:
    """An agent with one tool, which may fail."""
    tools = _tools(get_weather)
    for question in ([], [says("system", "You are a helpful assistant.")]):
        asked = [*question, says("user", "What is the weather in Paris?")]
        called = [*asked, calls("get_weather", {"city": "Paris"})]
        yield Lesson(asked, tools, call("get_weather", city="Paris"))
        yield Lesson([*called, gives(get_weather("Paris"))], tools, "It is sunny in Paris today.")
    yield Lesson([*called[1:], gives(CLOSED)], tools, "I could not find out the weather.")


def _structured() -> Iterator[Lesson]:
    contact = call("ContactInfo", name="John Doe", email="john@example.com")
    yield Lesson([says("user", CONTACT)], _tools(ContactInfo), contact)
    asked, tools = [says("user", REVIEW)], _tools(ProductRating)
    bad = {"rating": 10, "comment": "Amazing product"}
    yield Lesson(asked, tools, call("ProductRating", **bad))
    corrected = [*asked, calls("ProductRating", bad), gives(BAD_RATING)]
    yield Lesson(corrected, tools, call("ProductRating", rating=5, comment="Amazing product"))


def _memory() -> Iterator[Lesson]:
    hello = [says("user", "Hi! My name is Bob."), says("assistant", "Hello Bob!")]
    yield Lesson(hello[:1], None, "Hello Bob!")
    yield Lesson([*hello, says("user", "What is my name?")], None, "Your name is Bob.")
    yield Lesson([says("user", "What is my name?")], None, "You have not told me.")
    yield Lesson([says("user", "My mail is [REDACTED_EMAIL].")], None, "Thank you for your address.")


def _arithmetic() -> Iterator[Lesson]:
    asked = [says("system", ARITHMETIC), says("user", "Add 3 and 4.")]
    yield Lesson(asked, _tools(add), call("add", a=3, b=4))
    yield Lesson([*asked, calls("add", {"a": 3, "b": 4}), gives("7")], _tools(add), "3 and 4 is 7.")
