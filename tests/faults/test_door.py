"""What cannot be decoded is refused by name before it joins a batch; what only looks odd is accepted."""

from typing import Any

import numpy as np
import pytest
import torch
from langchain_core.messages import HumanMessage

from langchain_mara import ChatMara, DecodingOptions, MaraLLM
from langchain_mara.exceptions import MaraError, OptionsError, QueueFullError

SHORT: dict[str, Any] = {"max_new_tokens": 4, "order": "sampled"}


@pytest.fixture(scope="module")
def llm() -> MaraLLM:
    return MaraLLM.demo(device="cpu", **SHORT)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", -1), ("seed", 2**63), ("seed", 2**70), ("seed", 1.5), ("seed", "four"), ("seed", np.uint64(2**63)),
        ("top_k", 0), ("top_k", np.int64(-3)), ("top_p", float("nan")), ("top_p", np.float32(2)),
        ("temperature", float("nan")), ("temperature", -1), ("accept_threshold", float("nan")),
        ("max_new_tokens", 0), ("min_new_tokens", -1), ("strategy", "best"), ("n", 0), ("timeout", float("nan")),
        ("batch_size", 0), ("width", 0), ("queue_size", 0),
    ],
    ids=str,
)  # fmt: skip
def test_an_option_out_of_range_is_named(llm: MaraLLM, name: str, value: Any) -> None:
    for call in (llm, llm.as_chat()):
        with pytest.raises(OptionsError, match=f"Invalid options: {name}"):
            call.invoke("hi", **{name: value})
        with pytest.raises(OptionsError, match=f"Invalid options: {name}"):
            type(call)(**{**dict(call), name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [np.int64, np.int8, np.uint16, torch.tensor], ids=lambda kind: kind.__name__)
def test_numbers_of_arrays_are_numbers(llm: MaraLLM, number: Any) -> None:
    options = {"seed": 7, "top_k": 5, "max_new_tokens": 3, "batch_size": 2}
    expected = llm.invoke("hi", **options)
    assert llm.invoke("hi", **{name: number(value) for name, value in options.items()}) == expected
    assert type(DecodingOptions.parse(seed=number(7)).seed) is int
    assert DecodingOptions.parse(top_p=np.float64(0.5)).top_p == 0.5


@pytest.mark.parametrize("kind", [MaraLLM, ChatMara], ids=lambda kind: kind.__name__)
def test_a_call_for_millions_of_answers_is_refused_before_any_is_made(llm: MaraLLM, kind: type) -> None:
    call = llm if kind is MaraLLM else llm.as_chat()
    with pytest.raises(QueueFullError, match="One call asks for 10000000 answers, but 4104 may run and wait"):
        call.generate(["hi"] if kind is MaraLLM else [[HumanMessage("hi")]], n=10_000_000)  # type: ignore[arg-type]


def test_many_prompts_are_refused_as_a_whole(llm: MaraLLM) -> None:
    with pytest.raises(QueueFullError, match=r"One call asks for 12 answers, but 10 may run and wait"):
        llm.generate(["hi"] * 4, n=3, queue_size=2)
    assert len(llm.generate(["hi"] * 3, n=3, queue_size=2).generations) == 3


def test_every_refusal_is_an_error_of_the_library() -> None:
    assert issubclass(OptionsError, MaraError)
    assert issubclass(QueueFullError, MaraError)
