"""The table of fields in docs/serving.md is complete, and every row of it is true."""

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from langchain_mara.server.protocol.chat import ChatRequest
from langchain_mara.server.protocol.completions import CompletionRequest
from langchain_mara.server.protocol.fields import MaraFields, RequestFields

PAGE = (Path(__file__).parents[5] / "docs/serving.md").read_text(encoding="utf-8")
TABLE = PAGE.split("### Fields")[1].split("`/v1/responses` takes")[0]
ROWS = {
    name: (chat.strip(), text.strip())
    for name, chat, text in re.findall(r"^\| `(\w+)` \|([ \w]*)\|([ \w]*)\|", TABLE, re.MULTILINE)
}
MODELS: dict[str, type[RequestFields]] = {"chat": ChatRequest, "text": CompletionRequest}
LEAST: dict[str, dict[str, Any]] = {
    "chat": {"messages": [{"role": "user", "content": "x"}]},
    "text": {"prompt": "x"},
}
VALUES: dict[str, Any] = {
    "model": "m", "messages": LEAST["chat"]["messages"], "prompt": ["x", "y"], "stream": True,
    "stream_options": {"include_usage": True, "include_obfuscation": False}, "max_tokens": 3,
    "max_completion_tokens": 3, "temperature": 0.5, "top_p": 0.5, "n": 2, "seed": 3, "stop": ["a"],
    "presence_penalty": 1, "frequency_penalty": 1, "logprobs": 1, "top_logprobs": 1, "tools": [{"type": "function"}],
    "tool_choice": "auto", "parallel_tool_calls": False, "response_format": {"type": "json_object"},
    "reasoning_effort": "low", "chat_template_kwargs": {"a": 1}, "mara": {"threshold": 0.5}, "modalities": ["text"],
    "store": True, "best_of": 2, "echo": True,
}  # fmt: skip
CASES = [(name, kind, ROWS[name][kind == "text"]) for name in ROWS for kind in MODELS if ROWS[name][kind == "text"]]
NOT_OPTIONS = {"model", "messages", "prompt", "stream", "stream_options", "modalities", "echo"}


@pytest.mark.parametrize("kind", MODELS)
def test_the_table_names_every_field(kind: str) -> None:
    named = {name for name, each, _ in CASES if each == kind}
    assert named == set(MODELS[kind].model_fields)


def test_the_page_names_every_field_of_ours() -> None:
    sentence = PAGE.split("`mara` takes ")[1].split("\n\n")[0]
    assert set(MaraFields.model_fields) <= set(re.findall(r"`(\w+)`", sentence))


@pytest.mark.parametrize(("name", "kind", "verdict"), CASES)
def test_a_row_is_true(name: str, kind: str, verdict: str) -> None:
    request, value = MODELS[kind], VALUES.get(name, "something")
    value = True if (name, kind) == ("logprobs", "chat") else value
    body = {**LEAST[kind], name: value}
    if verdict == "refused":
        with pytest.raises(ValidationError, match="not supported") as refused:
            request.model_validate(body)
        assert refused.value.errors()[0]["loc"] == (name,)
        return
    options = request.model_validate(body).options()
    without = request.model_validate(LEAST[kind]).options()
    assert (options == without) is (verdict == "ignored" or name in NOT_OPTIONS)


def test_samples_have_a_seed_of_their_own() -> None:
    def seeds(**fields: Any) -> list[int | None]:
        return [CompletionRequest(prompt="x", **fields).options().get("seed") for _ in range(2)]

    first, second = seeds(temperature=1.0)
    assert first != second
    assert seeds(temperature=1.0, seed=3) == [3, 3]
    assert seeds(temperature=0.0) == seeds() == [None, None]
    assert all(seeds(temperature=1.0, seed=-1))  # which some clients send for any seed
    assert None not in seeds(mara=MaraFields(strategy="random"))


def test_several_answers_are_samples() -> None:
    assert CompletionRequest(prompt="x", n=2).options()["temperature"] == 1
    assert "temperature" not in CompletionRequest(prompt="x", n=2, mara=MaraFields(order="sampled")).options()


def test_reasoning_reaches_the_template() -> None:
    def options(**fields: Any) -> dict[str, Any]:
        return ChatRequest(**LEAST["chat"], **fields).options()

    assert options(reasoning_effort="low")["chat_template_kwargs"] == {"reasoning_effort": "low"}
    assert options(reasoning_effort="none") == {"enable_thinking": False}


def test_a_gate_may_not_name_a_file() -> None:
    gate = {"kind": "trust", "rarity": "/etc/passwd"}
    with pytest.raises(ValidationError, match="rarity"):
        MaraFields.model_validate({"gate": gate})
    assert MaraFields.model_validate({"gate": {"kind": "entropy", "threshold": 2}}).options()["gate"].threshold == 2
