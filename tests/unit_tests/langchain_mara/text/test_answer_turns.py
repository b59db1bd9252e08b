"""Answers as the template renders them: the assistant's tokens with the end of each turn, and nothing of the others."""

from typing import Any

import pytest
from chat_families import tokenizer_of
from hypothesis import given
from hypothesis import strategies as st

from langchain_mara.exceptions import PromptError
from langchain_mara.text.answer_turns import Turn, encode_turns
from langchain_mara.text.chat_template import encode_messages

END = {"chatml": "<|im_end|>", "qwen": "<|im_end|>", "llama": "<|eot_id|>", "mistral": "</s>"}
HI: list[dict[str, Any]] = [{"role": "user", "content": "Hi"}]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def text_of(family: str, token_ids: list[int]) -> str:
    """The letters of tokens, whether or not the tokenizer splits them differently elsewhere."""
    tokenizer = tokenizer_of(family)
    if family == "mistral":  # it has no decoder
        return "".join(tokenizer.convert_ids_to_tokens(token_ids)).replace("▁", " ")
    return str(tokenizer.decode(token_ids))


def own(turns: list[Turn]) -> list[list[int]]:
    return [turn.token_ids for turn in turns if turn.is_assistant]


@pytest.mark.parametrize("known", [True, False], ids=["EOS known", "EOS unknown"])
@pytest.mark.parametrize("family", sorted(END))
def test_a_turn_ends_with_the_token_that_the_template_puts_there(family: str, known: bool) -> None:
    tokenizer = tokenizer_of(family)
    end = tokenizer.convert_tokens_to_ids(END[family])
    (turn,) = encode_turns(tokenizer, HI, [assistant("Hello there")], [end] if known else [])
    assert turn.is_assistant
    assert turn.token_ids[-1] == end
    assert turn.token_ids.count(end) == 1
    assert text_of(family, turn.token_ids[:-1]).strip() == "Hello there"


@pytest.mark.parametrize("family", sorted(END))
@given(texts=st.lists(st.text(st.sampled_from("the<|i>[]é😀."), min_size=1, max_size=9), min_size=1, max_size=5))
def test_prompt_and_turns_are_the_whole_conversation(family: str, texts: list[str]) -> None:
    tokenizer = tokenizer_of(family)
    answer = [(assistant, user)[i % 2](text) for i, text in enumerate(texts)][: len(texts) // 2 * 2 + 1]
    answer = answer if answer[-1]["role"] == "assistant" else answer[:-1]
    turns = encode_turns(tokenizer, HI, answer, [tokenizer.convert_tokens_to_ids(END[family])])
    whole = tokenizer.apply_chat_template([*HI, *answer], return_dict=False)
    ids = [*encode_messages(tokenizer, HI), *(token for turn in turns for token in turn.token_ids)]
    assert text_of(family, whole).strip() == text_of(family, ids).strip()
    assert len(own(turns)) == (len(answer) + 1) // 2
    assert [turn.is_assistant for turn in turns] == [i % 2 == 0 for i in range(len(turns))]


@pytest.mark.parametrize("family", sorted(END))
def test_an_answer_goes_on_with_the_open_turn_of_its_prompt(family: str) -> None:
    tokenizer = tokenizer_of(family)
    end = tokenizer.convert_tokens_to_ids(END[family])
    opened = [*HI, assistant("Hello, my")]
    assert text_of(family, encode_messages(tokenizer, opened)).endswith("Hello, my")
    (turn,) = encode_turns(tokenizer, opened, [assistant(" friend")], [end])
    assert text_of(family, turn.token_ids[:-1]) == " friend"
    assert turn.token_ids[-1] == end


@pytest.mark.parametrize("answer", [[], [user("No")], [assistant("Yes"), user("No")]])
def test_an_answer_ends_with_the_assistant(answer: list[dict[str, Any]]) -> None:
    with pytest.raises(PromptError, match="An answer must end with a message of the assistant"):
        encode_turns(tokenizer_of("chatml"), HI, answer, [])


def test_a_template_that_changes_earlier_turns_is_refused() -> None:
    answer = [assistant("<think>hm</think>Yes"), user("Sure?"), assistant("No")]
    tokenizer = tokenizer_of("qwen")
    forgetful = tokenizer.chat_template
    try:
        tokenizer.chat_template = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
        with pytest.raises(PromptError, match="changes earlier turns"):
            encode_turns(tokenizer, HI, answer, [])
    finally:
        tokenizer.chat_template = forgetful


def test_without_any_end_the_tokenizer_s_eos_is_added_once() -> None:
    tokenizer = tokenizer_of("chatml")
    template = tokenizer.chat_template
    try:
        tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}"
        (turn,) = encode_turns(tokenizer, HI, [assistant("Yes")], [])
        assert turn.token_ids[-1] == tokenizer.eos_token_id
        assert turn.token_ids.count(tokenizer.eos_token_id) == 1
    finally:
        tokenizer.chat_template = template


def test_a_blank_that_only_opens_an_answer_is_not_part_of_it() -> None:
    tokenizer = tokenizer_of("chatml")
    template = tokenizer.chat_template
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    try:
        tokenizer.chat_template = f"{template} "
        (turn,) = encode_turns(tokenizer, HI, [assistant("Yes")], [end])
        assert tokenizer.decode(turn.token_ids) == "Yes<|im_end|>"
    finally:
        tokenizer.chat_template = template
