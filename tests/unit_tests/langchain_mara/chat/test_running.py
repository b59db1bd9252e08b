"""Callbacks see a chat model's tokens with one id per message, unless LangChain was told not to stream."""

from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler

from langchain_mara import ChatMara, MaraLLM


class Recorder(BaseCallbackHandler):
    """Keeps the chunks and the results it is told of."""

    def __init__(self) -> None:
        self.chunks: list[Any] = []
        self.results: list[Any] = []

    def on_llm_new_token(self, token: str, *, chunk: Any = None, **_: Any) -> None:
        self.chunks.append(chunk)

    def on_llm_end(self, response: Any, **_: Any) -> None:
        self.results.append(response)


@pytest.fixture
def chat(llm: MaraLLM) -> ChatMara:
    return llm.as_chat()


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


async def test_all_chunks_of_a_message_have_its_id(chat: ChatMara) -> None:
    ids = set()
    for run in ("invoke", "ainvoke", "stream", "astream"):
        recorder = Recorder()
        config: Any = {"callbacks": [recorder]}
        if run == "invoke":
            message_ids = {chat.invoke("hi", config).id}
        elif run == "ainvoke":
            message_ids = {(await chat.ainvoke("hi", config)).id}
        elif run == "stream":
            message_ids = {chunk.id for chunk in chat.stream("hi", config)}
        else:
            message_ids = {chunk.id async for chunk in chat.astream("hi", config)}
        assert len(recorder.chunks) > 5
        assert {chunk.message.id for chunk in recorder.chunks} == message_ids
        assert len(message_ids) == 1
        assert None not in message_ids
        ids |= message_ids
    assert len(ids) == 4


def test_several_answers_have_several_ids(chat: ChatMara, recorder: Recorder) -> None:
    result = chat.generate([chat._convert_input("hi").to_messages()], callbacks=[recorder], n=2, order="sampled")
    first, second = [generation.message.id for generation in result.generations[0]]  # type: ignore[union-attr]
    assert first != second
    assert {chunk.message.id for chunk in recorder.chunks} == {first}


@pytest.mark.parametrize(
    ("fields", "call", "told"),
    [
        ({}, {}, True),
        ({"streaming": None}, {}, True),
        ({"streaming": True}, {}, True),
        ({"streaming": False}, {}, False),
        ({"disable_streaming": True}, {}, False),
        ({"disable_streaming": "tool_calling"}, {}, True),
        ({}, {"stream": False}, False),
        ({"streaming": False}, {"stream": True}, True),
    ],
    ids=str,
)
async def test_streaming_is_as_langchain_was_told(
    chat: ChatMara, fields: dict[str, Any], call: dict[str, Any], told: bool
) -> None:
    chat = ChatMara.from_llm(chat, **fields)
    for run in (chat.invoke, chat.ainvoke):
        recorder = Recorder()
        answer = run("hi", {"callbacks": [recorder]}, **call)
        message = answer if run == chat.invoke else await answer
        assert bool(recorder.chunks) == told
        assert recorder.results[0].generations[0][0].text == message.text != ""


def test_copies_of_a_model_stream_as_it_does(chat: ChatMara) -> None:
    for copied in (chat, chat.with_agent(None), ChatMara(**dict(chat)), ChatMara.from_llm(chat)):
        assert len([chunk for chunk in copied.stream("hi") if chunk.text]) > 5
