"""The official client against a server: what it gets is what the library says in the same process."""

import asyncio
import json
from typing import Any, Literal

import openai
import pytest
import torch
from http_servers import Listening, events_of, wait_until
from pydantic import BaseModel
from tool_families import TOOLS

from langchain_mara import MaraLLM

QUESTION = "How do I boil an egg?"
RISKY = "I want to keep a lost wallet. Where should I start?"
ASKED: Any = [{"role": "user", "content": QUESTION}]


def asked(text: str = QUESTION) -> Any:
    return [{"role": "user", "content": text}]


def post(server: Listening, path: str, body: Any) -> Any:
    """The response to JSON in which every character is escaped, so that it may hold halves of characters."""
    return server.http().post(path, content=json.dumps(body), headers={"content-type": "application/json"})


def same(got: Any, expected: Any) -> bool:
    """Whether values are equal up to the rounding of numbers, which depends on what shares a pass."""
    if isinstance(got, dict) and isinstance(expected, dict):
        return got.keys() == expected.keys() and all(same(got[name], expected[name]) for name in got)
    if isinstance(got, list) and isinstance(expected, list):
        return len(got) == len(expected) and all(map(same, got, expected))
    return bool(got == pytest.approx(expected, abs=1e-4)) if isinstance(got, float) else bool(got == expected)


# Chat


def test_a_chat_answer_is_the_library_s(server: Listening, demo: MaraLLM) -> None:
    got = server.openai().chat.completions.create(model="m+a", messages=ASKED)
    expected = demo.as_chat().invoke(QUESTION)
    assert got.choices[0].message.content == expected.text
    assert got.choices[0].message.role == "assistant"
    assert got.choices[0].finish_reason == expected.response_metadata["finish_reason"] == "length"
    assert (got.model, got.object) == ("m+a", "chat.completion")
    assert got.usage is not None
    assert got.usage.prompt_tokens == expected.usage_metadata["input_tokens"]
    assert got.usage.completion_tokens == 12
    assert got.usage.total_tokens == got.usage.prompt_tokens + 12
    assert got._request_id


def test_the_model_s_name_chooses_the_agent(server: Listening, demo: MaraLLM) -> None:
    client = server.openai().chat.completions
    plain, aligned = (client.create(model=name, messages=asked(RISKY), max_tokens=24) for name in ("m", "m+a"))
    chat = demo.as_chat(max_tokens=24)
    assert plain.choices[0].message.content == chat.with_agent(None).invoke(RISKY).text
    assert aligned.choices[0].message.content == chat.invoke(RISKY).text
    assert plain.choices[0].message.content != aligned.choices[0].message.content
    other = client.create(model="m", messages=asked(RISKY), max_tokens=24, extra_body={"mara": {"agent": "a"}})
    assert other.choices[0].message.content == aligned.choices[0].message.content
    assert other.model == "m+a"


def test_a_threshold_of_the_call(server: Listening, demo: MaraLLM) -> None:
    body = {"mara": {"threshold": 0.99, "fallback": -1}}
    got = server.openai().chat.completions.create(model="m+a", messages=asked(RISKY), extra_body=body)
    expected = demo.as_chat().invoke(RISKY, accept_threshold=0.99, fallback=-1)
    assert got.choices[0].message.content == expected.text != demo.as_chat().invoke(RISKY).text


def test_a_stream_says_the_same_as_the_whole(server: Listening) -> None:
    client = server.openai().chat.completions
    whole = client.create(model="m+a", messages=ASKED)
    chunks = list(client.create(model="m+a", messages=ASKED, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == (
        whole.choices[0].message.content
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 12
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


async def test_many_async_streams_at_once(server: Listening, demo: MaraLLM) -> None:
    client = server.async_openai()

    async def said(number: int) -> str:
        stream = await client.chat.completions.create(model="m+a", messages=asked(f"Boil {number} eggs?"), stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    got = await asyncio.gather(*map(said, range(12)))
    assert got == [demo.as_chat().invoke(f"Boil {number} eggs?").text for number in range(12)]


def test_the_helper_for_streams(server: Listening) -> None:
    with server.openai().chat.completions.stream(model="m+a", messages=ASKED, max_tokens=80) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert "content.delta" in kinds
    assert final.choices[0].message.content


def test_stop_and_max_completion_tokens(server: Listening) -> None:
    client = server.openai().chat.completions
    whole = client.create(model="m+a", messages=ASKED).choices[0].message.content
    assert whole is not None
    word = whole.split()[2]
    stopped = client.create(model="m+a", messages=ASKED, stop=[word]).choices[0]
    assert stopped.message.content == whole[: whole.index(word)]
    assert stopped.finish_reason == "stop"
    short = client.create(model="m+a", messages=ASKED, max_completion_tokens=3)
    assert short.usage is not None
    assert short.usage.completion_tokens == 3


def test_samples(server: Listening) -> None:
    client = server.openai().chat.completions

    def texts(**settings: Any) -> list[str | None]:
        got = client.create(model="m+a", messages=ASKED, **settings)
        return [choice.message.content for choice in got.choices]

    assert texts(temperature=1.5, seed=7) == texts(temperature=1.5, seed=7)
    assert len({*texts(temperature=1.5, seed=7), *texts(temperature=1.5, seed=8)}) == 2
    assert len({text for _ in range(3) for text in texts(temperature=1.5)}) > 1  # another seed for each request
    assert len(set(texts(n=4, seed=1, presence_penalty=0.5, frequency_penalty=0.5, top_p=0.99))) > 1
    assert texts(temperature=0) == texts()


def test_several_answers_in_one_stream(server: Listening) -> None:
    client = server.openai().chat.completions
    whole = client.create(model="m+a", messages=ASKED, n=3, seed=5)
    said = ["", "", ""]
    for chunk in client.create(model="m+a", messages=ASKED, n=3, seed=5, stream=True):
        for choice in chunk.choices:
            said[choice.index] += choice.delta.content or ""
    assert said == [choice.message.content for choice in whole.choices]


def test_log_probabilities(server: Listening, demo: MaraLLM) -> None:
    client = server.openai().chat.completions
    got = client.create(model="m+a", messages=ASKED, logprobs=True, top_logprobs=2).choices[0].logprobs
    expected = demo.as_chat().invoke(QUESTION, logprobs=True, top_logprobs=2).response_metadata["logprobs"]
    assert got is not None
    assert got.content is not None
    assert same([entry.model_dump() for entry in got.content], expected["content"])
    assert len(got.content) == 12
    streamed = client.create(model="m+a", messages=ASKED, logprobs=True, top_logprobs=2, stream=True)
    parts = [chunk.choices[0].logprobs for chunk in streamed]
    entries = [entry for part in parts if part for entry in part.content or ()]
    assert same([entry.model_dump() for entry in entries], expected["content"])


class Verdict(BaseModel):
    """A verdict."""

    verdict: Literal["good", "bad"]


def test_structured_output(server: Listening) -> None:
    got = server.openai().chat.completions.parse(model="m+a", messages=ASKED, response_format=Verdict, max_tokens=60)
    assert isinstance(got.choices[0].message.parsed, Verdict)


def test_what_was_examined(server: Listening, demo: MaraLLM) -> None:
    body = {"mara": {"trace": True}}
    got = server.openai().chat.completions.create(model="m+a", messages=asked(RISKY), extra_body=body).choices[0]
    [trace] = demo.as_chat().trace([RISKY])
    tokens = got.model_extra["mara"]["tokens"]
    probabilities = [[each["accept_probability"] for each in token["candidates"]] for token in tokens]
    assert same(probabilities, [list(decision.accept_probabilities) for decision, _ in trace])
    assert got.model_extra["mara"]["statistics"]["tokens"] == len(tokens) == 12
    assert 1 <= got.model_extra["mara"]["statistics"]["passes"] <= 20
    assert {token["outcome"] for token in tokens} <= {"accepted", "steered", "fallback", "skipped", "unasked"}
    assert "".join(token["token"] for token in tokens).strip() == (got.message.content or "").strip()
    assert any(len(token["candidates"]) > 1 for token in tokens)
    streamed = server.openai().chat.completions.create(model="m+a", messages=asked(RISKY), extra_body=body, stream=True)
    choices = [chunk.choices[0] for chunk in streamed]
    assert same([token for choice in choices for token in choice.model_extra.get("mara", {}).get("tokens", ())], tokens)


# Tools


def test_tool_calls(calling: Listening) -> None:
    client = calling.openai().chat.completions
    got = client.create(model="m", messages=ASKED, tools=TOOLS).choices[0]  # type: ignore[arg-type]
    assert got.finish_reason == "tool_calls"
    assert got.message.tool_calls is not None
    [call] = got.message.tool_calls
    assert (call.type, call.function.name) == ("function", "get_weather")
    assert call.function.arguments == '{"city": "Paris"}'
    assert got.message.content is None
    assert got.message.model_extra["reasoning_content"] == "Hm."
    answered: Any = [
        *ASKED,
        got.message.model_dump(),
        {"role": "tool", "tool_call_id": call.id, "content": "Rain."},
    ]
    again = client.create(model="m", messages=answered, tools=TOOLS, max_tokens=4)  # type: ignore[arg-type]
    assert again.choices[0].finish_reason == "length"


def test_tool_calls_in_a_stream(calling: Listening) -> None:
    client = calling.openai().chat.completions
    with client.stream(model="m", messages=ASKED, tools=TOOLS) as stream:  # type: ignore[arg-type]
        final = stream.get_final_completion().choices[0]
    assert final.finish_reason == "tool_calls"
    assert final.message.tool_calls is not None
    [call] = final.message.tool_calls
    assert (call.function.name, call.function.arguments) == ("get_weather", '{"city": "Paris"}')


class Weather(BaseModel):
    """The weather of a city."""

    city: str


def test_tool_calls_parsed(calling: Listening) -> None:
    tool = openai.pydantic_function_tool(Weather, name="get_weather")
    got = calling.openai().chat.completions.parse(model="m", messages=ASKED, tools=[tool]).choices[0]
    assert got.message.tool_calls is not None
    assert got.message.tool_calls[0].function.parsed_arguments == Weather(city="Paris")


def test_tool_choice(calling: Listening) -> None:
    client = calling.openai().chat.completions
    none = client.create(model="m", messages=ASKED, tools=TOOLS, tool_choice="none")  # type: ignore[arg-type]
    assert none.choices[0].message.tool_calls is None
    named: Any = {"type": "function", "function": {"name": "nobody"}}
    with pytest.raises(openai.BadRequestError, match="none of the tools: get_weather, note"):
        client.create(model="m", messages=ASKED, tools=TOOLS, tool_choice=named)  # type: ignore[arg-type]


def test_langchain_s_client(calling: Listening) -> None:
    chat_openai = pytest.importorskip("langchain_openai").ChatOpenAI
    client = calling.openai()
    chat = chat_openai(model="m", client=client.chat.completions, root_client=client, api_key="none")
    answer = chat.bind_tools(TOOLS).invoke("Weather?")
    assert answer.tool_calls[0]["args"] == {"city": "Paris"}
    streamed = list(chat.bind_tools(TOOLS).stream("Weather?"))
    calls = [call for chunk in streamed for call in chunk.tool_call_chunks]
    assert [call["name"] for call in calls if call["name"]] == ["get_weather"]
    assert json.loads("".join(call["args"] or "" for call in calls)) == {"city": "Paris"}


def test_thoughts_are_counted(calling: Listening) -> None:
    client = calling.openai()
    plain: Any = {"model": "m", "messages": ASKED, "tools": TOOLS}
    whole = client.chat.completions.create(**plain).usage
    *_, last = client.chat.completions.create(**plain, stream=True, stream_options={"include_usage": True})
    assert whole is not None
    assert whole.completion_tokens_details is not None
    thoughts = whole.completion_tokens_details.reasoning_tokens
    assert last.usage == whole
    # "<think>Hm.</think>" is some tokens, the call many more.
    assert thoughts is not None
    assert 2 < thoughts < whole.completion_tokens / 2
    response = client.responses.create(model="m", input=QUESTION, tools=[{"type": "function", **TOOLS[0]["function"]}])
    assert response.usage is not None
    assert response.usage.output_tokens_details.reasoning_tokens == thoughts


# Text


def test_a_text_answer_is_the_library_s(server: Listening, demo: MaraLLM) -> None:
    client = server.openai().completions
    got = client.create(model="m+a", prompt=["You can", "An egg"], logprobs=2)
    llm = demo._copied({"use_chat_template": False})
    expected = llm.generate(["You can", "An egg"], logprobs=True, top_logprobs=2)
    assert [choice.text for choice in got.choices] == [each[0].text for each in expected.generations]
    assert [choice.index for choice in got.choices] == [0, 1]
    columns = got.choices[1].logprobs
    entries = expected.generations[1][0].generation_info["logprobs"]["content"]
    assert columns is not None
    assert columns.tokens == [entry["token"] for entry in entries]
    assert columns.token_logprobs == pytest.approx([entry["logprob"] for entry in entries], abs=1e-4)
    assert columns.text_offset == [sum(map(len, columns.tokens[:i])) for i in range(12)]
    assert all(len(top) == 2 for top in columns.top_logprobs or ())


def test_text_in_a_stream_and_from_tokens(server: Listening) -> None:
    client = server.openai().completions
    whole = client.create(model="m+a", prompt="You can")
    ids = server.http().post("/tokenize", json={"prompt": "You can"}).json()
    assert ids["count"] == len(ids["tokens"]) > 0
    assert client.create(model="m+a", prompt=ids["tokens"]).choices[0].text == whole.choices[0].text
    chunks = list(client.create(model="m+a", prompt="You can", stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text
    assert chunks[-1].usage == whole.usage


def test_the_prompt_is_scored(server: Listening, demo: MaraLLM) -> None:
    prompts = ["You can boil an egg", "An egg"]
    got = server.openai().completions.create(model="m+a", prompt=prompts, echo=True, logprobs=3, max_tokens=1)
    for prompt, choice in zip(prompts, got.choices, strict=True):
        ids = demo._copied({"use_chat_template": False}).encode(prompt)
        logits = demo.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        columns = choice.logprobs
        assert columns is not None
        assert columns.token_logprobs is not None
        assert columns.top_logprobs is not None
        assert len(columns.tokens or ()) == len(ids) + 1
        expected = [logits[place, token].item() for place, token in enumerate(ids[1:])]
        assert columns.token_logprobs[0] is columns.top_logprobs[0] is None
        assert columns.token_logprobs[1:-1] == pytest.approx(expected, abs=1e-3)
        best = logits[:-1].max(-1).values.tolist()
        assert [max(top.values()) for top in columns.top_logprobs[1:-1]] == pytest.approx(best, abs=1e-3)
        assert choice.text.startswith(prompt)
    assert got.usage is not None
    assert got.usage.completion_tokens == 2


@pytest.mark.parametrize("logprobs", [None, 2])
def test_the_prompt_comes_first_in_a_stream(server: Listening, logprobs: int | None) -> None:
    client, prompts = server.openai().completions, ["You can boil an egg", "An egg", "A"]
    more: Any = {"model": "m+a", "prompt": prompts, "echo": True, "logprobs": logprobs, "n": 2, "seed": 1}
    whole = client.create(**more)
    chunks = [chunk.choices[0] for chunk in client.create(**more, stream=True)]
    for choice in whole.choices:
        own = [chunk for chunk in chunks if chunk.index == choice.index]
        assert own[0].text == prompts[choice.index // 2]
        assert "".join(chunk.text for chunk in own) == choice.text
        assert [chunk.finish_reason for chunk in own if chunk.finish_reason] == [choice.finish_reason]
        if choice.logprobs is not None:
            for column in ("tokens", "token_logprobs", "text_offset"):
                joined = [value for chunk in own for value in getattr(chunk.logprobs, column)]
                assert same(joined, getattr(choice.logprobs, column))


def test_what_waits_for_scores_is_not_lost(server: Listening) -> None:
    """A long prompt is scored in more passes than its answer takes."""
    prompt = "You can boil an egg in a pot of hot water for some minutes. " * 2
    client = server.openai().completions
    given: Any = {"model": "m", "prompt": prompt, "echo": True, "logprobs": 1, "max_tokens": 2}
    chunks = [chunk.choices[0] for chunk in client.create(**given, stream=True)]
    assert chunks[0].text == prompt
    assert "".join(chunk.text for chunk in chunks) == client.create(**given).choices[0].text


# Other paths


def test_models(server: Listening) -> None:
    client = server.openai().models
    assert [model.id for model in client.list()] == ["m", "m+a"]
    assert client.retrieve("m+a").model_extra["mara"] == {"agent": "a"}
    with pytest.raises(openai.NotFoundError, match="There are: m, m"):
        client.retrieve("m+b")


def test_tokens_of_a_conversation(server: Listening, demo: MaraLLM) -> None:
    got = server.http().post("/tokenize", json={"messages": ASKED}).json()
    assert got["count"] == demo.as_chat().get_num_tokens_from_messages(
        demo.as_chat()._convert_input(QUESTION).to_messages()
    )


def test_health_and_figures(server: Listening) -> None:
    http = server.http()
    assert http.get("/health").json() == {"status": "ok"}
    assert http.get("/ready").json() == {"status": "ready"}
    server.openai().chat.completions.create(model="m+a", messages=asked(RISKY))

    def figures() -> dict[str, str]:
        lines = http.get("/metrics").text.splitlines()
        return dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))

    wait_until(lambda: float(figures()["mara_batch_rows"]) == 0)
    values = figures()
    assert float(values['mara_tokens_total{kind="answer",model="m+a"}']) >= 12
    assert float(values["mara_passes_total"]) > 0
    assert float(values['mara_candidates_total{what_became="passed_over"}']) > 0
    assert float(values["mara_queue"]) == 0
    assert float(values['mara_requests_total{path="/v1/chat/completions",status="200"}']) >= 1
    assert float(values["mara_first_token_seconds_count"]) >= 1


# Refusals

BAD: dict[str, tuple[dict[str, Any], str | None, str]] = {
    "no messages": ({"messages": []}, "messages", "at least 1 item"),
    "an unknown field": ({"messages": ASKED, "wat": 1}, "wat", "Unknown field: wat"),
    "an unknown field of ours": ({"messages": ASKED, "mara": {"wat": 1}}, "mara.wat", "Unknown field"),
    "a number out of range": ({"messages": ASKED, "temperature": 3}, "temperature", "less than or equal to 2"),
    "another type": ({"messages": ASKED, "max_tokens": "many"}, "max_tokens", "valid integer"),
    "logit_bias": ({"messages": ASKED, "logit_bias": {"1": 2}}, "logit_bias", "not supported"),
    "functions": ({"messages": ASKED, "functions": [{}]}, "functions", "Use tools"),
    "audio": ({"messages": ASKED, "modalities": ["text", "audio"]}, "modalities", "text only"),
    "store": ({"messages": ASKED, "store": True}, "store", "keeps no answers"),
    "an image": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages",
        "reads text only",
    ),
    "a role": ({"messages": [{"role": "bard", "content": "x"}]}, "messages.0.role", "should be"),
    "an agent": ({"messages": ASKED, "mara": {"agent": "b"}}, "mara.agent", "There are: none, a"),
    "both lengths": ({"messages": ASKED, "max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", "mean the same"),
    "a schema": (
        {"messages": ASKED, "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "wat"}}}},
        "response_format",
        "",
    ),
    "a number as a text": ({"messages": ASKED, "max_tokens": "5"}, "max_tokens", "valid integer"),
    "a truth as a number": ({"messages": ASKED, "n": True}, "n", "valid integer"),
    "many stop strings": ({"messages": ASKED, "stop": ["a"] * 17}, "stop", "at most 16"),
    "an empty stop string": ({"messages": ASKED, "stop": [""]}, "stop.0", "at least 1 character"),
    "no such tool": ({"messages": ASKED, "tools": TOOLS, "tool_choice": "x"}, "tool_choice", "none of the tools"),
    "a tool without a name": (
        {"messages": ASKED, "tools": [{"type": "function", "function": {}}]}, "tools", "is not a tool",
    ),
    "no regular expression": ({"messages": ASKED, "mara": {"regex": "("}}, "mara.regex", "unclosed group"),
    "half a character": ({"messages": asked("\ud800")}, "messages.0.content", "lone surrogate"),
    "half a character of a name": ({"messages": ASKED, "\udfff": 1}, None, "lone surrogate"),
    "a very long prompt": ({"messages": asked("e" * 10**6)}, "messages", "can never hold more than"),
    "very many messages": ({"messages": ASKED * 20_000}, "messages", "can never hold more than"),
    "a long prompt": ({"messages": asked("egg " * 3000)}, "messages", "holds"),
    "one answer many times": (
        {"messages": ASKED, "n": 2, "mara": {"order": "descending"}}, "n", "always gives the same",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_names_its_field(server: Listening, name: str) -> None:
    body, param, message = BAD[name]
    response = post(server, "/v1/chat/completions", body)
    error = response.json()["error"]
    assert response.status_code == 400, error
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert message in error["message"]


def test_the_official_client_knows_these_errors(server: Listening) -> None:
    client = server.openai()
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-4", messages=ASKED)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="m", prompt="egg " * 3000)
    assert (long.value.code, long.value.param) == ("context_length_exceeded", "prompt")
    with pytest.raises(openai.BadRequestError, match="makes no embeddings"):
        client.embeddings.create(model="m", input="x")
    for refused in ({"best_of": 2}, {"suffix": "x"}):
        with pytest.raises(openai.BadRequestError, match="not supported") as error:
            client.completions.create(model="m", prompt="x", extra_body=refused)
        assert error.value.param == next(iter(refused))


BAD_TEXTS: dict[str, tuple[dict[str, Any], str | None, str]] = {
    "a large token": ({"prompt": [10**20]}, "prompt.0", "less than"),
    "a negative token": ({"prompt": [-1]}, "prompt.0", "greater than or equal to 0"),
    "a token that is no number": ({"prompt": [True]}, "prompt", "valid string"),
    "many prompts": ({"prompt": ["a"] * 1025}, "prompt", "at most 1024"),
    "many answers to many prompts": ({"prompt": ["a"] * 1024, "n": 128}, "n", "may run and wait"),
    "a very long prompt": ({"prompt": "e" * 10**6}, "prompt", "can never hold more than"),
}

BAD_RESPONSES: dict[str, tuple[dict[str, Any], str | None, str]] = {
    "no input": ({"input": []}, "input", "at least 1 item"),
    "a long input": ({"input": "egg " * 3000}, "input", "holds"),
    "a tool without a name": ({"input": "x", "tools": [{"type": "function"}]}, "tools", "is not a tool"),
    "no format": ({"input": "x", "text": {"format": {"type": "json_schema"}}}, "text.format", "unknown form"),
    "no content": ({"input": [{"role": "user", "content": 5}]}, "input.0", "int where a text"),
    "no thoughts": ({"input": [{"type": "reasoning", "content": 5}]}, "input.0", "int where a text"),
    "a call of nothing": ({"input": [{"type": "function_call"}]}, "input.0", "function_call"),
    "half a character": ({"input": "x", "metadata": {"a": ["\ud800"]}}, "metadata.a.0", "lone surrogate"),
}


@pytest.mark.parametrize(
    ("path", "body", "param", "message"),
    [
        *[("/v1/completions", *each) for each in BAD_TEXTS.values()],
        *[("/v1/responses", *each) for each in BAD_RESPONSES.values()],
    ],
    ids=[*BAD_TEXTS, *(f"response: {name}" for name in BAD_RESPONSES)],
)
def test_a_bad_request_to_another_path_names_its_field(
    server: Listening, path: str, body: dict[str, Any], param: str | None, message: str
) -> None:
    response = post(server, path, body)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param), error
    assert message in error["message"]


def test_a_body_that_is_not_marked_as_json(server: Listening) -> None:
    response = server.http().post("/v1/completions", data={"prompt": "x"})
    assert response.status_code == 415
    assert "Content-Type: application/json" in response.json()["error"]["message"]


def test_what_is_no_request(server: Listening) -> None:
    http = server.http()
    assert (
        http.post("/v1/chat/completions", content=b"{", headers={"content-type": "application/json"})
        .json()["error"]["message"]
        .startswith("The body is not valid JSON")
    )
    assert http.get("/v1/chat/completions").status_code == 405
    assert http.get("/wat").json()["error"]["code"] == "unknown_url"


def test_fields_that_change_nothing(server: Listening) -> None:
    ignored = {
        "user": "u", "metadata": {"a": "b"}, "service_tier": "auto", "safety_identifier": "s", "store": False,
        "prompt_cache_key": "k", "prompt_cache_retention": "24h", "verbosity": "low",
    }  # fmt: skip
    http = server.http()
    plain, other = (
        http.post("/v1/chat/completions", json={"messages": ASKED, **more}).json()["choices"] for more in ({}, ignored)
    )
    assert plain == other


def test_a_stream_as_it_is_written(server: Listening) -> None:
    body = {"messages": ASKED, "stream": True}
    response = server.http().post("/v1/chat/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    chunks = events_of(response.text)
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert "usage" not in chunks[-1]
