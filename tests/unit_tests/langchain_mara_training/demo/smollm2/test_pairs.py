"""The human preference pairs: complete, and divided by conversation."""

from langchain_mara_training.demo.smollm2.pairs import split_pairs


def test_no_conversation_is_in_two_parts() -> None:
    parts = split_pairs()
    assert [len(part) for part in parts] == [899, 540, 361]
    openings = [{pair["prompt"][0]["content"] for pair in part} for part in parts]
    assert sum(map(len, openings)) == len(set.union(*openings)) == 1707
    for part, opening in zip(parts, openings, strict=True):
        assert len({pair["group"] for pair in part}) == len(opening)


def test_a_split_is_always_the_same() -> None:
    first, second = split_pairs(), split_pairs()
    assert [pair["group"] for pair in first.test] == [pair["group"] for pair in second.test]


def test_prompts_end_with_the_user_and_answers_are_the_assistants() -> None:
    for pair in split_pairs().train:
        assert pair["prompt"][-1]["role"] == "user"
        assert [message["role"] for side in ("chosen", "rejected") for message in pair[side]] == ["assistant"] * 2
