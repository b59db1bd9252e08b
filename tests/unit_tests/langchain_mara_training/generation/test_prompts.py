"""Prompts that leave no room for an answer are an error, left out or cut, and counted."""

import pytest
from chat_families import tokenizer_of
from families import tiny_model
from langchain_mara_training.data.row_report import PromptTooLongError, RowReport
from langchain_mara_training.generation.prompts import check_too_long, prompt_ids, with_room
from langchain_mara_training.storage.defaults import TooLong

from langchain_mara import MaraLLM
from langchain_mara.exceptions import DataError, OptionsError


def kept(length: int, answer: int, too_long: TooLong, context: int | None = 10) -> tuple[list[int] | None, RowReport]:
    report = RowReport()
    return with_room(list(range(length)), answer, context, "tiny", too_long, report), report


@pytest.mark.parametrize("too_long", ["error", "skip", "truncate-left"])
def test_what_fits_stays(too_long: TooLong) -> None:
    for length, answer, context in ((7, 3, 10), (1, 1, 10), (99, 99, None)):
        found, report = kept(length, answer, too_long, context)
        assert found == list(range(length))
        assert report.counts() == {"rows": 0}


@pytest.mark.parametrize("length", [10, 50])
def test_what_leaves_no_room(length: int) -> None:
    with pytest.raises(PromptTooLongError, match=rf'has {length} tokens, but tiny holds 10.*too_long="skip" leaves'):
        kept(length, 1, "error")
    found, report = kept(length, 1, "skip")
    assert (found, report.too_long) == (None, 1)
    # Only a prompt that leaves no room at all is too long for these two.
    assert kept(9, 5, "error")[0] == kept(9, 5, "skip")[0] == list(range(9))


@pytest.mark.parametrize(
    ("length", "answer", "expected"),
    [(10, 3, [0, *range(4, 10)]), (8, 3, [0, *range(2, 8)]), (50, 3, [0, *range(44, 50)]),
     # Half of the context stays with the prompt, however long the answer is.
     (50, 99, [0, *range(46, 50)]), (6, 99, [0, *range(2, 6)])],
)  # fmt: skip
def test_prompts_lose_their_first_tokens(length: int, answer: int, expected: list[int]) -> None:
    found, report = kept(length, answer, "truncate-left")
    assert (found, report.truncated) == (expected, 1)


def test_a_short_prompt_is_not_cut_for_a_long_answer() -> None:
    found, report = kept(5, 99, "truncate-left")
    assert (found, report.truncated) == ([0, 1, 2, 3, 4], 0)


def test_refusals() -> None:
    with pytest.raises(DataError, match="The prompt has no tokens"):
        kept(0, 1, "skip")
    with pytest.raises(OptionsError, match="too_long='cut' is unknown. Give error, skip or truncate-left"):
        check_too_long("cut")  # type: ignore[arg-type]
    llm = MaraLLM(model=tiny_model("llama-3"), tokenizer=tokenizer_of("chatml"), use_chat_template=False)
    for row in ({"prompt": "a", "tools": [{"type": "function"}]}, {"prompt": [{"role": "user", "content": "a"}]}):
        with pytest.raises(DataError, match="The prompt .* cannot be used: .*need a chat template"):
            prompt_ids(llm, row)
