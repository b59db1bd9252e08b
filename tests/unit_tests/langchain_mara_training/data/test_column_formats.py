"""Rows with the columns of published data sets become prompts and pairs; the texts are made up here."""

from typing import Any

import pytest
from langchain_mara_training.data.column_formats import dialogue, with_pair, with_prompt
from langchain_mara_training.data.readers import read_pairs

USER, MORE = ({"role": "user", "content": text} for text in ("Hi.", "And now?"))
HELLO, AWAY, GREET = ({"role": "assistant", "content": text} for text in ("Hello!", "Go away.", "Good day."))
SAFE_RLHF = {
    "prompt": "Hi.", "response_0": "Go away.", "response_1": "Hello!", "is_response_0_safe": False,
    "is_response_1_safe": True, "better_response_id": 1, "safer_response_id": 0,
}  # fmt: skip
DIALOGUE = {"chosen": "\n\nHuman: Hi.\n\nAssistant: Hello!", "rejected": "\n\nHuman: Hi.\n\nAssistant: Go away."}


@pytest.mark.parametrize(
    ("row", "column", "prompt"),
    [
        ({"instruction": "a", "category": "x"}, None, "a"),
        ({"question": "a", "topic": "x", "blue_conversations": {}}, None, "a"),
        ({"question": "a", "prompt": "b", "instruction": "c"}, None, "b"),
        ({"question": "a", "prompt": "b"}, "question", "a"),
        ({"text": [USER]}, "text", [USER]),
        (DIALOGUE, None, "Hi."),
        ({"chosen": [USER, HELLO], "rejected": [USER, AWAY]}, None, [USER]),
    ],
)
def test_prompts_are_found_by_their_usual_names(row: dict[str, Any], column: str | None, prompt: Any) -> None:
    found = with_prompt(row, column)
    assert found["prompt"] == prompt
    assert {name: value for name, value in found.items() if name not in ("prompt", "chosen", "rejected")} == {
        name: value for name, value in row.items() if name not in ("prompt", "chosen", "rejected")
    }


@pytest.mark.parametrize("row", [{"text": "a"}, {"response": "a"}, {"chosen": "a", "rejected": "b"}])
def test_what_holds_no_prompt_stays(row: dict[str, Any]) -> None:
    assert with_prompt(row) == row
    assert with_prompt({**row, "prompt": "x"}, "nowhere") == {**row, "prompt": "x"}


@pytest.mark.parametrize(
    ("row", "pair"),
    [
        (SAFE_RLHF, ("Hi.", "Hello!", "Go away.")),
        (DIALOGUE, ("Hi.", "Hello!", "Go away.")),
        # UltraFeedback: the prompt as text, and once more in front of both answers.
        ({"prompt": "Hi.", "chosen": [USER, HELLO], "rejected": [USER, AWAY]}, ("Hi.", [HELLO], [AWAY])),
        ({"prompt": [USER], "chosen": [USER, HELLO], "rejected": [USER, AWAY]}, ([USER], [HELLO], [AWAY])),
        ({"chosen": [USER, HELLO, MORE, GREET], "rejected": [USER, HELLO, MORE, AWAY]},
         ([USER, HELLO, MORE], [GREET], [AWAY])),
        ({"prompt": "Hi.", "chosen": [HELLO], "rejected": [AWAY]}, ("Hi.", [HELLO], [AWAY])),
        ({"instruction": "Hi.", "chosen": "a", "rejected": "b"}, ("Hi.", "a", "b")),
    ],
)  # fmt: skip
def test_pairs_of_every_form(row: dict[str, Any], pair: tuple[Any, Any, Any]) -> None:
    found = with_pair(row)
    assert (found["prompt"], found["chosen"], found["rejected"]) == pair
    assert read_pairs([row]) == [found]
    assert set(found) == {*row, "prompt", "chosen", "rejected"}


def test_which_preference_counts_can_be_chosen() -> None:
    assert read_pairs([SAFE_RLHF], preferred="safer")[0]["chosen"] == "Go away."
    assert with_pair({**SAFE_RLHF, "better_response_id": -1}).keys() == SAFE_RLHF.keys()
    assert with_pair({**SAFE_RLHF, "chosen": "mine"})["chosen"] == "mine"


def test_a_dialogue_of_several_turns_is_messages() -> None:
    begin = "\n\nHuman: Hi.\n\nAssistant: Hello!\n\nHuman: And now?\n\nAssistant:"
    found = with_pair({"chosen": f"{begin} Good day.", "rejected": f"{begin} Go away."})
    assert found == {"prompt": [USER, HELLO, MORE], "chosen": [GREET], "rejected": [AWAY]}
    assert with_pair({"chosen": f"{begin} Good day.", "rejected": f"{begin} Good day."})["chosen"] == [GREET]


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("\n\nHuman: Hi.\n\nAssistant: Hello!", [USER, HELLO]),
        ("\n\nHuman: Two\n\nparagraphs, human: yes\n\nAssistant:", [
            {"role": "user", "content": "Two\n\nparagraphs, human: yes"}, {"role": "assistant", "content": ""},
        ]),
        ("Human: Hi.", None),
        ("Well:\n\nHuman: Hi.", None),
        ("", None),
    ],
)  # fmt: skip
def test_dialogues_by_hand(text: str, messages: list[dict[str, str]] | None) -> None:
    assert dialogue(text) == messages
