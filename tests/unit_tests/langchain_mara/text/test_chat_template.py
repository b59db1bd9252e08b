"""Prompts become token ids with one BOS, and templates that cannot render say so."""

from collections.abc import Callable

import pytest
from families import tiny_model
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from langchain_mara.exceptions import PromptError
from langchain_mara.text.chat_template import encode_messages, encode_text, eos_token_ids, render

MakeTokenizer = Callable[[], PreTrainedTokenizerFast]
USER = {"role": "user", "content": "is it so?"}
SYSTEM = {"role": "system", "content": "be nice."}
REFUSES_SYSTEM = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{{ message['content'] }}{% endfor %}"
)


def test_the_tokenizer_itself_would_write_a_second_bos(tokenizer: PreTrainedTokenizerFast) -> None:
    text = tokenizer.apply_chat_template([USER], tokenize=False, add_generation_prompt=True)
    assert tokenizer(text).input_ids[:2] == [0, 0]


@pytest.mark.parametrize("messages", [[USER], [SYSTEM, USER], [USER, {"role": "model", "content": "no."}, USER]])
def test_conversation_has_one_bos_and_ends_ready_for_the_answer(
    tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, str]]
) -> None:
    ids = encode_messages(tokenizer, messages)
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1
    written = "".join(f"<|{message['role']}|>{message['content']}" for message in messages)
    assert tokenizer.decode(ids) == f"<s>{written}<|model|>"
    assert ids[-1] == tokenizer.convert_tokens_to_ids("<|model|>")


def test_system_prompt_stands_before_the_prompt(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = encode_messages(tokenizer, [SYSTEM, USER])
    assert tokenizer.decode(ids).startswith("<s><|system|>be nice.<|user|>is it so?")


def test_plain_text_has_the_tokenizers_bos(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = encode_text(tokenizer, "is it so?")
    assert ids.count(0) == 1
    assert tokenizer.decode(ids) == "<s>is it so?"
    assert encode_text(tokenizer, "") == [0]


def test_plain_text_that_is_already_rendered_has_one_bos(tokenizer: PreTrainedTokenizerFast) -> None:
    rendered = tokenizer.apply_chat_template([USER], tokenize=False, add_generation_prompt=True)
    assert encode_text(tokenizer, rendered).count(tokenizer.bos_token_id) == 1


def test_template_that_refuses_a_role_is_quoted(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = REFUSES_SYSTEM
    assert encode_messages(tokenizer, [USER]).count(0) == 1
    tokenizer.chat_template = REFUSES_SYSTEM.replace("'system'", "'tool'")
    with pytest.raises(PromptError, match="roles user, tool: System role not supported"):
        encode_messages(tokenizer, [USER, {"role": "tool", "content": "7"}])


@pytest.mark.parametrize(
    ("messages", "texts"),
    [
        ([SYSTEM, USER], "be nice.\n\nis it so?"),
        ([SYSTEM, SYSTEM, USER, USER], "be nice.\n\nbe nice.\n\nis it so?is it so?"),
        ([USER, {"role": "model", "content": "no."}, SYSTEM, USER], "is it so?no.be nice.\n\nis it so?"),
        ([SYSTEM], "be nice."),
    ],
)
def test_a_refused_system_message_comes_before_the_user_message_that_follows(
    make_tokenizer: MakeTokenizer, messages: list[dict[str, str]], texts: str
) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = REFUSES_SYSTEM
    assert tokenizer.decode(encode_messages(tokenizer, messages)) == f"<s>{texts}"


ALTERNATES = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('no turn') }}"
    "{% endif %}[{{ m.content }}]{% endfor %}"
)


@pytest.mark.parametrize(
    ("roles", "texts"),
    [
        (["user", "user"], "[is it so?\n\nis it so?]"),
        (["user", "assistant", "user", "user"], "[is it so?][no.][is it so?\n\nis it so?]"),
        (["user", "assistant", "assistant"], "[is it so?][no.\n\nno."),
        (["system", "user", "user"], "[be nice.\n\nis it so?\n\nis it so?]"),
        (["user", "system", "system", "user"], "[is it so?\n\nbe nice.\n\nbe nice.\n\nis it so?]"),
    ],
)
def test_texts_of_one_role_in_a_row_are_one_where_the_template_wants_turns(
    make_tokenizer: MakeTokenizer, roles: list[str], texts: str
) -> None:
    said = {"user": "is it so?", "assistant": "no.", "system": "be nice."}
    tokenizer = make_tokenizer()
    tokenizer.chat_template = ALTERNATES
    assert render(tokenizer, [{"role": role, "content": said[role]} for role in roles]) == texts
    tokenizer.chat_template = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    apart = "".join(f"[{said[role]}]" for role in roles)
    assert render(tokenizer, [{"role": role, "content": said[role]} for role in roles], closed=True) == apart
    tokenizer.chat_template = ALTERNATES
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    with pytest.raises(PromptError, match="refuses messages of the roles user, assistant, assistant: no turn"):
        render(tokenizer, [{"role": "user", "content": "a"}, call, call])


@pytest.mark.parametrize(
    "fault", ["messages[5]['content']", "messages[0]['content'] + 1", "'%(x)s' | format(a=1)", "1 / 0"]
)
def test_a_template_that_trips_over_the_messages_is_quoted(make_tokenizer: MakeTokenizer, fault: str) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = f"{{{{ {fault} }}}}"
    with pytest.raises(PromptError, match="chat template refuses messages of the roles user: "):
        encode_messages(tokenizer, [USER])


def test_template_with_a_syntax_error_is_quoted(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}"
    with pytest.raises(PromptError, match="chat template refuses messages of the roles user"):
        encode_messages(tokenizer, [USER])


def test_tokenizer_without_template_is_refused_with_the_way_out(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(PromptError, match="no chat template. Set use_chat_template=False"):
        encode_messages(tokenizer, [USER])


@pytest.mark.parametrize(
    ("configured", "expected"),
    [(None, {1}), (1, {1}), (7, {1, 7}), ([7, 9], {1, 7, 9}), ([], {1}), (0, {0, 1})],
)
def test_every_configured_eos_ends_an_answer(
    tokenizer: PreTrainedTokenizerFast, configured: int | list[int] | None, expected: set[int]
) -> None:
    model = tiny_model("llama-3")
    model.generation_config.eos_token_id = configured
    assert eos_token_ids(model, tokenizer) == expected


def test_model_and_tokenizer_without_eos_have_none(make_tokenizer: MakeTokenizer) -> None:
    tokenizer, model = make_tokenizer(), tiny_model("llama-3")
    tokenizer.eos_token = None
    model.generation_config.eos_token_id = None
    assert eos_token_ids(model, tokenizer) == frozenset()


def test_model_that_cannot_generate_leaves_the_tokenizers_eos(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, model: PreTrainedModel
) -> None:
    monkeypatch.setattr(model, "generation_config", None)
    assert eos_token_ids(model, tokenizer) == {1}
