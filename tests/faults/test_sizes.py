"""Files, settings and answers of absurd size are refused with a clear error, before they are unpacked or expanded."""

import bz2
import gzip
import json
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from chat_families import TEMPLATES, controls, tokenizer_of
from families import tiny_agent, tiny_model
from hypothesis import given
from hypothesis import strategies as st
from langchain_mara_training import run_folder
from langchain_mara_training.data import files
from langchain_mara_training.data.readers import read_prompts
from langchain_mara_training.paper.settings import TableSettings
from langchain_mara_training.reinforcement.recipe import Recipe
from pyarrow import parquet

from langchain_mara.agents import reference_checkpoints
from langchain_mara.agents.agent import MaraAgent
from langchain_mara.exceptions import CheckpointError, DataError, LoadingError, MaraError, OptionsError, TrainingError
from langchain_mara.loading.models import load_model
from langchain_mara.options import DecodingOptions
from langchain_mara.text.chat_template import encode_messages
from langchain_mara.text.detokenizer import IncrementalDetokenizer
from langchain_mara.text.stop_strings import MOST_CHARACTERS, MOST_STRINGS, StopStrings
from langchain_mara.text.tool_formats.reading import ToolCallParser
from langchain_mara.text.tool_formats.table import FORMATS

DEEP = "[" * 100_000
HUGE = 2**40  # bytes of a sparse file, which takes no space


def sparse(file: Path, size: int = HUGE) -> Path:
    with file.open("ab") as stream:
        stream.truncate(size)
    return file


def saved(file: Path, **changes: Any) -> Path:
    torch.save({**tiny_agent().state_dict(), **changes}, file)
    return file


@pytest.mark.parametrize(
    "weight",
    [
        pytest.param(torch.ones(1).expand(10**7, 10**7), id="a value repeated"),
        pytest.param(torch.ones(1, dtype=torch.uint8).expand(2**40), id="bytes repeated"),
        pytest.param(torch.empty(10**7, 10**7, device="meta"), id="without storage"),
    ],
)
def test_weights_that_declare_more_than_the_file_holds_are_refused(tmp_path: Path, weight: torch.Tensor) -> None:
    file = saved(tmp_path / "actor.pth", **{"linear1.weight": weight})
    with pytest.raises(CheckpointError, match="linear1.weight (declares more|is a Tensor, not)"):
        MaraAgent.from_reference(file)


def test_a_compressed_checkpoint_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    plain = saved(tmp_path / "plain.pth")
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with pytest.raises(CheckpointError, match="is compressed, which PyTorch's files are not"):
        MaraAgent.from_reference(tmp_path / "a.pth")


def test_a_checkpoint_larger_than_any_agent_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = saved(tmp_path / "actor.pth")
    with pytest.raises(CheckpointError, match="bytes; an agent has at most 1,073,741,824"):
        MaraAgent.from_reference(sparse(tmp_path / "sparse.pth"))
    monkeypatch.setattr(reference_checkpoints, "MOST_BYTES", 1000)
    with pytest.raises(CheckpointError, match="an agent has at most 1,000"):
        MaraAgent.from_reference(file)


@pytest.fixture
def agent(tmp_path: Path) -> Path:
    tiny_agent().save_pretrained(tmp_path / "agent")
    return tmp_path / "agent"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tiny_model("llama-3").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


Read = Callable[[], Any]


def test_settings_in_json_have_a_size_and_a_depth(agent: Path, model: Path, tmp_path: Path) -> None:
    run = tmp_path / "config.json"
    cases: list[tuple[Path, type[MaraError], Read]] = [
        (agent / "config.json", CheckpointError, lambda: MaraAgent.from_pretrained(agent)),
        (run, TrainingError, lambda: run_folder.read_config(tmp_path)),
        *(
            (model / name, LoadingError, lambda: load_model(model, device="cpu"))
            for name in ("processor_config.json", "generation_config.json", "tokenizer_config.json", "config.json")
        ),
    ]
    for file, error, read in cases:
        before = file.read_bytes() if file.exists() else None
        file.write_text(DEEP)
        with pytest.raises(error, match=f"{file.name} is nested too deeply"):
            read()
        sparse(file)
        with pytest.raises(error, match=f"{file.name} has 1,099,511,627,776 bytes; at most 16,777,216 are read"):
            read()
        file.unlink() if before is None else file.write_bytes(before)


def test_aliases_in_yaml_do_not_expand(tmp_path: Path) -> None:
    levels = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    (tmp_path / "own.yaml").write_text("\n".join(["a0: &a0 [x, x]", *levels, "model: *a11"]))
    for read in (Recipe.load, TableSettings.load):
        with pytest.raises(OptionsError, match=r"is not YAML: aliases \(\*name\) are not read in line 2") as caught:
            read(tmp_path / "own.yaml")
        assert len(str(caught.value)) < 500


def test_settings_in_yaml_have_a_size_and_a_depth(tmp_path: Path) -> None:
    (tmp_path / "deep.yaml").write_text(f"model: {DEEP[:60_000]}")
    with pytest.raises(OptionsError, match="is nested too deeply"):
        Recipe.load(tmp_path / "deep.yaml")
    with pytest.raises(OptionsError, match="more than 65,536 bytes"):
        Recipe.load(sparse(tmp_path / "large.yaml"))


@pytest.mark.parametrize(
    "value", ["x" * 10**6, ["x"] * 10**6, -(10**6000), {"a": {"b": {"c": {"d": "x" * 10**6}}}}], ids=type
)
def test_messages_quote_only_the_beginning_of_a_value(value: Any) -> None:
    for name in ("top_k", "order"):
        with pytest.raises(OptionsError) as caught:
            DecodingOptions.parse(**{name: value})
        assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, lambda rows: b"\x28\xb5\x2f\xfd" + rows])
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_compressed_rows_are_refused_before_they_are_unpacked(
    tmp_path: Path, pack: Callable[[bytes], bytes], suffix: str
) -> None:
    file = tmp_path / f"rows.{suffix}"
    file.write_bytes(pack(json.dumps({"prompt": "x" * 10**6}).encode()))
    with pytest.raises(DataError, match="is compressed .*, but its name does not say so. Unpack it"):
        read_prompts(file)


@pytest.mark.parametrize("suffix", ["json.gz", "jsonl.gz", "csv.gz"])
def test_a_line_that_unpacks_to_gigabytes_is_refused_after_the_first_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr(files, "MOST_ROW_BYTES", 10_000)
    (tmp_path / f"rows.{suffix}").write_bytes(gzip.compress(b'{"prompt": "' + b"x" * 10**7 + b'"}'))
    with pytest.raises(DataError, match="has more than 10,000 bytes|field larger than field limit"):
        read_prompts(tmp_path / f"rows.{suffix}")


def test_a_file_that_was_cut_is_damaged(tmp_path: Path) -> None:
    rows = b"".join(json.dumps({"prompt": f"{i}"}).encode() + b"\n" for i in range(5000))
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(rows)[:-100])
    with pytest.raises(DataError, match="is damaged after line"):
        read_prompts(tmp_path / "rows.jsonl.gz")


def test_rows_may_begin_with_a_mark_or_a_blank(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b'\n {"prompt": "x"}\n')
    assert read_prompts(tmp_path / "rows.jsonl") == [{"prompt": "x"}]


def test_a_table_that_declares_too_many_rows_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet.write_table(pa.table({"prompt": ["x"] * 1000}), tmp_path / "rows.parquet")
    assert len(read_prompts(tmp_path / "rows.parquet")) == 1000
    monkeypatch.setattr(files, "MOST_ROWS", 999)
    with pytest.raises(DataError, match="declares 1,000 rows; at most 999 are read"):
        read_prompts(tmp_path / "rows.parquet")


def test_stop_lists_have_a_size() -> None:
    tokenizer = tokenizer_of("chatml")
    message = "at most 1,024 strings of 65,536 characters are possible"
    for stop in (["ab"] * (MOST_STRINGS + 1), ["a" * (MOST_CHARACTERS + 1)], ["a" * 1000] * 1000):
        with pytest.raises(OptionsError, match=message):
            IncrementalDetokenizer(tokenizer, stop)
    IncrementalDetokenizer(tokenizer, ["a" * 60] * MOST_STRINGS)


class CountedList(list[int]):
    reads = 0

    def __getitem__(self, index: Any) -> Any:
        self.reads += 1
        return super().__getitem__(index)


@pytest.mark.parametrize("text", ["a" * 20_000, "ab" * 10_000, ("a" * 99 + "c") * 200])
def test_the_search_for_stop_strings_is_linear_in_the_text(text: str) -> None:
    strings = StopStrings(["a" * n + "b" for n in range(100, 300)])
    counted = strings._shorter = CountedList(strings._shorter)
    state = 0
    for character in text:
        state = strings.advance(state, character)
    assert counted.reads <= len(text)


@given(
    stop=st.lists(st.text("ab\n", min_size=1, max_size=5), max_size=4),
    pieces=st.lists(st.text("abc\n", max_size=6), max_size=12),
)
def test_the_first_stop_string_that_is_complete_ends_the_text(stop: list[str], pieces: list[str]) -> None:
    detokenizer = IncrementalDetokenizer(tokenizer_of("chatml"), stop)
    text, released = "", ""
    for piece in pieces:
        released += detokenizer._release(piece)
        text += piece
        ends = [(text.find(string) + len(string), text.find(string)) for string in stop if string in text]
        # Text is released unless it may become a stop string.
        begun = max((n for string in stop for n in range(len(string)) if text.endswith(string[:n])), default=0)
        assert released == (text[: min(ends)[1]] if ends else text[: len(text) - begun])
        assert detokenizer.stopped is bool(ends)
        if ends:
            return


@pytest.mark.parametrize("family", sorted(TEMPLATES))
def test_a_transcript_of_2000_turns_reads_every_message_once(family: str) -> None:
    tokenizer = tokenizer_of(family)
    turns = [{"role": ("user", "assistant")[i % 2], "content": f"</s><|im_end|>{i}"} for i in range(2000)]
    plain = [{**turn, "content": str(i)} for i, turn in enumerate(turns)]
    assert controls(family, encode_messages(tokenizer, turns)) == controls(family, encode_messages(tokenizer, plain))


@pytest.mark.parametrize(
    "answer", [DEEP, '{"a": ' * 50_000, "<tool_call>" * 2000, '{"name": "f"}' * 3000, "f" * 50_000, "f(" * 50_000]
)
@pytest.mark.parametrize("name", sorted(FORMATS))
def test_answers_nested_without_end_are_no_tool_calls(name: str, answer: str) -> None:
    parser = ToolCallParser(FORMATS[name], [{"name": "f", "parameters": {}}])
    rest = (parser.push(FORMATS[name].beginning(None) + answer), parser.finish())[1]
    assert len(rest.calls) + len(rest.invalid) <= 3000
