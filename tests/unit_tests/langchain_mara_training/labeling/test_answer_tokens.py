"""The same pairs in every layout and every container have the same labelled tokens."""

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
from langchain_mara_training.data.readers import read_pairs
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
    "Dataset": lambda rows, _: datasets.Dataset.from_list(rows),
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


def labels(llm: MaraLLM, source: Any) -> list[LabeledAnswer]:
    rows = read_pairs(source)
    return [answer for i, row in enumerate(rows) for answer in labeled_answers(llm, row, i, None)]


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("layout", [*LAYOUTS, *TEXTS])
def test_the_same_pairs_have_the_same_labels(
    llm: MaraLLM, layout: str, container: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, reference = (LAYOUTS[layout], LAYOUTS) if layout in LAYOUTS else (TEXTS[layout], TEXTS)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(as_lines(rows).encode())))
    expected = labels(llm, next(iter(reference.values())))
    assert len(expected) == 4
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
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, r"For a single row, give a list: \[row\]"),
        (pd.DataFrame({"prompt": ["a", 3]}), "Give columns whose cells are of one kind"),
    ],
    ids=["splits", "lengths", "a row", "mixed"],
)
def test_tables_that_say_something_else_are_refused(source: Any, text: str) -> None:
    with pytest.raises(DataError, match=text):
        read_pairs(source)
