"""Items become messages."""

from typing import Any

from langchain_mara.server.protocol.response_input import messages_of


def call(number: int) -> dict[str, Any]:
    return {"type": "function_call", "call_id": f"c{number}", "name": "f", "arguments": "{}"}


def test_a_text() -> None:
    assert messages_of("Hi", "Be brief.") == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
    ]


def test_thoughts_words_and_calls_are_one_turn() -> None:
    thought = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]}
    said = {"role": "assistant", "content": [{"type": "output_text", "text": "Let me see."}]}
    results = [{"type": "function_call_output", "call_id": f"c{i}", "output": "5"} for i in (1, 2)]
    turn, *answers = messages_of([thought, said, call(1), call(2), *results], None)
    assert (turn["role"], turn["content"], turn["reasoning_content"]) == ("assistant", "Let me see.", "Hm.")
    assert [each["id"] for each in turn["tool_calls"]] == ["c1", "c2"]
    assert answers == [{"role": "tool", "tool_call_id": f"c{i}", "content": "5"} for i in (1, 2)]


def test_calls_without_words() -> None:
    [turn] = messages_of([call(1), call(2)], None)
    assert [each["id"] for each in turn["tool_calls"]] == ["c1", "c2"]
