"""`/v1/responses` with the official client: the same answers as in the chat API."""

import re
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from http_servers import Listening
from pydantic import BaseModel, ValidationError

from langchain_mara import MaraLLM
from langchain_mara.server.protocol.responses import ResponsesRequest

QUESTION = "How do I boil an egg?"
TOOL: Any = {
    "type": "function",
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": False,
}
PAGE = (Path(__file__).parents[5] / "docs/serving.md").read_text(encoding="utf-8")
TABLE = PAGE.split("`/v1/responses` takes these fields:")[1].split("\n\n")[1]
ROWS = {
    name: verdict
    for names, verdict in re.findall(r"^\| (`[^|]+) \| (\w+) \|", TABLE, re.MULTILINE)
    for name in re.findall(r"`(\w+)`", names)
}


def test_a_response_is_the_chat_answer(server: Listening, demo: MaraLLM) -> None:
    got = server.openai().responses.create(model="m+a", input=QUESTION, max_output_tokens=80, metadata={"a": "b"})
    expected = demo.as_chat(max_tokens=80).invoke(QUESTION)
    assert got.output_text == expected.text
    assert (got.status, got.model, got.metadata) == ("completed", "m+a", {"a": "b"})
    assert got.usage is not None
    assert got.usage.input_tokens == expected.usage_metadata["input_tokens"]
    assert got.usage.output_tokens == expected.usage_metadata["output_tokens"]


def test_a_conversation(server: Listening, demo: MaraLLM) -> None:
    turns: Any = [
        {"role": "user", "content": [{"type": "input_text", "text": "Hello."}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hi."}]},
        {"role": "user", "content": QUESTION},
    ]
    got = server.openai().responses.create(model="m+a", input=turns, instructions="Be brief.")
    chat = [("system", "Be brief."), ("human", "Hello."), ("ai", "Hi."), ("human", QUESTION)]
    assert got.output_text == demo.as_chat().invoke(chat).text
    assert got.status == "incomplete"
    assert got.incomplete_details is not None
    assert got.incomplete_details.reason == "max_output_tokens"


def test_a_stream_ends_in_the_same_response(server: Listening) -> None:
    client = server.openai().responses
    whole = client.create(model="m+a", input=QUESTION, max_output_tokens=80)
    with client.stream(model="m+a", input=QUESTION, max_output_tokens=80) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [events[0].type, events[1].type, events[-1].type] == [
        "response.created", "response.in_progress", "response.completed",
    ]  # fmt: skip
    pieces = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert len(pieces) > 5
    assert "".join(pieces) == final.output_text == whole.output_text
    assert final.usage == whole.usage


def test_calls_and_their_results(calling: Listening) -> None:
    client = calling.openai().responses
    got = client.create(model="m", input="Weather?", tools=[TOOL])
    thought, call = got.output
    assert thought.type == "reasoning"
    assert thought.content is not None
    assert thought.content[0].text == "Hm."
    assert call.type == "function_call"
    assert (call.name, call.arguments) == ("get_weather", '{"city": "Paris"}')
    items: Any = [{"role": "user", "content": "Weather?"}, *(item.model_dump() for item in got.output)]
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "Rain."}
    again = client.create(model="m", input=[*items, result], tools=[TOOL], max_output_tokens=3)
    assert again.status == "incomplete"


def test_calls_in_a_stream(calling: Listening) -> None:
    with calling.openai().responses.stream(model="m", input="Weather?", tools=[TOOL]) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert [item.type for item in final.output] == ["reasoning", "function_call"]
    assert final.output[1].arguments == '{"city": "Paris"}'  # type: ignore[union-attr]
    assert kinds.index("response.reasoning_text.done") < kinds.index("response.function_call_arguments.done")


class Verdict(BaseModel):
    """A verdict."""

    verdict: Literal["good", "bad"]


def test_structured_output(server: Listening) -> None:
    got = server.openai().responses.parse(model="m+a", input=QUESTION, text_format=Verdict, max_output_tokens=60)
    assert isinstance(got.output_parsed, Verdict)


def test_log_probabilities(server: Listening) -> None:
    got = server.openai().responses.create(
        model="m+a", input=QUESTION, top_logprobs=2, include=["message.output_text.logprobs"]
    )
    [message] = got.output
    logs = message.content[0].logprobs  # type: ignore[union-attr]
    assert logs is not None
    assert len(logs) == 12
    assert all(len(entry.top_logprobs) == 2 for entry in logs)


def test_a_trace_comes_with_the_events_and_with_the_whole(server: Listening) -> None:
    given: Any = {"model": "m+a", "input": QUESTION, "extra_body": {"mara": {"trace": True}}}
    whole = server.openai().responses.create(**given).model_extra["mara"]["tokens"]  # type: ignore[index]
    *events, last = server.openai().responses.create(**given, stream=True)
    told = [token for event in events for token in (event.model_extra or {}).get("mara", {}).get("tokens", ())]
    assert len(told) == 12
    assert [token["token"] for token in told] == [token["token"] for token in whole]
    assert last.response.model_extra["mara"]["tokens"] == told  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0"),
        ({"input": []}, "input"),
        ({"input": "x", "tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"input": "x", "previous_response_id": "resp_1"}, "previous_response_id"),
        ({"input": "x", "truncation": "auto"}, "truncation"),
        ({"input": "egg " * 3000}, "input"),
    ],
)
def test_refusals(server: Listening, body: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        server.openai().responses.create(model="m", **body)
    assert refused.value.param == param


def test_the_table_is_complete_and_true() -> None:
    assert set(ROWS) == set(ResponsesRequest.model_fields)
    least = {"input": "x"}
    for name, verdict in ROWS.items():
        if verdict == "refused":
            with pytest.raises(ValidationError, match="not supported"):
                ResponsesRequest.model_validate({**least, name: "something"})
        if verdict == "ignored":
            ignored = ResponsesRequest.model_validate({**least, name: "something"})
            assert ignored.as_chat() == ResponsesRequest.model_validate(least).as_chat()
