"""What goes into a store of answers comes out, in memory and on disk, and equal answers have equal digests."""

import hashlib

import pytest
from langchain_mara_training.labeling import answer_store
from langchain_mara_training.labeling.answer_store import AnswerStore
from langchain_mara_training.labeling.answer_tokens import LabeledAnswer

ANSWERS = [
    LabeledAnswer([5, 2**31 - 1, 7], 1, [True, False], 1, 1.0, 0),
    LabeledAnswer([5], 1, [], 0, 0.1, 2**63 - 1),
    LabeledAnswer(list(range(1000)), 4, [i % 3 == 0 for i in range(996)], 0, 1 / 3, -(2**63)),
]


@pytest.mark.parametrize("most", [1, 2**20])
def test_answers_come_out_in_any_order(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_store, "_MOST_IN_MEMORY", most)
    store = AnswerStore()
    for answer in ANSWERS:
        store.add(answer)
    assert [store[i] for i in (2, 0, 1)] == [ANSWERS[i] for i in (2, 0, 1)]
    store.add(ANSWERS[0])
    assert list(store) == [*ANSWERS, ANSWERS[0]]
    assert [store.owned(i) for i in range(3)] == [sum(answer.is_own) for answer in ANSWERS]
    assert [store.length(i) for i in range(3)] == [3, 1, 1000]


def test_the_digest_is_that_of_a_list() -> None:
    digests = []
    for count in range(4):
        store = AnswerStore()
        for answer in ANSWERS[:count]:
            store.add(answer)
        listed = repr([tuple(answer) for answer in ANSWERS[:count]])
        assert store.digest() == hashlib.sha256(listed.encode()).hexdigest()[:16]
        digests.append(store.digest())
    assert len(set(digests)) == 4
