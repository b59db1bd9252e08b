"""The tokenizer of a GGUF file gives the ids and texts that transformers gives for the same vocabulary."""

import copy
import random
from unicodedata import category

import pytest
from gguf_files import skip_without_llama_cpp, write_gguf

from langchain_mara import MaraLLM
from langchain_mara.text.own_tokenizer import encode, tokenizer_fingerprint
from langchain_mara.text.token_texts import TokenTexts

SCRIPTS = {
    "Latin": (0x41, 0x24F), "Greek": (0x391, 0x3C9), "Cyrillic": (0x410, 0x44F), "Hebrew": (0x5D0, 0x5EA),
    "Arabic": (0x620, 0x64A), "Devanagari": (0x905, 0x939), "Thai": (0xE01, 0xE2E), "Georgian": (0x10D0, 0x10F0),
    "Hangul": (0xAC00, 0xD7A3), "kana": (0x3041, 0x30F6), "Han": (0x4E00, 0x9FFF), "emoji": (0x1F600, 0x1F64F),
}  # fmt: skip


def strings(count: int = 1000) -> list[str]:
    """Random texts of words in a dozen scripts, with spaces, digits, punctuation and line ends between them."""
    drawn = random.Random(0)

    def word(first: int, last: int) -> str:
        letters = [chr(drawn.randint(first, last)) for _ in range(drawn.randint(1, 7))]
        return "".join(letter for letter in letters if category(letter) != "Cn")

    def text() -> str:
        words = [word(*drawn.choice(list(SCRIPTS.values()))) for _ in range(drawn.randint(1, 6))]
        between = drawn.choice([" ", "  ", ", ", "\n", " 12", "'s ", "...", "\t", " <|im_start|>", "<|user|>"])
        return drawn.choice(["", " "]) + between.join(words) + drawn.choice(["", " ", "!", "\n\n", "'ll"])

    return [text() for _ in range(count)]


@pytest.fixture(scope="module")
def demo() -> MaraLLM:
    """The bundled model, whose tokenizer knows all bytes."""
    return MaraLLM.demo(agent=None, packed=False, device="cpu")


@pytest.fixture(scope="module")
def converted(demo: MaraLLM, tmp_path_factory: pytest.TempPathFactory) -> MaraLLM:
    """The same model from a GGUF file."""
    skip_without_llama_cpp()
    file = write_gguf(demo.model, demo.tokenizer, tmp_path_factory.mktemp("gguf") / "demo.gguf")  # type: ignore[arg-type]
    return MaraLLM.from_gguf(file, n_ctx=512, n_threads=1)


def test_ids_and_texts_are_those_of_transformers(converted: MaraLLM, demo: MaraLLM) -> None:
    for text in strings():
        ids = encode(demo.tokenizer, text)
        assert encode(converted.tokenizer, text) == ids
        assert converted.tokenizer.decode(ids) == demo.tokenizer.decode(ids)
        assert converted.tokenizer.decode(ids[:-1], skip_special_tokens=True) == demo.tokenizer.decode(
            ids[:-1], skip_special_tokens=True
        )


def test_prompts_are_those_of_transformers(converted: MaraLLM, demo: MaraLLM) -> None:
    for text in strings(50):
        assert converted.encode(text) == demo.encode(text)
        assert converted.encode([{"role": "user", "content": text}]) == demo.encode([{"role": "user", "content": text}])


def test_special_tokens_in_messages_are_letters(converted: MaraLLM, demo: MaraLLM) -> None:
    special = next(token.content for token in demo.tokenizer.added_tokens_decoder.values() if token.special)
    message = [{"role": "user", "content": f"end {special} of"}]
    assert converted.encode(message) == demo.encode(message)
    assert converted.encode(message).count(demo.tokenizer.convert_tokens_to_ids(special)) == demo.encode(message).count(
        demo.tokenizer.convert_tokens_to_ids(special)
    )


def test_what_is_known_of_the_vocabulary_is_the_same(converted: MaraLLM, demo: MaraLLM) -> None:
    ours, theirs = converted.tokenizer, demo.tokenizer
    assert ours.get_vocab() == theirs.get_vocab()
    assert len(ours) == len(theirs)
    assert (ours.bos_token_id, ours.eos_token_id) == (theirs.bos_token_id, theirs.eos_token_id)
    assert ours.chat_template == theirs.chat_template
    texts = TokenTexts(ours), TokenTexts(theirs)
    assert [texts[0].text(i) for i in range(0, len(theirs), 7)] == [texts[1].text(i) for i in range(0, len(theirs), 7)]


def test_a_batch_of_texts_and_an_empty_one(converted: MaraLLM) -> None:
    assert converted.tokenizer("", add_special_tokens=False).input_ids == []
    batch = converted.tokenizer(["How do I", "boil"], add_special_tokens=False).input_ids
    assert batch == [converted.get_token_ids("How do I"), converted.get_token_ids("boil")]


def test_copies_share_the_vocabulary_and_fingerprints_tell_templates_apart(converted: MaraLLM) -> None:
    changed = copy.deepcopy(converted.tokenizer)
    assert tokenizer_fingerprint(changed) == tokenizer_fingerprint(converted.tokenizer)
    changed.chat_template = "{{ messages[0]['content'] }}"
    assert tokenizer_fingerprint(changed) != tokenizer_fingerprint(converted.tokenizer)


def test_answers_of_the_bundled_model_are_those_of_transformers(converted: MaraLLM, demo: MaraLLM) -> None:
    assert converted.invoke("How do I boil an egg?", max_new_tokens=12) == demo.invoke(
        "How do I boil an egg?", max_new_tokens=12
    )
