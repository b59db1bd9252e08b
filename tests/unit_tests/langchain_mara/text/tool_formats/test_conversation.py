"""Conversations with tools in the template of every family: what is rendered is what the parser reads."""

from typing import Any

import pytest
from tool_families import FAMILIES, REAL, REAL_FOLDER, TOOLS, real_tokenizer, tokenizer_of

from langchain_mara.text.chat_template import encode_messages
from langchain_mara.text.control_tokens import control_tokens
from langchain_mara.text.detokenizer import IncrementalDetokenizer
from langchain_mara.text.tool_formats.answer import AnswerReader, ends_in_thoughts, markers
from langchain_mara.text.tool_formats.conversation import arrangement, habits_of
from langchain_mara.text.tool_formats.table import FORMATS, tool_format_of

Message = dict[str, Any]
EACH_FAMILY = pytest.mark.parametrize("family", FAMILIES)
ARGUMENTS: dict[str, dict[str, Any]] = {
    "get_weather": {"city": "Paris, (\"Île\" & 'France')"},
    "note": {
        "text": "a } ] ü\n<b> 5",
        "deep": {"list": [1, {"x": None}], "no": False},
        "count": 3,
        "sure": True,
        "much": 0.5,
    },
}
HI: Message = {"role": "user", "content": "hi"}
ENDS = ("<|end|>", "<|call|>", "<|eot|>", "<|eot_id|>", "<|im_end|>", "<|observation|>", "<|tool_response>")
ONE_CALL = {"llama-json", "harmony"}  # templates that write one call of a message


def call(name: str) -> Message:
    return {"type": "function", "id": f"call_{name}", "function": {"name": name, "arguments": ARGUMENTS[name]}}


def result(name: str, text: str) -> Message:
    return {"role": "tool", "content": text, "name": name, "tool_call_id": f"call_{name}"}


def says(*names: str) -> Message:
    return {"role": "assistant", "content": "", "tool_calls": [call(name) for name in names]}


def encode(tokenizer: Any, *messages: Message, name: str | None = None) -> list[int]:
    return encode_messages(tokenizer, messages, TOOLS, arrange=arrangement(tokenizer, name))


def read(tokenizer: Any, prompt: list[int], answer: list[int]) -> list[tuple[str, dict[str, Any]]]:
    """Calls of an answer, token by token as the decode loop hands them over."""
    tool_format = tool_format_of(tokenizer)
    detokenizer = IncrementalDetokenizer(tokenizer, (), markers(tokenizer, tool_format))
    reader = AnswerReader(tokenizer, tool_format, TOOLS, thinking=ends_in_thoughts(tokenizer, prompt))
    pieces = [reader.push(detokenizer.push(token)) for token in answer]
    pieces += [reader.push(detokenizer.finish()), reader.finish()]
    assert "".join(piece.content for piece in pieces).strip() == ""
    assert [wrong for piece in pieces for wrong in piece.invalid] == []
    return [(found.name, found.arguments) for piece in pieces for found in piece.calls]


def spoken_again(tokenizer: Any, prompt: list[int], names: list[str]) -> list[tuple[str, dict[str, Any]]]:
    """Calls that are read from what the template writes for them after a prompt."""
    text = tokenizer.decode(encode(tokenizer, HI, says(*names), result(names[-1], "END OF CALLS")))
    # The answer begins after the prompt, of which some templates change the last words once an answer follows.
    begun = tokenizer.decode(prompt).removesuffix("<think>\n").removesuffix("</think>")
    assert text.startswith(begun)
    spoken = text[len(begun) : text.index("END OF CALLS")]
    for beginning in ("<think>\n\n</think>\n\n", "<think></think>", "</think>"):
        spoken = spoken.removeprefix(beginning)
    for stop in (tokenizer.eos_token, *ENDS):
        spoken = spoken.partition(stop)[0]
    thinking = "</think>" if ends_in_thoughts(tokenizer, prompt) else ""
    return read(tokenizer, prompt, tokenizer(thinking + spoken, add_special_tokens=False).input_ids)


@EACH_FAMILY
@pytest.mark.parametrize("names", [["get_weather"], ["note"], ["get_weather", "note"]], ids=" ".join)
def test_calls_come_back_from_the_familys_template(family: str, names: list[str]) -> None:
    if family in ONE_CALL:
        names = names[-1:]  # for several, see the test of turns
    tokenizer = tokenizer_of(family)
    # Mistral's template puts the tools before the last turn of the user, wherever that is.
    prompt = encode_messages(tokenizer, [HI]) if family == "mistral-v3" else encode(tokenizer, HI)
    assert spoken_again(tokenizer, prompt, names) == [(name, ARGUMENTS[name]) for name in names]


@pytest.mark.parametrize("name", sorted(file.stem for file in REAL_FOLDER.glob("*.jinja")))
@pytest.mark.parametrize("names", [["get_weather"], ["note"], ["get_weather", "note"]], ids=" ".join)
def test_calls_come_back_from_templates_of_published_checkpoints(name: str, names: list[str]) -> None:
    tokenizer = real_tokenizer(name)
    tool_format = tool_format_of(tokenizer)
    assert tool_format.name == REAL[name]
    assert habits_of(tokenizer, tool_format).writes_several == (REAL[name] not in ONE_CALL)
    if REAL[name] in ONE_CALL:
        names = names[-1:]
    assert spoken_again(tokenizer, encode(tokenizer, HI), names) == [(called, ARGUMENTS[called]) for called in names]


@pytest.mark.parametrize("family", sorted(ONE_CALL))
def test_parallel_calls_become_turns_where_the_template_writes_one(family: str) -> None:
    tokenizer = tokenizer_of(family)
    results = [result("note", "kept"), result("get_weather", "sunny"), result("get_weather", "later windy")]
    text = tokenizer.decode(encode(tokenizer, HI, says("get_weather", "note"), *results))
    places = [text.index(part) for part in ("Île", "sunny", "later windy", "<b>", "kept")]
    assert places == sorted(places)
    alone = tokenizer.decode(encode(tokenizer, HI, says("get_weather"), result("get_weather", "sunny")))
    assert text.startswith(alone[: alone.index("sunny")])


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - ONE_CALL - {"prompt", "granite", "phi-4"}))
def test_what_the_template_does_itself_is_left_to_it(family: str) -> None:
    tokenizer = tokenizer_of(family)
    habits = habits_of(tokenizer, FORMATS[family])
    assert habits.writes_calls
    assert habits.writes_several
    assert habits.takes_text == family.startswith("deepseek")
    assert habits.writes_results


def test_a_template_without_tools_is_told_of_them_in_a_message() -> None:
    tokenizer = tokenizer_of("prompt")
    system = {"role": "system", "content": "Be brief."}
    results = [result("get_weather", "sunny"), result("note", "kept")]
    text = tokenizer.decode(encode(tokenizer, HI, says("get_weather", "note"), *results))
    assert text.startswith("<bos><start_of_turn>user\nYou may call these functions:\n" + '{"name": "get_weather"')
    assert text.count("<start_of_turn>") == 4  # turns alternate, as this template wants
    assert "<tool_response>\nsunny\n</tool_response>\n<tool_response>\nkept\n</tool_response>" in text
    tokenizer = tokenizer_of("granite")
    text = tokenizer.decode(encode(tokenizer, system, HI, name="prompt"))
    assert text.startswith("<|start_of_role|>system<|end_of_role|>Be brief.\n\nYou may call these functions:")
    assert "When a tool is required" not in text


@EACH_FAMILY
def test_results_and_arguments_cannot_write_control_tokens(family: str) -> None:
    tokenizer = tokenizer_of(family)
    controls = {tokenizer.convert_tokens_to_ids(token) for token in control_tokens(tokenizer).special}
    evil = "".join(sorted(control_tokens(tokenizer).special))

    def tokens(text: str) -> list[int]:
        said = says("get_weather")
        said["tool_calls"][0] = {
            **call("get_weather"),
            "function": {"name": "get_weather", "arguments": {"city": text}},
        }
        ids = encode(tokenizer, {"role": "user", "content": text}, said, result("get_weather", text))
        return [token for token in ids if token in controls]

    assert tokens(evil) == tokens("Hi")
