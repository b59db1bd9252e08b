"""Names mean data sets of the hub, their splits and columns; the hub itself is never asked here."""

from pathlib import Path
from typing import Any

import datasets
import pytest
from langchain_mara_training.data.known_datasets import KNOWN_SETS, known_set
from langchain_mara_training.data.readers import read_pairs, read_prompts

ANSWER = {"role": "assistant", "content": "a"}
# A row with the columns of each set, and its prompt.
ROWS: dict[str, dict[str, Any]] = {
    "PKU-Alignment/PKU-SafeRLHF": {
        "prompt": "p", "response_0": "a", "response_1": "b", "better_response_id": 0, "safer_response_id": 1,
    },
    "PKU-Alignment/BeaverTails": {"prompt": "p", "response": "a", "category": {"drug_abuse": True}, "is_safe": False},
    "PKU-Alignment/BeaverTails-Evaluation": {"prompt": "p", "category": "drug_abuse", "category_id": 4},
    "declare-lab/HarmfulQA": {"question": "p", "topic": "x", "subtopic": "y", "blue_conversations": {}},
    "Anthropic/hh-rlhf": {"chosen": "\n\nHuman: p\n\nAssistant: a", "rejected": "\n\nHuman: p\n\nAssistant: b"},
    "HuggingFaceH4/ultrafeedback_binarized": {
        "prompt": "p", "prompt_id": "0", "score_chosen": 8.0, "score_rejected": 3.0,
        "chosen": [{"role": "user", "content": "p"}, ANSWER],
        "rejected": [{"role": "user", "content": "p"}, {**ANSWER, "content": "b"}],
    },
}  # fmt: skip
PAIRS = ["PKU-SafeRLHF", "HH-RLHF", "UltraFeedback"]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What was loaded: three rows through Arrow, as the hub's come; the last one's prompt is the first one's."""
    loaded = []

    def load(hub_id: str, split: str) -> datasets.Dataset:
        loaded.append((hub_id, split))
        row = ROWS[hub_id]
        other = {**row, **{name: "q" for name in ("prompt", "question") if name in row}}
        return datasets.Dataset.from_list([{**item, "number": i} for i, item in enumerate([row, other, row])])

    monkeypatch.setattr(datasets, "load_dataset", load)
    return loaded


@pytest.mark.parametrize("name", KNOWN_SETS)
def test_prompts_of_every_set_are_read_once(name: str, asked: list[tuple[str, str]]) -> None:
    rows = read_prompts(name, "test")
    assert [(row["prompt"], row["number"]) for row in rows] == [("p", 0), ("q", 1)][: 1 + (name != "HH-RLHF")]
    assert read_prompts(KNOWN_SETS[name].hub_id.upper(), "test") == rows
    expected = {"BeaverTails": "330k_test", "HarmfulQA": "train", "UltraFeedback": "test_prefs"}.get(name, "test")
    assert asked == [(KNOWN_SETS[name].hub_id, expected)] * 2


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_of_the_sets_that_have_them(name: str, asked: list[tuple[str, str]]) -> None:
    pair = read_pairs(name.lower())[0]
    text = [item if isinstance(item, str) else item[-1]["content"] for item in (pair["chosen"], pair["rejected"])]
    assert (pair["prompt"], *text) == ("p", "a", "b")
    assert len(read_pairs(name)) == 3
    assert asked[0][1] == ("train_prefs" if name == "UltraFeedback" else "train")


def test_any_split_goes_by_its_own_name(asked: list[tuple[str, str]]) -> None:
    read_prompts("BeaverTails", "30k_test")
    assert asked == [("PKU-Alignment/BeaverTails", "30k_test")]


def test_what_lies_here_comes_before_what_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert known_set("HarmfulQA") is KNOWN_SETS["HarmfulQA"]
    (tmp_path / "HarmfulQA").mkdir()
    assert known_set("HarmfulQA") is None
    assert known_set(Path("HH-RLHF")) is None
    assert known_set("somebody/HarmfulQA") is None
