"""IncrementalDetokenizer: whatever the tokens, what is released is the decoded text up to the first stop string."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from langchain_mara.exceptions import OptionsError
from langchain_mara.text.detokenizer import IncrementalDetokenizer

BYTE_LEVEL_IDS = st.lists(st.integers(0, 96), max_size=30)
# Whole characters only: byte fallback decodes a run of bytes as one, so that a broken character changes
# the text of earlier bytes, and no stream can equal it.
SENTENCEPIECE_IDS = st.lists(
    st.one_of(
        st.integers(0, 4).map(lambda i: [i]),
        st.integers(14, 25).map(lambda i: [i]),
        st.sampled_from([[5, 6], [7, 8, 9], [10, 11, 12, 13]]),
    ),
    max_size=20,
).map(lambda groups: [token for group in groups for token in group])


def released(
    tokenizer: PreTrainedTokenizerFast, ids: list[int], stop: list[str]
) -> tuple[list[str], IncrementalDetokenizer]:
    """Texts released by the tokens of an answer, and last by `finish`."""
    detokenizer = IncrementalDetokenizer(tokenizer, stop)
    texts = []
    for token in ids:
        texts.append(detokenizer.push(token))
        if detokenizer.stopped:
            break
    return [*texts, detokenizer.finish()], detokenizer


def cut(text: str, stop: list[str]) -> tuple[str, bool]:
    """The text before the stop string that is completed first, read character by character."""
    for end in range(len(text) + 1):
        complete = [string for string in stop if text[:end].endswith(string)]
        if complete:
            return text[: end - max(map(len, complete))], True
    return text, False


def decoded(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def draw_stop(data: st.DataObject, text: str) -> list[str]:
    """Up to three stop strings: parts of the text, or its characters shuffled."""
    alphabet = sorted(set(text)) or ["a"]
    shuffled = st.lists(st.sampled_from(alphabet), min_size=1, max_size=8).map("".join)
    parts = st.builds(lambda i, n: text[i : i + n] or "a", st.integers(0, len(text)), st.integers(1, 8))
    return data.draw(st.lists(st.one_of(parts, shuffled), max_size=3), label="stop")


def is_nested(stop: list[str]) -> bool:
    """Whether one stop string lies inside another and so may be completed while the other is pending."""
    return any(inner in outer[1:-1] for inner in stop for outer in stop)


@settings(max_examples=300)
@given(ids=BYTE_LEVEL_IDS, data=st.data())
def test_released_text_ends_before_the_first_completed_stop_string(
    tokenizer: PreTrainedTokenizerFast, ids: list[int], data: st.DataObject
) -> None:
    text = decoded(tokenizer, ids)
    stop = draw_stop(data, text)
    if is_nested(stop):
        stop = stop[:1]
    texts, detokenizer = released(tokenizer, ids, stop)
    assert ("".join(texts), detokenizer.stopped) == cut(text, stop)
    assert detokenizer.text == "".join(texts)


@settings(max_examples=150)
@given(ids=SENTENCEPIECE_IDS, data=st.data())
def test_the_same_holds_where_spaces_and_bytes_are_tokens(
    sentencepiece_tokenizer: PreTrainedTokenizerFast, ids: list[int], data: st.DataObject
) -> None:
    text = decoded(sentencepiece_tokenizer, ids)
    stop = draw_stop(data, text)[:1]
    texts, detokenizer = released(sentencepiece_tokenizer, ids, stop)
    assert ("".join(texts), detokenizer.stopped) == cut(text, stop)


@settings(max_examples=150)
@given(ids=BYTE_LEVEL_IDS)
def test_text_without_stop_strings_is_the_decoded_text(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> None:
    texts, detokenizer = released(tokenizer, ids, [])
    assert "".join(texts) == decoded(tokenizer, ids)
    assert not detokenizer.stopped


@settings(max_examples=150)
@given(ids=BYTE_LEVEL_IDS, data=st.data())
def test_no_more_is_held_back_than_may_begin_a_stop_string(
    tokenizer: PreTrainedTokenizerFast, ids: list[int], data: st.DataObject
) -> None:
    stop = draw_stop(data, decoded(tokenizer, ids))[:1]
    detokenizer = IncrementalDetokenizer(tokenizer, stop)
    for n, token in enumerate(ids, start=1):
        detokenizer.push(token)
        text = decoded(tokenizer, ids[:n])
        if detokenizer.stopped or text.endswith("\N{REPLACEMENT CHARACTER}"):
            break
        held = text.removeprefix(detokenizer.text)
        assert text == detokenizer.text + held
        longer = [text[-m:] for m in range(len(held) + 1, len(text) + 1)]
        assert held == "" or any(string.startswith(held) for string in stop)
        assert not any(string.startswith(end) and string != end for string in stop for end in longer)


@pytest.mark.parametrize(
    "split",
    [
        ["h", "e", "s"],
        ["he", "s"],
        pytest.param(["h", "es"]),
    ],
)
def test_first_completed_stop_string_cuts_however_the_text_is_split(
    tokenizer: PreTrainedTokenizerFast, split: list[str]
) -> None:
    ids = tokenizer.convert_tokens_to_ids(["a", *split])
    assert None not in ids
    assert cut("ahes", ["hes", "e"]) == ("ah", True)
    assert released(tokenizer, ids, ["hes", "e"])[1].text == "ah"


@pytest.mark.parametrize("text", ["é", "a€b", "😀😀", "ñé€😀", "the €nd"])
def test_character_of_several_bytes_is_released_whole_with_its_last_byte(
    tokenizer: PreTrainedTokenizerFast, text: str
) -> None:
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert len(ids) > len(text) - 3
    detokenizer = IncrementalDetokenizer(tokenizer)
    for n, token in enumerate(ids, start=1):
        released_text = detokenizer.push(token)
        assert "\N{REPLACEMENT CHARACTER}" not in released_text
        whole = decoded(tokenizer, ids[:n])
        if not whole.endswith("\N{REPLACEMENT CHARACTER}"):
            assert detokenizer.text == whole
    assert (detokenizer.text, detokenizer.finish()) == (text, "")


def test_stop_string_of_several_bytes_is_met_with_its_last_byte(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer("a b€ it", add_special_tokens=False).input_ids
    detokenizer = IncrementalDetokenizer(tokenizer, ["b€"])
    texts = []
    while not detokenizer.stopped:
        texts.append(detokenizer.push(ids[len(texts)]))
    assert "".join(texts) == "a "
    assert decoded(tokenizer, ids[: len(texts)]) == "a b€"


def test_finish_releases_what_only_began_a_stop_string(tokenizer: PreTrainedTokenizerFast) -> None:
    texts, detokenizer = released(tokenizer, tokenizer("sand", add_special_tokens=False).input_ids, ["ndx"])
    assert texts[-1] == "nd"
    assert detokenizer.text == "sand"
    assert not detokenizer.stopped


def test_finish_releases_an_incomplete_character(tokenizer: PreTrainedTokenizerFast) -> None:
    first_bytes = tokenizer("a😀", add_special_tokens=False).input_ids[:-1]
    texts, detokenizer = released(tokenizer, first_bytes, [])
    assert texts[0] == "a"
    assert set(texts[1:-1]) == {""}
    assert detokenizer.text == decoded(tokenizer, first_bytes) == "a\N{REPLACEMENT CHARACTER}"


def test_finish_after_a_stop_string_releases_nothing(tokenizer: PreTrainedTokenizerFast) -> None:
    texts, detokenizer = released(tokenizer, tokenizer("sand", add_special_tokens=False).input_ids, ["an"])
    assert (detokenizer.text, detokenizer.finish()) == ("s", "")
    assert detokenizer.stopped
    assert "".join(texts) == "s"


def test_special_tokens_have_no_text(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer("sand", add_special_tokens=False).input_ids
    assert "".join(released(tokenizer, [0, *ids, 3, 1], [])[0]) == "sand"


def test_first_space_is_no_text_where_the_tokenizer_strips_it(
    sentencepiece_tokenizer: PreTrainedTokenizerFast,
) -> None:
    ids = sentencepiece_tokenizer("abc €d a b", add_special_tokens=False).input_ids
    assert "".join(released(sentencepiece_tokenizer, ids, [])[0]) == "abc €d a b"


def test_empty_answer_is_empty(tokenizer: PreTrainedTokenizerFast) -> None:
    assert released(tokenizer, [], ["a"])[0] == [""]


def test_empty_stop_string_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(OptionsError, match="must not be empty"):
        IncrementalDetokenizer(tokenizer, ["a", ""])
