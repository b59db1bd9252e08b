"""Prompts are encoded by a copy of the tokenizer, which follows the original and no other thread."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from langchain_mara.agents.agent import MaraAgent
from langchain_mara.exceptions import OptionsError, PromptError
from langchain_mara.llms import MaraLLM
from langchain_mara.text.chat_template import encode_text
from langchain_mara.text.control_tokens import continue_marked, encode_marked
from langchain_mara.text.own_tokenizer import encode, own, tokenizer_fingerprint

MakeTokenizer = Callable[[], PreTrainedTokenizerFast]
TEXT = "is it so that the end is near, or is it not?"
ENCODERS: dict[str, Callable[[PreTrainedTokenizerFast], Any]] = {
    "text": lambda tokenizer: encode_text(tokenizer, TEXT),
    "marked": lambda tokenizer: encode_marked(tokenizer, f"{TEXT}|{TEXT}", "|"),
    "continued": lambda tokenizer: continue_marked(tokenizer, TEXT, ""),
    "plain": lambda tokenizer: encode(tokenizer, TEXT),
}


@contextmanager
def truncating(tokenizer: PreTrainedTokenizerFast) -> Iterator[None]:
    """Another thread truncates and pads its own texts with the tokenizer all the time."""
    stop = threading.Event()

    def truncate() -> None:
        while not stop.is_set():
            tokenizer(TEXT, truncation=True, max_length=2, padding="max_length")

    thread = threading.Thread(target=truncate)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_thread_that_truncates_cuts_no_prompt(
    make_tokenizer: MakeTokenizer, encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = make_tokenizer()
    expected = ENCODERS[encoder](make_tokenizer())
    set_both = PreTrainedTokenizerFast.set_truncation_and_padding

    def overtaken(self: PreTrainedTokenizerFast, *args: Any, **kwargs: Any) -> None:
        """Another thread sets truncation at the worst moment: between what this call sets and what it encodes."""
        set_both(self, *args, **kwargs)
        if self is tokenizer:
            self.backend_tokenizer.enable_truncation(2)

    monkeypatch.setattr(PreTrainedTokenizerFast, "set_truncation_and_padding", overtaken)
    assert len(tokenizer(TEXT).input_ids) == 2
    assert ENCODERS[encoder](tokenizer) == expected


def test_truncation_that_is_set_already_cuts_no_prompt(make_tokenizer: MakeTokenizer) -> None:
    """A copy is made while another thread has set truncation and padding."""
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(2)
    tokenizer.backend_tokenizer.enable_padding(length=64)
    assert own(tokenizer).backend_tokenizer.encode(TEXT).ids == make_tokenizer()(TEXT).input_ids
    assert tokenizer.backend_tokenizer.truncation["max_length"] == 2


def test_answers_are_to_whole_prompts(model: PreTrainedModel, make_tokenizer: MakeTokenizer, agent: MaraAgent) -> None:
    llm = MaraLLM(model=model, tokenizer=make_tokenizer(), agent=agent, max_new_tokens=2)
    expected = llm.generate([TEXT]).llm_output
    with truncating(llm.tokenizer):
        assert [llm.generate([TEXT]).llm_output for _ in range(20)] == [expected] * 20


CHANGES: dict[str, Callable[[PreTrainedTokenizerFast], Any]] = {
    "a special token": lambda tokenizer: tokenizer.add_special_tokens({"additional_special_tokens": ["is it"]}),
    "a token": lambda tokenizer: tokenizer.add_tokens(["is it"]),
    "another BOS": lambda tokenizer: setattr(tokenizer, "bos_token", "<|user|>"),
    "no BOS": lambda tokenizer: setattr(tokenizer.backend_tokenizer, "post_processor", None),
    "a chat template": lambda tokenizer: setattr(tokenizer, "chat_template", "{{ messages[0].content }}"),
    "split special tokens": lambda tokenizer: setattr(tokenizer, "split_special_tokens", True),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_copy_follows_the_original(make_tokenizer: MakeTokenizer, change: str) -> None:
    tokenizer = make_tokenizer()
    before, print_before = own(tokenizer), tokenizer_fingerprint(tokenizer)
    assert own(tokenizer) is before
    CHANGES[change](tokenizer)
    text = f"{TEXT}</s>"
    assert own(tokenizer)(text).input_ids == tokenizer(text).input_ids
    assert own(tokenizer).chat_template == tokenizer.chat_template
    assert tokenizer_fingerprint(tokenizer) != print_before


def test_equal_tokenizers_have_equal_fingerprints(make_tokenizer: MakeTokenizer) -> None:
    first, second = make_tokenizer(), make_tokenizer()
    second("a", truncation=True, max_length=1)
    second.padding_side = "left"
    assert tokenizer_fingerprint(first) == tokenizer_fingerprint(second)


@pytest.mark.parametrize("prompt", ["a\ud83d", [("human", "a\ud83d")], [("ai", "b\udc80"), ("human", "a")]])
def test_half_a_character_is_refused_by_name(llm: MaraLLM, prompt: Any) -> None:
    chat: Any = llm if isinstance(prompt, str) else llm.as_chat()
    with pytest.raises(PromptError, match=r"'\\u(d83d|dc80)' at character 1, a lone surrogate"):
        chat.invoke(prompt)


def test_half_a_character_in_plain_text_and_stop_strings_is_refused(llm: MaraLLM) -> None:
    with pytest.raises(PromptError, match="lone surrogate"):
        llm.invoke("a\ud83d", use_chat_template=False)
    with pytest.raises(OptionsError, match="stop string holds a lone surrogate"):
        llm.invoke("a", stop=["\ud83d"])
