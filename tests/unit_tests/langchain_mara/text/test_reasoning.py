"""Reasoning apart from the answer, however the text is cut; earlier thoughts go where the template reads them."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tool_families import tokenizer_of

from langchain_mara.text.reasoning import HARMONY, ReasoningTags, Thought, reasoning_tags, splitter, with_reasoning

KNOWN, UNKNOWN = ReasoningTags(), ReasoningTags(known=False)
CALL = "<tool_call>"
PREAMBLE = (
    "<|channel|>commentary<|message|>First.<|end|>"
    "<|start|>assistant to=functions.f<|channel|>commentary json<|message|>{}<|call|>"
)
Case = tuple[ReasoningTags, bool, str, str, str]
CASES: list[Case] = [
    (KNOWN, False, "<think>\nHm, <b>\n\nso.\n</think>\n\nYes, <think", "Hm, <b>\n\nso.", "Yes, <think"),
    (KNOWN, False, "\n<think>Hm</think>  indented", "Hm", "  indented"),
    (KNOWN, False, "<think>\n\n</think>\n\nYes.", "", "Yes."),
    (KNOWN, False, "Well. <think>Hm</think> Yes.", "Hm", "Well.  Yes."),
    (KNOWN, False, "<think>never ends", "never ends", ""),
    (KNOWN, False, "<think>a</think>x<think>b</think>y", "ab", "xy"),
    (KNOWN, False, " plain\ntext \n", "", " plain\ntext \n"),
    (KNOWN, True, "\nHm.\n</think>\n\nYes.", "Hm.", "Yes."),
    (KNOWN, True, "Hm", "Hm", ""),
    (KNOWN, False, f"<think>{CALL}no</think>{CALL}<think></think>", f"{CALL}no", f"{CALL}<think></think>"),
    (KNOWN, False, '{"a": "<think>b</think>"}', "", '{"a": "<think>b</think>"}'),
    (UNKNOWN, False, "<think>Hm</think>Yes.", "Hm", "Yes."),
    (UNKNOWN, False, "The tag <think> begins a thought.", "", "The tag <think> begins a thought."),
    (UNKNOWN, False, f"Well.{CALL}<think>", "", f"Well.{CALL}<think>"),
    (HARMONY, False, "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.",
     "Hm.", "Yes."),
    (HARMONY, False, PREAMBLE, "", "First.<|channel|>commentary to=functions.f<|message|>{}<|call|>"),
    (HARMONY, False, "<|channel|>analysis to=functions.f <|constrain|>json<|message|>{}", "",
     "<|channel|>commentary to=functions.f<|message|>{}"),
    (HARMONY, True, "goes on<|end|>", "goes on", ""),
    (HARMONY, False, "no channels", "", "no channels"),
]  # fmt: skip


def split(tags: ReasoningTags, inside: bool, chunks: list[str]) -> tuple[str, str]:
    parts = splitter(tags, inside=inside, calls=(CALL,), bare="{")
    found = [*(parts.push(chunk) for chunk in chunks), parts.finish()]
    return "".join(part.reasoning for part in found), "".join(part.answer for part in found)


@pytest.mark.parametrize(("tags", "inside", "text", "reasoning", "answer"), CASES)
@given(places=st.lists(st.integers(0, 200), max_size=20))
def test_parts_are_the_same_however_the_text_is_cut(
    tags: ReasoningTags, inside: bool, text: str, reasoning: str, answer: str, places: list[int]
) -> None:
    borders = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    assert split(tags, inside, [text[a:b] for a, b in pairwise(borders)]) == (reasoning, answer)
    assert split(tags, inside, list(text)) == (reasoning, answer)


@pytest.mark.parametrize("tags", [KNOWN, UNKNOWN, ReasoningTags("[THINK]", "[/THINK]")])
@given(text=st.text(alphabet="ab<[{}]>_ \n", max_size=40))
def test_text_without_tags_is_answer_to_the_letter(tags: ReasoningTags, text: str) -> None:
    assert split(tags, False, list(text)) == ("", text)


def test_thoughts_are_released_as_they_come() -> None:
    parts = splitter(KNOWN, inside=False)
    given_out = [parts.push(chunk) for chunk in ["<th", "ink>", "Hm", ", so", " </th", "ink>", "Yes"]]
    assert given_out == [Thought(), Thought(), Thought("Hm"), Thought(", so"), Thought(), Thought(), Thought("", "Yes")]


def test_without_tools_what_is_said_to_a_function_is_answer() -> None:
    parts = splitter(HARMONY, inside=False)
    assert parts.push("<|channel|>commentary to=functions.f<|message|>{}<|call|>") == Thought("", "{}")


@pytest.mark.parametrize(
    ("family", "tags"),
    [
        ("hermes", KNOWN),
        ("glm", KNOWN),
        ("deepseek", KNOWN),
        ("harmony", HARMONY),
        ("mistral-v11", ReasoningTags("[THINK]", "[/THINK]")),
        ("gemma-4", ReasoningTags("<|channel>thought\n", "<channel|>")),
        ("llama-json", UNKNOWN),
    ],
)
def test_tags_are_those_of_the_model(family: str, tags: ReasoningTags) -> None:
    assert reasoning_tags(tokenizer_of(family)) == tags


@pytest.mark.parametrize(
    ("prompt", "opened"),
    [("a<think>\n", True), ("a<think>", True), ("<think>\n\n</think>\n\n", False), ("<think>a", False)],
)
def test_a_prompt_may_open_thoughts(prompt: str, opened: bool) -> None:
    assert KNOWN.opened_by(prompt) is opened


@pytest.mark.parametrize(
    ("template", "placed"),
    [
        ("{{ m.reasoning_content }}", {"reasoning_content": "Hm"}),
        ("{{ m['reasoning'] }}", {"reasoning": "Hm"}),
        ("{% if m.thinking %}", {"thinking": "Hm"}),
        ("{% if enable_thinking %}{{ m.content }}", {}),
    ],
)
def test_earlier_thoughts_go_where_the_template_reads_them(template: str, placed: dict[str, str]) -> None:
    message = {"role": "assistant", "content": "Yes", "reasoning_content": "Hm"}
    assert with_reasoning([message], template) == [{"role": "assistant", "content": "Yes", **placed}]
    assert message["reasoning_content"] == "Hm"
