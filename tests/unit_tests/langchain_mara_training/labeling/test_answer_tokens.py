"""The same pairs in every layout and every container have the same labelled tokens."""

import copy
import csv
import gzip
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pytest
from chat_families import tokenizer_of
from families import tiny_model
from langchain_mara_training.data.readers import iterate_feedback, read_pairs
from langchain_mara_training.labeling.answer_tokens import LabeledAnswer, labeled_answers
from pyarrow import parquet

from langchain_mara import MaraLLM
from langchain_mara.exceptions import DataError

Rows = list[dict[str, Any]]


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def sharegpt(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    return [{"from": names[m["role"]], "value": m["content"]} for m in messages]


TURNS = [
    ([message("user", "Hi.")], "Hello!", "Go away."),
    (
        [message("user", "Boil an egg?"), message("assistant", "Why?"), message("user", "é 😀\nnow")],
        "Gently.",
        "No, 2024.",
    ),
]
SINGLE = [(prompt[-1]["content"], chosen, rejected) for prompt, chosen, rejected in TURNS]
LAYOUTS: dict[str, Rows] = {
    "explicit": [
        {"prompt": p, "chosen": [message("assistant", c)], "rejected": [message("assistant", r)]} for p, c, r in TURNS
    ],
    "explicit, answers as text": [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in TURNS],
    "implicit": [
        {"chosen": [*p, message("assistant", c)], "rejected": [*p, message("assistant", r)]} for p, c, r in TURNS
    ],
    "prompt repeated in the answers": [
        {"prompt": p, "chosen": [*p, message("assistant", c)], "rejected": [*p, message("assistant", r)]}
        for p, c, r in TURNS
    ],
    "sharegpt": [
        {"conversations": sharegpt(p), "chosen": {"from": "gpt", "value": c}, "rejected": {"from": "gpt", "value": r}}
        for p, c, r in TURNS
    ],
    "messages": [{"messages": p, "chosen": c, "rejected": r} for p, c, r in TURNS],
    "scores": [{"prompt": p, "responses": [r, c], "scores": [-1.5, 2]} for p, c, r in TURNS],
    "ranks": [
        {"messages": p, "responses": [[message("assistant", c)], [message("assistant", r)]], "ranks": [1, 2]}
        for p, c, r in TURNS
    ],
}
TEXTS: dict[str, Rows] = {
    "text": [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in SINGLE],
    "alpaca": [{"instruction": p, "input": "", "chosen": c, "rejected": r} for p, c, r in SINGLE],
    "dialogue": [
        {"chosen": f"\n\nHuman: {p}\n\nAssistant: {c}", "rejected": f"\n\nHuman: {p}\n\nAssistant: {r}"}
        for p, c, r in SINGLE
    ],
    "numbered": [
        {"prompt": p, "response_0": r, "response_1": c, "better_response_id": 1} for p, c, r in SINGLE
    ],
}  # fmt: skip
THUMBS = [(p, answer, label) for p, c, r in TURNS for answer, label in ((c, True), (r, False))]
UNPAIRED: dict[str, Rows] = {
    "unpaired": [{"prompt": p, "completion": [message("assistant", a)], "label": up} for p, a, up in THUMBS],
    "unpaired, answers as text": [{"prompt": p, "completion": a, "label": int(up)} for p, a, up in THUMBS],
    "unpaired, words": [{"prompt": p, "response": a, "label": "up" if up else "down"} for p, a, up in THUMBS],
    "unpaired, prompt repeated": [
        {"prompt": p, "completion": [*p, message("assistant", a)], "label": float(up)} for p, a, up in THUMBS
    ],
    "unpaired, whole conversation": [{"messages": [*p, message("assistant", a)], "label": up} for p, a, up in THUMBS],
    "unpaired, sharegpt": [
        {"conversations": sharegpt([*p, message("assistant", a)]), "label": up} for p, a, up in THUMBS
    ],
}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Looks it up.", "parameters": {"a": "b"}}}


def calling(arguments: Any, **content: Any) -> list[dict[str, Any]]:
    call = {"type": "function", "function": {"name": "weather", "arguments": arguments}}
    result = {"role": "tool", "content": "Rain."}
    return [{"role": "assistant", **content, "tool_calls": [call]}, result, message("assistant", "Rain.")]


ASKED = [message("user", "Weather in Rome?")]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "Weather "}, {"type": "text", "text": "in Rome?"}]}]
CALLS: dict[str, Rows] = {
    "calls": [{"prompt": p, "tools": [TOOL], "chosen": calling({"city": "Rome"}, content=""), "rejected": "Sun."}
              for p in (ASKED, ASKED)],
    "calls, content null": [
        {"prompt": p, "tools": [TOOL], "chosen": calling({"city": "Rome"}, content=None), "rejected": "Sun."}
        for p in (ASKED, ASKED)
    ],
    "calls, no content, arguments as text, tools as text": [
        {"prompt": p, "tools": json.dumps([TOOL]), "chosen": calling('{"city": "Rome"}'), "rejected": "Sun."}
        for p in (ASKED, ASKED)
    ],
    "calls, content in parts": [
        {"prompt": p, "tools": [TOOL], "chosen": calling({"city": "Rome"}, content=""), "rejected": "Sun."}
        for p in (PARTS, PARTS)
    ],
}  # fmt: skip
REFERENCES = [LAYOUTS, TEXTS, UNPAIRED, CALLS]


def as_csv(rows: Rows) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    cells = ({n: v if isinstance(v, str) else json.dumps(v) for n, v in row.items()} for row in rows)
    writer.writerows(cells)
    return text.getvalue()


def as_lines(rows: Rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def written(name: str, write: Callable[[Path, Rows], Any]) -> Callable[[Rows, Path], Any]:
    def container(rows: Rows, folder: Path) -> Path:
        write(folder / name, rows)
        return folder / name

    return container


CONTAINERS: dict[str, Callable[[Rows, Path], Any]] = {
    "list": lambda rows, _: rows,
    "generator": lambda rows, _: iter(rows),
    "dict": lambda rows, _: {name: [row[name] for row in rows] for name in rows[0]},
    "DataFrame": lambda rows, _: pd.DataFrame(rows),
    "Arrow": lambda rows, _: pa.Table.from_pylist(rows),
    "polars": lambda rows, _: pytest.importorskip("polars").DataFrame(rows),
    "Dataset": lambda rows, _: datasets.Dataset.from_list(rows),
    "tensors": lambda rows, _: datasets.Dataset.from_list(rows).with_format("torch"),
    "IterableDataset": lambda rows, _: datasets.Dataset.from_list(rows).to_iterable_dataset(),
    "folder": lambda rows, folder: (
        written("a.jsonl", lambda file, _: file.write_text(as_lines(rows)))(rows, folder).parent
    ),
    "JSONL": written("a.jsonl", lambda file, rows: file.write_text(as_lines(rows), encoding="utf-8")),
    "JSON": written("a.json", lambda file, rows: file.write_text(json.dumps(rows), encoding="utf-8")),
    "CSV": written("a.csv", lambda file, rows: file.write_text(as_csv(rows), encoding="utf-8", newline="")),
    "gz": written("a.jsonl.gz", lambda file, rows: file.write_bytes(gzip.compress(as_lines(rows).encode()))),
    "Parquet": written("a.parquet", lambda file, rows: parquet.write_table(pa.Table.from_pylist(rows), file)),
    "stdin": lambda _rows, _folder: "-",
}


@pytest.fixture(scope="module")
def llm() -> MaraLLM:
    return MaraLLM(model=tiny_model("llama-3"), tokenizer=tokenizer_of("chatml"))


@pytest.fixture(scope="module")
def calling_llm() -> MaraLLM:
    model = copy.deepcopy(tiny_model("llama-3"))
    # The tiny model's own end of an answer is a quotation mark in this vocabulary.
    model.generation_config.eos_token_id = None
    return MaraLLM(model=model, tokenizer=tokenizer_of("qwen"))


def labels(llm: MaraLLM, source: Any, **options: Any) -> list[LabeledAnswer]:
    rows = iterate_feedback(source)
    return [
        answer
        for number, _, row in rows
        for answer in labeled_answers(llm, row, row.get("group", number), None, **options)
    ]


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("layout", [layout for reference in REFERENCES for layout in reference])
def test_the_same_pairs_have_the_same_labels(
    llm: MaraLLM, calling_llm: MaraLLM, layout: str, container: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = next(layouts for layouts in REFERENCES if layout in layouts)
    rows, llm = reference[layout], calling_llm if reference is CALLS else llm
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(as_lines(rows).encode())))
    expected = labels(llm, next(iter(reference.values())))
    assert [answer.label for answer in expected].count(1) == [answer.label for answer in expected].count(0) == 2
    assert labels(llm, CONTAINERS[container](rows, tmp_path)) == expected


def decoded(llm: MaraLLM, answer: LabeledAnswer) -> str:
    own = [token for token, is_own in zip(answer.token_ids[answer.start :], answer.is_own, strict=True) if is_own]
    return str(llm.tokenizer.decode(own))


def test_every_turn_of_the_assistant_is_labelled_with_its_end(llm: MaraLLM) -> None:
    chosen = [message("assistant", "No."), message("user", "Why?"), message("assistant", "Germs.")]
    (first, second) = labels(llm, [{"prompt": "Raw dough?", "chosen": chosen, "rejected": "Yes."}])
    assert (first.label, decoded(llm, first)) == (1, "No.<|im_end|>Germs.<|im_end|>")
    assert (second.label, decoded(llm, second)) == (0, "Yes.<|im_end|>")


def test_an_open_turn_of_the_prompt_goes_on(llm: MaraLLM) -> None:
    row = {"prompt": [message("user", "Hi."), message("assistant", "Well,")], "chosen": " hello", "rejected": " no"}
    prompt = llm.tokenizer.decode(labels(llm, [row])[0].token_ids)
    assert prompt.endswith("<|im_start|>assistant\nWell, hello<|im_end|>")


@pytest.mark.parametrize("text", ["<|im_end|>", "a<|im_start|>user\nb"])
def test_control_tokens_in_answers_are_letters(llm: MaraLLM, text: str) -> None:
    (first, _) = labels(llm, [{"prompt": "Hi.", "chosen": text, "rejected": "no"}])
    end = llm.tokenizer.convert_tokens_to_ids("<|im_end|>")
    start = llm.tokenizer.convert_tokens_to_ids("<|im_start|>")
    after = first.token_ids[first.start :]
    assert (after.count(end), after.count(start)) == (1, 0)


def test_an_answer_of_the_user_is_refused(llm: MaraLLM) -> None:
    row = {"prompt": "Hi.", "chosen": [message("user", "No.")], "rejected": "Yes."}
    with pytest.raises(DataError, match="cannot be labeled: An answer must end with a message of the assistant"):
        labels(llm, [row])


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (datasets.DatasetDict(train=datasets.Dataset.from_list(TEXTS["text"])), "holds the splits train. Give one"),
        ({"prompt": ["a", "b"], "chosen": ["c"], "rejected": ["d"]}, "a list of the same length for each name"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, r"If it is a single row, give it in a list: \[row\]"),
        (pd.DataFrame({"prompt": ["a", 3]}), "Give columns whose cells are of one kind"),
    ],
    ids=["splits", "lengths", "a row", "mixed"],
)
def test_tables_that_say_something_else_are_refused(source: Any, text: str) -> None:
    with pytest.raises(DataError, match=text):
        read_pairs(source)


@pytest.mark.parametrize("container", CONTAINERS)
def test_columns_of_some_rows_only_read_alike(
    llm: MaraLLM, container: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: Rows = [{**row} for row in TEXTS["text"]]
    rows[0] |= {"weight": 2.5, "group": 7, "system": "Be brief."}
    if container == "dict":
        rows[1] |= {"weight": None, "group": None, "system": None}
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(as_lines(rows).encode())))
    found = labels(llm, CONTAINERS[container](rows, tmp_path))
    assert [(answer.weight, answer.group) for answer in found] == [(2.5, 7)] * 2 + [(1.0, 1)] * 2
    assert found == labels(llm, rows)


def test_a_ranked_list_is_a_pair_for_each_two_and_divides_its_weight(llm: MaraLLM) -> None:
    ranked = {"prompt": "Hi.", "responses": ["worst", "best", "fine", "fine too"], "scores": [0, 9, 3, 3], "weight": 5}
    found = labels(llm, [ranked])
    accepted, rejected = found[::2], found[1::2]
    assert [decoded(llm, answer).removesuffix("<|im_end|>") for answer in accepted] == [
        "best", "best", "best", "fine", "fine too",
    ]  # fmt: skip
    assert [answer.label for answer in found] == [1, 0] * len(rejected)
    assert {answer.weight for answer in found} == {1.0}


def test_a_thumb_labels_the_whole_answer(llm: MaraLLM) -> None:
    (up, down) = labels(llm, [{"prompt": "Hi.", "completion": "Yes.", "label": label} for label in (True, False)])
    assert (up.label, down.label) == (1, 0)
    assert decoded(llm, up) == decoded(llm, down) == "Yes.<|im_end|>"


def test_tool_calls_are_labelled_as_the_template_writes_them(calling_llm: MaraLLM) -> None:
    (chosen, _) = labels(calling_llm, CALLS["calls, content null"][:1])
    text = decoded(calling_llm, chosen)
    assert text.startswith('<tool_call>weather{"city": "Rome"}</tool_call><|im_end|>')
    assert text.endswith("Rain.<|im_end|>")
    assert "Looks it up." in calling_llm.tokenizer.decode(chosen.token_ids[: chosen.start])


@pytest.mark.parametrize("column", ["prompt", "chosen"])
def test_tool_calls_that_the_template_leaves_out_are_refused(llm: MaraLLM, column: str) -> None:
    calls = calling({"city": "Rome"}, content=None)
    row = {"prompt": ASKED, "chosen": calls, "rejected": "No."}
    if column == "prompt":
        row = {"prompt": [*ASKED, *calls[:-1]], "chosen": "Yes.", "rejected": "No."}
    with pytest.raises(DataError, match="does not show the tool calls of message 1. Write the calls into its content"):
        labels(llm, [row])
    with pytest.raises(DataError, match="does not show tools. Leave out the column"):
        labels(llm, [{**TEXTS["text"][0], "tools": [TOOL]}])
