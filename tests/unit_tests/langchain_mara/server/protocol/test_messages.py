"""Messages as clients send them become LangChain's."""

from langchain_mara.server.protocol.messages import Message

CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}


def test_what_an_answer_holds_may_come_back() -> None:
    answer = {
        "role": "assistant", "content": None, "refusal": None, "annotations": [], "audio": None, "function_call": None,
        "tool_calls": [CALL], "reasoning_content": "Hm.",
    }  # fmt: skip
    assert Message.model_validate(answer).as_langchain() == {
        "role": "assistant",
        "content": "",
        "tool_calls": [CALL],
        "reasoning_content": "Hm.",
    }


def test_calls_that_were_no_json_do_not_end_the_conversation() -> None:
    for broken in ('{"a": ', "[1]", "no"):
        call = {**CALL, "function": {"name": "f", "arguments": broken}}
        message = Message.model_validate({"role": "assistant", "tool_calls": [call]}).as_langchain()
        assert message["tool_calls"][0]["function"]["arguments"] == "{}"


def test_a_tool_s_result() -> None:
    message = Message.model_validate({"role": "tool", "tool_call_id": "c1", "content": "5"})
    assert message.as_langchain() == {"role": "tool", "content": "5", "tool_call_id": "c1"}
