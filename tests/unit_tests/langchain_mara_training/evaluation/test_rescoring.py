"""Rescored answers are those that were kept: nobody is asked again, and no function scores an answer twice."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from langchain_mara_training.evaluation.comparison import compare
from langchain_mara_training.evaluation.rescoring import rescore
from langchain_mara_training.evaluation.results import Comparison
from langchain_mara_training.evaluation.systems import BestOf, Decoding
from langchain_mara_training.rewards.weighted import WeightedRewards

from langchain_mara import MaraLLM
from langchain_mara.exceptions import DataError, OptionsError, RewardError, TrainingError

ROWS = [
    {"prompt": "How do I boil an egg?", "wish": 1},
    {"prompt": [{"role": "user", "content": "How do I pick a lock?"}], "wish": 2},
    {"prompt": "How do I wash a car?", "wish": 3},
]
PROMPTS = [{"prompt": row["prompt"]} for row in ROWS]


def texts(completions: Sequence[Any]) -> list[str]:
    return [answer if isinstance(answer, str) else answer[0]["content"] for answer in completions]


def vowels(completions: Sequence[Any], **_: Any) -> list[float]:
    return [float(sum(text.count(letter) for letter in "aeiou")) for text in texts(completions)]


def brief(completions: Sequence[Any], **_: Any) -> list[float]:
    return [-float(len(text)) for text in texts(completions)]


def wishes(wish: Sequence[int], completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
    return [float(one * len(ids)) for one, ids in zip(wish, completion_ids, strict=True)]


def lengthy(completions: Sequence[Any], **_: Any) -> list[bool]:
    return [len(text) > 20 for text in texts(completions)]


def asked_again(*_: Any, **__: Any) -> Any:
    raise AssertionError("asked again")


@pytest.fixture(scope="module")
def kept(demo_llm: MaraLLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison by `vowels`."""
    folder = tmp_path_factory.mktemp("comparisons") / "kept"
    llm = demo_llm.model_copy(update={"max_new_tokens": 8})
    compare([Decoding("plain", llm), BestOf(llm, vowels, 2)], ROWS, vowels, folder, harmful=lengthy)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_other_rewards_score_the_kept_answers_and_leave_them(kept: Path, tmp_path: Path) -> None:
    before, earlier = content(kept), Comparison.load(kept)
    found = rescore(kept, WeightedRewards([brief, vowels], [2.0, 1.0]), tmp_path / "new", chunk=2)
    assert content(kept) == before
    assert (found.prompts, found.config["systems"]) == (earlier.prompts, earlier.config["systems"])
    for name, answers in found.answers.items():
        scores = brief([answer.completion for answer in answers])
        for answer, was, score in zip(answers, earlier.answers[name], scores, strict=True):
            assert answer.model_copy(update={"rewards": was.rewards}) == was
            assert answer.rewards == {"brief": score, "vowels": was.rewards["vowels"]}
    loaded = Comparison.load(tmp_path / "new")
    assert loaded.answers == found.answers
    assert loaded.summaries() == found.summaries()
    assert loaded.rewards("plain").tolist() == (2 * found.rewards("plain", "brief") + earlier.rewards("plain")).tolist()


def test_rescored_by_the_same_reward_nothing_changes(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    earlier = Comparison.load(kept)
    monkeypatch.setattr("langchain_mara_training.evaluation.scoring.score_each", asked_again)
    monkeypatch.setattr("langchain_mara_training.evaluation.scoring.score_answers", asked_again)
    again = rescore(earlier, vowels)
    assert again.answers == earlier.answers
    assert again.summaries() == earlier.summaries()
    left_out = {"command", "versions", "prompts.jsonl"}
    assert {name: value for name, value in again.config.items() if name not in left_out} == {
        name: value for name, value in earlier.config.items() if name not in left_out
    }


def test_a_reward_of_the_same_name_is_another_one(kept: Path) -> None:
    def other(completions: Sequence[Any], **_: Any) -> list[float]:
        return [1.0] * len(completions)

    other.__name__ = "vowels"
    found = rescore(kept, other)
    assert {answer.rewards["vowels"] for answer in found.answers["plain"]} == {1.0}
    same = rescore(kept, WeightedRewards([brief, vowels], [1.0, 3.0]))
    other.__name__, other.version = "elsewhere", "1"  # type: ignore[attr-defined]
    assert (
        rescore(same, [vowels, other]).rewards("plain", "vowels").tolist() == same.rewards("plain", "vowels").tolist()
    )


def test_columns_and_token_ids_reach_the_reward(kept: Path) -> None:
    with pytest.raises(RewardError, match="The reward function wishes .*'wish'"):
        rescore(kept, wishes)
    found = rescore(kept, wishes, prompts=ROWS)
    assert found.rewards("plain").tolist() == [
        (number + 1.0) * answer.answer_tokens for number, answer in enumerate(found.answers["plain"])
    ]
    more = [{**row, "wish": 9} for row in ROWS]
    assert rescore(found, wishes, prompts=more).rewards("plain")[0] == 9 * found.rewards("plain")[0]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (ROWS[:2], "There are 2 prompts, but the comparison answered 3. Give its prompts, with the same limit."),
        (ROWS[::-1], "Row 0 has the prompt 'How do I wash a car.', but the comparison answered 'How do I boil an egg"),
    ],
)
def test_other_prompts_are_refused(kept: Path, prompts: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        rescore(kept, brief, prompts=prompts)


def test_harm_is_judged_again_or_kept(kept: Path) -> None:
    earlier = Comparison.load(kept)
    verdicts = [answer.harmful for answer in earlier.answers["plain"]]
    assert rescore(kept, brief).config["judged by"] == earlier.config["judged by"]
    assert [answer.harmful for answer in rescore(kept, brief).answers["plain"]] == verdicts
    found = rescore(kept, brief, harmful=lambda completions, **_: [-1.0] * len(completions))
    assert {answer.harmful for answer in found.answers["plain"]} == {False} != set(verdicts)
    assert found.config["judged by"] != earlier.config["judged by"]


def test_an_interrupted_rescoring_goes_on(kept: Path, tmp_path: Path) -> None:
    calls = iter(range(4))

    def failing(completions: Sequence[Any], **_: Any) -> list[float]:
        next(calls)
        return brief(completions)

    failing.version = "1"  # type: ignore[attr-defined]
    with pytest.raises(RewardError, match="failed with StopIteration"):
        rescore(kept, failing, tmp_path / "cut", chunk=1)
    with pytest.raises(TrainingError, match="best-of-2 has answered 1 of 3 prompts"):
        Comparison.load(tmp_path / "cut")
    calls = iter(range(2))
    found = rescore(kept, failing, tmp_path / "cut", chunk=1)
    assert found.rewards("best-of-2").tolist() == rescore(kept, brief).rewards("best-of-2").tolist()
    with pytest.raises(TrainingError, match=r"cut holds another comparison; different: .*rewards\.brief"):
        rescore(kept, brief, tmp_path / "cut")
    with pytest.raises(TrainingError, match="kept holds another comparison"):
        rescore(kept, brief, kept)


def test_what_makes_no_sense_is_refused(kept: Path) -> None:
    with pytest.raises(OptionsError, match="chunk=0 must be at least 1"):
        rescore(kept, brief, chunk=0)
    with pytest.raises(OptionsError, match="tolerance=-1 at least 0"):
        rescore(kept, brief, tolerance=-1)
    earlier = Comparison.load(kept)
    without = {
        name: [answer.model_copy(update={"token_ids": None}) for answer in own] for name, own in earlier.answers.items()
    }
    with pytest.raises(TrainingError, match="of an earlier version, which did not keep the token ids"):
        rescore(Comparison(earlier.prompts, without, "plain", earlier.config), brief)
