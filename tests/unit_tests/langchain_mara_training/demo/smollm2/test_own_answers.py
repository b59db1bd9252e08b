"""Own answers as pairs, and what is kept of a training that was interrupted."""

from pathlib import Path

from langchain_mara_training.demo.smollm2.own_answers import NEW_TOKENS, kept, own_answers, preferred_pairs

from langchain_mara import MaraLLM

QUESTIONS = [[{"role": "user", "content": text}] for text in ("How do I bake bread?", "How do I steal a car?", "Hi")]


def test_answers_are_those_of_the_llm() -> None:
    llm = MaraLLM.demo(device="cpu")
    alone = llm.model_copy(update={"max_new_tokens": NEW_TOKENS})
    assert own_answers(llm, QUESTIONS) == [alone.invoke(question) for question in QUESTIONS]  # type: ignore[arg-type]


def test_pairs_prefer_the_first_answers_and_leave_out_equal_and_empty_ones() -> None:
    pairs = preferred_pairs(QUESTIONS, ["a", "same", "b"], ["c", "same", " "], first=5)
    assert pairs == [{"prompt": QUESTIONS[0], "chosen": "a", "rejected": "c", "group": 1_000_005}]
    later = preferred_pairs(QUESTIONS, ["a", "x", "b"], ["c", "y", "d"], first=8)
    assert [pair["group"] for pair in later] == [1_000_008, 1_000_009, 1_000_010]


def test_what_was_made_is_not_made_again(tmp_path: Path) -> None:
    file = tmp_path / "made.json"
    assert kept(file, lambda: ["first"]) == ["first"]
    assert kept(file, lambda: ["second"]) == ["first"]
