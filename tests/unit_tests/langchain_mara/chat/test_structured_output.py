"""Values of a schema from answers: every method, and why there is none."""

from functools import reduce
from operator import add
from typing import Any

import pytest
from agent_lessons import CONTACT, REVIEW, ContactInfo, ProductRating
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage
from langchain_core.messages.tool import invalid_tool_call
from langchain_core.outputs import ChatGeneration
from langchain_core.utils.function_calling import convert_to_openai_tool
from parrot import AGENT_FOLDER
from pydantic import ValidationError
from typing_extensions import TypedDict

from langchain_mara import ChatMara
from langchain_mara.chat.structured_output import _parser
from langchain_mara.exceptions import OptionsError

JOHN = {"name": "John Doe", "email": "john@example.com"}
SCHEMA = ContactInfo.model_json_schema()


class Contact(TypedDict):
    """Contact information for a person."""

    name: str


@pytest.fixture(scope="module")
def chat() -> ChatMara:
    return ChatMara.from_model_id(AGENT_FOLDER, device="cpu", max_new_tokens=100)


def parsed(method: Any, schema: Any, message: AIMessage, *, strict: bool | None = None) -> Any:
    parser: Any = _parser(method, schema, convert_to_openai_tool(schema), strict=strict)
    return parser.parse_result([ChatGeneration(message=message)])


@pytest.mark.parametrize("method", [None, "function_calling"])
def test_a_class_gives_objects_and_a_schema_dictionaries(chat: ChatMara, method: Any) -> None:
    assert chat.with_structured_output(ContactInfo, method=method).invoke(CONTACT) == ContactInfo(**JOHN)
    assert chat.with_structured_output(SCHEMA, method=method).invoke(CONTACT) == JOHN


def test_strict_reaches_the_tool(chat: ChatMara) -> None:
    bound: Any = chat.with_structured_output(SCHEMA, strict=True)
    assert bound.steps[0].kwargs["tools"][0]["function"]["strict"] is True


def test_raw_message_and_error_are_returned(chat: ChatMara) -> None:
    both = chat.with_structured_output(ContactInfo, include_raw=True).invoke(CONTACT)
    assert both["parsed"] == ContactInfo(**JOHN)
    assert both["raw"].tool_calls[0]["args"] == JOHN
    assert both["parsing_error"] is None
    bad = chat.with_structured_output(ProductRating, include_raw=True).invoke(REVIEW)
    assert bad["parsed"] is None
    assert "less than or equal to 5" in str(bad["parsing_error"])
    with pytest.raises(ValidationError, match="less than or equal to 5"):
        chat.with_structured_output(ProductRating).invoke(REVIEW)


@pytest.mark.parametrize("include_raw", [False, True])
def test_options_of_the_call_reach_the_model(chat: ChatMara, include_raw: bool) -> None:
    structured = chat.with_structured_output(ContactInfo, include_raw=include_raw)
    if include_raw:
        cut = structured.invoke(CONTACT, max_tokens=3)  # type: ignore[call-arg]
        assert (cut["raw"].usage_metadata["output_tokens"], cut["parsed"]) == (3, None)
        assert reduce(add, structured.stream(CONTACT))["parsed"] == ContactInfo(**JOHN)
    else:
        with pytest.raises(OutputParserException, match="was cut off"):
            structured.invoke(CONTACT, max_tokens=3)  # type: ignore[call-arg]


def test_strict_schemas_check_what_is_no_class(chat: ChatMara) -> None:
    schema = ProductRating.model_json_schema()
    assert chat.with_structured_output(schema).invoke(REVIEW)["rating"] == 10
    call = AIMessage("", tool_calls=[{"name": "ProductRating", "args": {"rating": 10, "comment": "a"}, "id": "1"}])
    assert parsed("function_calling", schema, call)["rating"] == 10
    with pytest.raises(OutputParserException, match=r"does not conform to the schema at \$.rating: 10 is greater than"):
        parsed("function_calling", schema, call, strict=True)


def test_an_answer_without_a_call_says_why() -> None:
    with pytest.raises(OutputParserException, match="because it called no tool. It answered: 'I do not know.'"):
        parsed("function_calling", ContactInfo, AIMessage("I do not know."))
    bad = invalid_tool_call(name="ContactInfo", args="{", id="1", error="no JSON")
    with pytest.raises(OutputParserException, match="because its call is not valid: no JSON"):
        parsed("function_calling", SCHEMA, AIMessage("", invalid_tool_calls=[bad]))


@pytest.mark.parametrize("schema", [ContactInfo, SCHEMA, Contact], ids=["class", "schema", "typed"])
@pytest.mark.parametrize("method", ["function_calling", "json_schema", "json_mode"])
def test_an_answer_that_was_cut_off_is_an_error(method: str, schema: Any) -> None:
    cut = AIMessage('{"name": "John', response_metadata={"finish_reason": "length"})
    with pytest.raises(OutputParserException, match="cut off before its end, because it reached max_new_tokens"):
        parsed(method, schema, cut)


@pytest.mark.parametrize("method", ["json_schema", "json_mode"])
def test_json_is_read_as_the_schema(method: str) -> None:
    whole = AIMessage('{"name": "John Doe", "email": "john@example.com"}')
    assert parsed(method, ContactInfo, whole) == ContactInfo(**JOHN)
    assert parsed(method, SCHEMA, whole) == JOHN
    with pytest.raises(OutputParserException, match="email"):
        parsed(method, ContactInfo, AIMessage('{"name": "John Doe"}'))
    with pytest.raises(OutputParserException, match=r"schema at \$: 'email' is a required property"):
        parsed(method, SCHEMA, AIMessage('{"name": "John Doe"}'), strict=True)


@pytest.mark.parametrize(("method", "kind"), [("json_schema", "json_schema"), ("json_mode", "json_object")])
def test_other_methods_bind_a_response_format(chat: ChatMara, method: Any, kind: str) -> None:
    bound: Any = chat.with_structured_output(ContactInfo, method=method, strict=True)
    promised = bound.steps[0].kwargs["response_format"]
    assert promised["type"] == kind
    if kind == "json_schema":
        assert promised["json_schema"]["name"] == "ContactInfo"
        assert promised["json_schema"]["schema"]["required"] == ["name", "email"]
        assert promised["json_schema"]["strict"] is True
    if "response_format" not in ChatMara.model_fields:
        with pytest.raises(OptionsError, match="response_format is unknown"):
            bound.invoke(CONTACT)


def test_an_unknown_method_is_refused(chat: ChatMara) -> None:
    with pytest.raises(OptionsError, match="method='magic' is unknown. Use function_calling, json_schema, json_mode."):
        chat.with_structured_output(ContactInfo, method="magic")  # type: ignore[arg-type]


def test_a_stream_grows(chat: ChatMara) -> None:
    assert list(chat.with_structured_output(SCHEMA).stream(CONTACT))[-1] == JOHN
