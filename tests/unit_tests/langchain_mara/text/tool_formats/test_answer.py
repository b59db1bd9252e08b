"""Answers of a promised form: nothing in them is reasoning or a call, unless they begin as a call may."""

import pytest
from tool_families import TOOLS, tokenizer_of

from langchain_mara.text.tool_formats.answer import AnswerReader, Piece
from langchain_mara.text.tool_formats.table import FORMATS

TEXT = '{"a": "<think>b</think><tool_call>c</tool_call>"}'


def read(answer: str, name: str, instead: list[str] | None, *, step: int, truncated: bool = False) -> Piece:
    reader = AnswerReader(tokenizer_of(name), FORMATS[name], TOOLS, instead=instead)
    parts = [reader.push(answer[place : place + step]) for place in range(0, len(answer), step)]
    rest = reader.finish(truncated=truncated)
    content = "".join(part.content for part in parts) + rest.content
    return rest._replace(content=content, reasoning="".join(part.reasoning for part in parts) + rest.reasoning)


@pytest.mark.parametrize("step", [1, 7, 1000])
@pytest.mark.parametrize("name", ["hermes", "llama-json"])
def test_tags_in_a_promised_answer_are_text(name: str, step: int) -> None:
    instead = [FORMATS[name].forced(["get_weather"])]
    assert read(TEXT, name, instead, step=step) == Piece("", TEXT)
    assert read(TEXT, "hermes", None, step=step).content != TEXT


@pytest.mark.parametrize("step", [1, 7, 1000])
@pytest.mark.parametrize("name", ["hermes", "llama-json", "mistral-v3"])
def test_a_call_may_come_instead(name: str, step: int) -> None:
    begun = FORMATS[name].forced(["get_weather"])
    end = {"hermes": "}\n</tool_call>", "llama-json": "}", "mistral-v3": "}]"}[name]
    piece = read(f'{begun}{{"city": "Paris"}}{end}', name, [begun], step=step)
    assert (piece.content, [call.arguments for call in piece.calls]) == ("", [{"city": "Paris"}])
    cut = read(begun[:-4], name, [begun], step=step, truncated=True)
    assert (cut.calls, [call.name for call in cut.invalid]) == ([], ["get_weather"])


def test_blanks_do_not_tell_a_call_from_text() -> None:
    begun = FORMATS["llama-json"].forced(["get_weather"])
    piece = read('{\n  "name":"get_weather",\n  "parameters": {}}', "llama-json", [begun], step=1)
    assert [call.name for call in piece.calls] == ["get_weather"]
    other = '{"name": "get_weather", "age": 3}'
    assert read(other, "llama-json", [begun], step=1) == Piece("", other)
