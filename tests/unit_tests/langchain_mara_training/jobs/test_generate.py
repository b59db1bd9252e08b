"""`mara generate --input`: each row gets the LLM's own answer, and an interrupted file resumes."""

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import mara, message_of, succeed
from langchain_mara_training.jobs.generate import Answerer, PromptBlock

from langchain_mara import MaraLLM
from langchain_mara.exceptions import DataError

OPTIONS = ["--device", "cpu", "--max-new-tokens", "6", "--batch-size", "1"]
PROMPTS = [f"How do I {wish}?" for wish in ("boil an egg", "pick a lock", "make tea", "plant a tree", "tie a tie")]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = ({"question": prompt, "number": number} for number, prompt in enumerate(PROMPTS))
    Path("prompts.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def answered(file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(file).read_text().splitlines()]


@pytest.mark.usefixtures("files")
def test_every_row_gets_the_answer_of_the_llm() -> None:
    shown = succeed("generate", "--input", "prompts.jsonl", "--output", "out.jsonl", *OPTIONS)
    assert "5" in shown
    llm = MaraLLM.demo(device="cpu", max_new_tokens=6, width=8)
    expected = [llm.invoke(prompt) for prompt in PROMPTS]
    assert [row["completion"] for row in answered("out.jsonl")] == expected
    assert [(row["question"], row["number"]) for row in answered("out.jsonl")] == list(
        zip(PROMPTS, range(5), strict=True)
    )
    succeed("generate", "--input", "prompts.jsonl", "--output", "plain.jsonl", "--plain", "--limit", "2", *OPTIONS)
    assert [row["completion"] for row in answered("plain.jsonl")] == [
        llm.with_agent(None).invoke(prompt) for prompt in PROMPTS[:2]
    ]


@pytest.mark.usefixtures("files")
def test_an_interrupted_file_resumes_at_its_block(monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["generate", "--input", "prompts.jsonl", *OPTIONS, "--output"]
    succeed(*given, "whole.jsonl")
    whole, asked = Answerer.answer, []

    def until(self: Answerer, block: PromptBlock) -> Any:
        asked.append(block.first)
        if block.first and len(asked) == 2:
            raise DataError("enough")
        return whole(self, block)

    monkeypatch.setattr(Answerer, "answer", until)
    assert message_of(mara(*given, "out.jsonl")) == "enough"
    assert not Path("out.jsonl").exists()
    changed = Path("prompts.jsonl").read_text().replace("an egg", "two eggs")
    Path("changed.jsonl").write_text(changed)
    assert "answers to other rows" in message_of(mara("generate", "--input", "changed.jsonl", *given[3:], "out.jsonl"))
    fewer = mara("generate", "--input", "prompts.jsonl", "--limit", "3", *given[3:], "out.jsonl")
    assert "answers to other rows" in message_of(fewer)
    succeed(*given, "out.jsonl")
    assert asked == [0, 4, 4]
    assert answered("out.jsonl") == answered("whole.jsonl")


@pytest.mark.usefixtures("files")
def test_what_cannot_be_answered_is_said() -> None:
    for arguments in (["hi", "--input", "prompts.jsonl", "--output", "x.jsonl"], ["--input", "prompts.jsonl"], []):
        assert "Give a prompt, or --input and --output" in mara("generate", *arguments).stderr
    assert "--batch-size would have no effect without --input" in message_of(
        mara("generate", "hi", "--batch-size", "2")
    )
    given = ["--input", "prompts.jsonl", "--output", "x.jsonl"]
    assert "Add --engine ray" in message_of(mara("generate", *given, "--workers", "2"))
    assert "ends with .jsonl or .parquet" in message_of(mara("generate", *given[:3], "x.txt"))


def test_long_prompts_are_refused_skipped_or_cut(demo_llm: MaraLLM) -> None:
    llm = demo_llm.model_copy(update={"max_new_tokens": 2})
    block = PromptBlock(7, [{"prompt": PROMPTS[0]}, {"prompt": "an egg " * 4000}])
    with pytest.raises(DataError, match="Prompt 8: The prompt has"):
        Answerer(llm, "error").answer(block)
    first, second = Answerer(llm, "skip").answer(block)
    assert (first["completion"] is None, second["completion"]) == (False, None)
    assert second["prompt"] == block.rows[1]["prompt"]
    first_again, cut = Answerer(llm, "truncate-left").answer(block)
    assert first_again == first
    assert cut["completion"] is not None
