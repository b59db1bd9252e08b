"""Answers of families that call tools and think: messages, chunks, finish reasons, and what the template is given."""

import json
from functools import reduce
from operator import add
from typing import Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from scripted import scripted_chat
from tool_families import TOOLS, tokenizer_of

from langchain_mara import ChatMara
from langchain_mara.exceptions import OptionsError
from langchain_mara.text.tool_formats.calls import ToolCall
from langchain_mara.text.tool_formats.table import FORMATS

PARIS = ToolCall("get_weather", {"city": "Paris"})
CALL = FORMATS["hermes"].write([PARIS])
HI = [HumanMessage("hi")]


def hermes(answer: str, **fields: Any) -> ChatMara:
    return scripted_chat("hermes", answer, after="\n", **fields)


def streamed(runnable: Any) -> AIMessageChunk:
    merged: AIMessageChunk = reduce(add, runnable.stream(HI))
    return merged


def test_thoughts_are_apart_from_the_answer_and_streamed() -> None:
    chat = hermes("<think>\nHm, so.\n</think>\n\nYes.")
    answer = chat.invoke(HI)
    assert (answer.content, answer.additional_kwargs) == ("Yes.", {"reasoning_content": "Hm, so."})
    blocks = [(block["type"], block.get("reasoning") or block.get("text")) for block in answer.content_blocks]
    assert blocks == [("reasoning", "Hm, so."), ("text", "Yes.")]
    chunks = list(chat.stream(HI))
    thoughts = [chunk.additional_kwargs["reasoning_content"] for chunk in chunks if chunk.additional_kwargs]
    assert len(thoughts) > 3
    merged: Any = reduce(add, chunks)
    assert (merged.content, merged.additional_kwargs) == (answer.content, answer.additional_kwargs)
    assert answer.response_metadata["finish_reason"] == "stop"
    # All tokens but those of the answer, and the blanks before it.
    usage, rest = answer.usage_metadata, len(chat.tokenizer("\n\nYes.")["input_ids"])
    others = usage["output_tokens"] - usage["output_token_details"]["reasoning"]
    assert 0 < others <= rest + 2
    assert merged.usage_metadata == usage


@pytest.mark.parametrize("tools", [TOOLS, []])
def test_calls_in_thoughts_are_never_made(tools: list[dict[str, Any]]) -> None:
    chat = hermes(f"<think>\nMaybe {CALL}?\n</think>\n\nNo.")
    answer = chat.invoke(HI, tools=tools)
    assert (answer.content, answer.tool_calls, answer.invalid_tool_calls) == ("No.", [], [])
    assert answer.additional_kwargs["reasoning_content"] == f"Maybe {CALL}?"


def test_without_tools_nothing_is_a_call() -> None:
    assert hermes(CALL).invoke(HI).content == CALL
    bare = FORMATS["llama-json"].write([PARIS])
    chat = scripted_chat("llama-json", bare, after="\n")
    assert chat.invoke(HI).content == bare
    assert chat.invoke(HI, tools=TOOLS, tool_choice="none").content == bare
    assert chat.invoke(HI, tools=TOOLS).tool_calls[0]["args"] == {"city": "Paris"}
    assert chat.invoke(HI, tools=TOOLS).response_metadata["finish_reason"] == "tool_calls"
    plain = scripted_chat("llama-json", '{"name": "Bob"}', after="\n").invoke(HI, tools=TOOLS)
    assert (plain.content, plain.tool_calls, plain.invalid_tool_calls) == ('{"name": "Bob"}', [], [])


def test_an_invalid_call_has_all_its_fields() -> None:
    chat = hermes("Well.\n" + FORMATS["hermes"].write([ToolCall("erase", {"path": "/"}), PARIS])).bind_tools(TOOLS)
    answer = chat.invoke(HI)
    [invalid] = answer.invalid_tool_calls
    assert [call["name"] for call in answer.tool_calls] == ["get_weather"]
    assert len(str(invalid.pop("id"))) == 9
    assert invalid == {
        "type": "invalid_tool_call",
        "name": "erase",
        "args": '{"path": "/"}',
        "error": "erase is none of the tools offered in this call: get_weather, note.",
    }
    merged = streamed(chat)
    assert [call["name"] for call in merged.tool_calls] == ["get_weather"]
    assert "erase is none of the tools offered" in str(merged.invalid_tool_calls[0]["args"])


def test_a_truncated_call_is_no_call_and_the_reason_stays_length() -> None:
    whole = FORMATS["hermes"].write([PARIS, ToolCall("note", {"count": 12})])
    tokens = len(hermes(whole).get_token_ids(whole)) + 1  # with the EOS
    for length in (5, 30, 60, 75, 90, tokens - 20, tokens - 1, tokens):
        answer = hermes(whole).bind_tools(TOOLS).invoke(HI, max_new_tokens=length)
        reason = answer.response_metadata["finish_reason"]
        assert reason == ("length" if length < tokens else "tool_calls")
        assert all(call["args"] in ({"city": "Paris"}, {"count": 12}) for call in answer.tool_calls)
        assert len(answer.tool_calls) == 2 or (reason == "length" and answer.content == "")
        for invalid in answer.invalid_tool_calls:
            assert "Raise max_new_tokens" in str(invalid["error"])


@pytest.mark.parametrize(
    ("answer", "options", "reasons"),
    [
        ("Yes.", {}, ("stop", "stop")),
        ("Yes.", {"max_tokens": 2}, ("length", "length")),
        ("Yes.", {"stop": ["s"]}, ("stop", "stop")),
        (CALL, {}, ("tool_calls", "tool_call")),
        (CALL, {"max_tokens": 20}, ("length", "length")),
        (FORMATS["hermes"].write([ToolCall("erase", {})]), {}, ("stop", "stop")),
    ],
)
def test_reasons_are_told_in_openais_words_and_in_langchains(
    answer: str, options: dict[str, Any], reasons: tuple[str, str]
) -> None:
    chat = hermes(answer)
    bound = chat.bind_tools(TOOLS).bind(**options)
    for metadata in (bound.invoke(HI).response_metadata, streamed(bound).response_metadata):
        assert (metadata["finish_reason"], metadata["normalized_finish_reason"]) == reasons
        # By this, LangChain's summaries know whose token counts they read.
        assert metadata["model_provider"] == chat._get_ls_params()["ls_provider"]


@pytest.mark.parametrize(
    ("written", "arguments"),
    [("null}", {}), ('""}', {}), ('{"text": "one\ntwo"}}', {"text": "one\ntwo"}), ('{"count": 3}', {"count": 3})],
)
def test_arguments_are_repaired_where_only_one_repair_fits(written: str, arguments: dict[str, Any]) -> None:
    chat = hermes(f'<tool_call>\n{{"name": "note", "arguments": {written}\n</tool_call>')
    assert [call["args"] for call in chat.bind_tools(TOOLS).invoke(HI).tool_calls] == [arguments]


def test_a_forced_call_closes_thoughts_that_the_template_opens() -> None:
    rest = json.dumps({"city": "Paris"}) + "\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>"  # noqa: RUF001
    chat = scripted_chat("deepseek", rest, after="\n")
    prompt = chat.tokenizer.decode(chat._encode(HI, TOOLS, "<｜tool▁calls▁begin｜>"))  # noqa: RUF001
    assert prompt.endswith("<think>\n</think>\n\n<｜tool▁calls▁begin｜>")  # noqa: RUF001
    answer = chat.invoke(HI, tools=TOOLS, tool_choice="get_weather")
    assert [call["args"] for call in answer.tool_calls] == [{"city": "Paris"}]


def test_an_answer_after_an_opened_thought_begins_in_it() -> None:
    answer = scripted_chat("deepseek", "Hm.\n</think>\n\nYes.", after="\n").invoke(HI)
    assert (answer.content, answer.additional_kwargs) == ("Yes.", {"reasoning_content": "Hm."})


def test_harmony_channels() -> None:
    script = (
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary<|message|>I look.<|end|>"
        '<|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city": "Paris"}'
        "<|call|>"
    )
    answer = scripted_chat("harmony", script, after="assistant").bind_tools(TOOLS).invoke(HI)
    assert (answer.content, answer.additional_kwargs) == ("I look.", {"reasoning_content": "Hm."})
    assert [(call["name"], call["args"]) for call in answer.tool_calls] == [("get_weather", {"city": "Paris"})]
    script = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes."
    answer = scripted_chat("harmony", script, after="assistant").invoke(HI)
    assert (answer.content, answer.additional_kwargs) == ("Yes.", {"reasoning_content": "Hm."})


def test_variables_reach_the_template() -> None:
    chat = hermes("Yes.")

    def prompt(**fields: Any) -> str:
        return str(chat.tokenizer.decode(chat._configured(fields)._encode(HI, [])))

    assert prompt().endswith("assistant\n")
    assert prompt(enable_thinking=False).endswith("<think>\n\n</think>\n\n")
    assert prompt(chat_template_kwargs={"enable_thinking": False}) == prompt(enable_thinking=False)
    assert prompt(enable_thinking=True) == prompt()
    thoughtless = chat._identifying_params, chat._configured({"enable_thinking": False})._identifying_params
    assert thoughtless[0] != thoughtless[1]
    with pytest.raises(OptionsError, match="chat_template_kwargs=.* sets tools, which this library sets"):
        chat.invoke(HI, chat_template_kwargs={"tools": []})


@pytest.mark.parametrize(
    "said",
    [
        AIMessage("Wait.", additional_kwargs={"reasoning_content": "I mused."}),
        AIMessage([{"type": "reasoning", "reasoning": "I mused."}, {"type": "text", "text": "Wait."}]),
    ],
)
def test_thoughts_of_earlier_turns_come_as_the_template_wants(said: AIMessage) -> None:
    chat = hermes("Yes.")
    call = {"name": "get_weather", "args": {"city": "Paris"}, "id": "call_1"}
    called = said.model_copy(update={"tool_calls": [call]})
    result = ToolMessage("sun", tool_call_id="call_1")
    text = chat.tokenizer.decode(chat._encode([*HI, called, result], TOOLS))
    assert "<think>\nI mused.\n</think>\n\nWait.\n<tool_call>" in text  # in the turn of the agent that goes on
    text = chat.tokenizer.decode(chat._encode([*HI, said, HumanMessage("and?")], TOOLS))
    assert "mused" not in text
    llama = scripted_chat("llama-json", "Yes.", after="\n")
    assert "mused" not in llama.tokenizer.decode(llama._encode([*HI, said, HumanMessage("and?")], ()))


def test_the_format_can_be_another_for_the_model_or_a_call() -> None:
    text = FORMATS["glm"].write([PARIS])
    assert hermes(text).bind_tools(TOOLS).invoke(HI).tool_calls == []
    for bound in (hermes(text, tool_format="glm").bind_tools(TOOLS), hermes(text).bind_tools(TOOLS, tool_format="glm")):
        assert bound.invoke(HI).tool_calls[0]["args"] == {"city": "Paris"}
    with pytest.raises(OptionsError, match="tool_format='xml'"):
        hermes(text, tool_format="xml")


def test_a_model_without_tools_in_its_template_calls_them_too() -> None:
    chat = scripted_chat("prompt", FORMATS["prompt"].write([PARIS]), after="\n").bind_tools(TOOLS)
    [call] = chat.invoke(HI).tool_calls
    assert (call["name"], call["args"]) == ("get_weather", {"city": "Paris"})


@pytest.mark.parametrize("family", ["mistral-v11", "gemma-4"])
def test_special_tokens_around_thoughts_and_calls_stay_out_of_the_text(family: str) -> None:
    thought = {"mistral-v11": "[THINK]Hm.[/THINK]", "gemma-4": "<|channel>thought\nHm.\n<channel|>"}[family]
    end = {"mistral-v11": "[/INST]", "gemma-4": "\n"}[family]
    chat = scripted_chat(family, f"{thought}Well.{FORMATS[family].write([PARIS])}", after=end)
    answer = chat.bind_tools(TOOLS).invoke(HI)
    assert (answer.content, answer.additional_kwargs) == ("Well.", {"reasoning_content": "Hm."})
    assert answer.tool_calls[0]["args"] == {"city": "Paris"}
    assert tokenizer_of(family).eos_token not in answer.content
