"""The model in tests/data/parrot still knows its lessons; python tests/parrot.py trains it anew."""

import pytest
from parrot import FOLDER, SURE, Lesson, encode, lessons, openings, render, taught_probabilities
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from langchain_mara import MaraLLM
from langchain_mara.loading.models import load_model

Parrot = tuple[PreTrainedModel, PreTrainedTokenizerBase]


@pytest.fixture(scope="module")
def parrot() -> Parrot:
    """The committed model and its tokenizer."""
    return load_model(FOLDER, device="cpu", local_files_only=True)


def ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    found: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return found


@pytest.mark.slow
def test_it_answers_every_lesson_as_taught_and_forced_calls_from_every_opening(parrot: Parrot) -> None:
    model, tokenizer = parrot
    expected = {}
    for lesson in lessons():
        for opening in ["", *openings(lesson)]:
            expected[render(tokenizer, lesson) + opening] = lesson.answer.removeprefix(opening)
    llm = MaraLLM(model=model, tokenizer=tokenizer, use_chat_template=False, max_new_tokens=100, batch_size=16)
    assert dict(zip(expected, llm.batch(list(expected)), strict=True)) == expected


def test_it_is_sure_of_every_token(parrot: Parrot) -> None:
    model, tokenizer = parrot
    least = {min(taught_probabilities(model, encode(tokenizer, lesson))) for lesson in lessons()}
    assert min(least) > SURE


def test_no_token_crosses_the_end_of_a_prompt_or_of_an_opening(parrot: Parrot) -> None:
    _, tokenizer = parrot
    for lesson in lessons():
        for opening in ["", *openings(lesson)]:
            parts = render(tokenizer, lesson), opening, lesson.answer.removeprefix(opening)
            assert ids(tokenizer, "".join(parts)) == [token for part in parts for token in ids(tokenizer, part)]


def test_a_call_in_the_history_reads_as_it_was_written(parrot: Parrot) -> None:
    _, tokenizer = parrot
    call = {"type": "function", "id": "random", "function": {"name": "say", "arguments": {"what": "你好", "times": 2}}}
    said = {"role": "assistant", "content": "", "tool_calls": [call]}
    text = render(tokenizer, Lesson([{"role": "user", "content": "hi"}, said], None, ""))
    written = '<tool_call>\n{"name": "say", "arguments": {"what": "你好", "times": 2}}\n</tool_call>'
    assert f"<|im_start|>assistant\n{written}<|im_end|>\n" in text
    assert "random" not in text
