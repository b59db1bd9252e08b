"""Rows with the columns of published data sets become prompts and pairs; the texts are made up here."""

import copy
from typing import Any

import pytest
from langchain_mara_training.data.column_formats import dialogue, with_pair, with_prompt
from langchain_mara_training.data.readers import read_pairs, read_prompts

from langchain_mara.exceptions import DataError

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


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


ASK = message("user", "Translate.")
LAYOUTS: dict[str, tuple[dict[str, Any], Any]] = {
    "alpaca": ({"instruction": "Translate.", "input": "Guten Tag.", "output": "Hello."}, "Translate.\n\nGuten Tag."),
    "alpaca without input": ({"instruction": "Translate.", "input": "", "output": "Hello."}, "Translate."),
    "dolly": ({"instruction": "Who?", "context": "Ann sings.", "response": "Ann."}, "Who?\n\nAnn sings."),
    "input that repeats": ({"prompt": "Translate.", "input": "Translate."}, "Translate."),
    "system": ({"prompt": "Translate.", "system": "Be brief."}, [message("system", "Be brief."), ASK]),
    "system and messages": ({"prompt": [ASK], "system": "Be brief."}, [message("system", "Be brief."), ASK]),
    "one system twice": ({"prompt": [message("system", "Be."), ASK], "system": "Be."}, [message("system", "Be."), ASK]),
    "empty system": ({"prompt": "Translate.", "system": " "}, "Translate."),
    "messages": ({"messages": [ASK, message("assistant", "What?")]}, [ASK]),
    "open messages": ({"messages": [ASK, message("assistant", "A?"), ASK]}, [ASK, message("assistant", "A?"), ASK]),
    "sharegpt": (
        {"conversations": [{"from": "system", "value": "Be."}, {"from": "human", "value": "Translate."},
                           {"from": "gpt", "value": "Yes."}]},
        [message("system", "Be."), ASK],
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_prompt_is_everything_the_user_said(layout: str) -> None:
    row, prompt = LAYOUTS[layout]
    before = copy.deepcopy(row)
    assert with_prompt(row)["prompt"] == prompt
    assert row == before


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pairs_have_the_same_prompts(layout: str) -> None:
    row, prompt = LAYOUTS[layout]
    pair = with_pair({**row, "chosen": "Hello.", "rejected": "No."})
    if layout in ("messages", "sharegpt"):  # beside answers, a conversation is the prompt as a whole
        whole = with_pair({**row, "chosen": "Hello.", "rejected": "No."})["prompt"]
        assert (whole[: len(prompt)], len(whole)) == (prompt, len(prompt) + 1)
    else:
        assert pair["prompt"] == prompt
    assert (pair["chosen"], pair["rejected"]) == ("Hello.", "No.")


def test_answers_in_sharegpt_s_form_are_messages() -> None:
    row = {
        "conversations": [{"from": "human", "value": "Translate."}],
        "chosen": {"from": "gpt", "value": "Hello."},
        "rejected": {"from": "gpt", "value": "No."},
    }
    pair = with_pair(row)
    assert (pair["prompt"], pair["chosen"]) == ([ASK], [message("assistant", "Hello.")])


def test_answers_that_part_early_keep_every_later_turn() -> None:
    say = [message("assistant" if i % 2 else "user", f"{i}") for i in range(6)]
    other = [message("assistant" if i % 2 else "user", f"other {i}") for i in range(6)]
    pair = with_pair({"chosen": say, "rejected": [*say[:3], *other[3:]]})
    assert (pair["prompt"], pair["chosen"], pair["rejected"]) == (say[:3], say[3:], other[3:])


def test_a_shared_beginning_with_its_system_message_is_cut_off_once() -> None:
    answers = {name: [ASK, message("assistant", name)] for name in ("chosen", "rejected")}
    pair = with_pair({"prompt": "Translate.", "system": "Be brief.", **answers})
    assert pair["prompt"] == [message("system", "Be brief."), ASK]
    assert pair["chosen"] == [message("assistant", "chosen")]


def test_an_input_joins_the_prompt_although_its_letters_occur_there() -> None:
    row = {"instruction": "Add a and b to the list.", "input": "a", "output": "b"}
    assert with_prompt(row)["prompt"] == "Add a and b to the list.\n\na"


def test_an_input_joins_the_prompt_once() -> None:
    row = {"instruction": "Translate.", "input": "Hi.\n\nBye."}
    assert with_prompt(with_prompt(row))["prompt"] == "Translate.\n\nHi.\n\nBye."


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"prompt": "Hi.", "input": {"text": "a"}}, "input is {'text': 'a'}.*Write it as text, or rename the column"),
        ({"prompt": "Hi.", "context": ["a"]}, "context is .'a'"),
        ({"instruction": "Add.", "input": 3}, "input is 3 .int.*Write it as text"),
        ({"prompt": "Hi.", "system": ["Be brief."]}, "system is .*list"),
        (
            {"prompt": [message("system", "Hi."), ASK], "system": "Be."},
            "system is 'Be.', but the prompt has another system message, 'Hi.'",
        ),
    ],
)
def test_what_would_be_left_out_of_the_prompt_is_refused_with_its_row(columns: dict[str, Any], said: str) -> None:
    for read, row in ((read_pairs, {**columns, "chosen": "a", "rejected": "b"}), (read_prompts, columns)):
        with pytest.raises(DataError, match=f"row 1: {said}"):
            read([{"prompt": "Hi.", "chosen": "a", "rejected": "b"}, row])


@pytest.mark.parametrize("nothing", [None, "", float("nan"), [], {}])
def test_columns_that_hold_nothing_add_nothing(nothing: Any) -> None:
    assert with_prompt({"prompt": "Hi.", "input": nothing, "system": nothing})["prompt"] == "Hi."


@pytest.mark.parametrize(
    ("row", "prompt"),
    [(DIALOGUE, [message("system", "Be."), USER]), ({"chosen": [USER, HELLO], "rejected": [USER, AWAY]}, None)],
)
def test_a_system_column_belongs_to_an_implicit_prompt(row: dict[str, Any], prompt: Any) -> None:
    expected = prompt or [message("system", "Be."), USER]
    for convert in (with_prompt, with_pair):
        assert convert({**row, "system": "Be."})["prompt"] == expected
        assert convert(convert({**row, "system": "Be."}))["prompt"] == expected


@pytest.mark.parametrize("number", [True, "true", -1, 2, 0.5, [1]])
def test_a_number_that_names_neither_answer_is_refused(number: Any) -> None:
    with pytest.raises(DataError, match="row 0: better_response_id is .*Give 0 or 1"):
        read_pairs([{**SAFE_RLHF, "better_response_id": number}])
