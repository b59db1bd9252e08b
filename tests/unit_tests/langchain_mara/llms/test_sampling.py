"""When a request means sampling, and which options it would give for nothing."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from langchain_mara.chat_models import ChatMara
from langchain_mara.llms import MaraLLM


@pytest.mark.parametrize("door", ["instance", "call", "chat", "chat's call", "as_chat"])
def test_a_temperature_alone_asks_for_samples(llm: MaraLLM, door: str) -> None:
    """As in requests to hosted models; the order stays as it is where the temperature is 0."""
    fields = {"model": llm.model, "tokenizer": llm.tokenizer, "agent": llm.agent, "max_new_tokens": 16}
    ask: dict[str, Callable[..., str]] = {
        "instance": lambda **options: MaraLLM(**fields, **options).invoke("is it so"),
        "call": lambda **options: llm.invoke("is it so", **options),
        "chat": lambda **options: ChatMara(**fields, **options).invoke("is it so").text,
        "chat's call": lambda **options: llm.as_chat().invoke("is it so", **options).text,
        "as_chat": lambda **options: llm.as_chat(**options).invoke("is it so").text,
    }
    greedy = ask[door]()
    sampled = ask[door](temperature=1.5, seed=4)
    assert sampled == ask[door](order="sampled", temperature=1.5, seed=4) != greedy
    assert ask[door](temperature=0) == greedy
    assert ask[door](top_p=0.95) == greedy


def test_a_temperature_of_a_call_replaces_only_the_default_order(llm: MaraLLM) -> None:
    assert llm._configured({"temperature": 0.7}).order == "sampled"
    assert llm._configured({"temperature": np.float32(0.7)}).order == "sampled"
    assert llm._configured({"temperature": 0.7})._configured({"temperature": 0.0}).order == "sampled"
    assert llm._configured({"temperature": 0.7})._configured({"order": "descending"}).order == "descending"
    with pytest.warns(UserWarning, match=r"temperature=0.7 has no effect with order='reversed'. Leave one"):
        assert llm._configured({"order": "reversed"})._configured({"temperature": 0.7}).order == "reversed"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.7, "order": "descending"}, "temperature=0.7 has no effect with order='descending'"),
        (
            {"strategy": "sampled", "accept_threshold": 0.7},
            "accept_threshold=0.7 has no effect with strategy='sampled'",
        ),
        ({"strategy": "guided", "accept_threshold": 0.7}, "accept_threshold=0.7 has no effect with strategy='guided'"),
        ({"strength": 0.7}, "strength=0.7 has no effect with strategy='first-accept'"),
        ({"agent": None, "accept_threshold": 0.7}, "accept_threshold=0.7 has no effect with no agent"),
        ({"agent": None, "fallback": -1}, "fallback=-1 has no effect with no agent"),
    ],
    ids=str,
)
def test_options_without_effect_are_named(llm: MaraLLM, options: dict[str, Any], message: str) -> None:
    with pytest.warns(UserWarning, match=message):
        llm._configured(options)


def test_options_without_effect_are_named_once(llm: MaraLLM) -> None:
    options: Any = {"temperature": 0.7, "order": "descending"}
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(3):
            llm._configured(options)
            llm.as_chat()._configured(options)
        MaraLLM(**{"model": llm.model, "tokenizer": llm.tokenizer, "agent": llm.agent, **options})
    assert [str(each.message)[:35] for each in seen] == ["temperature=0.7 has no effect with "]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            with pytest.raises(UserWarning, match="strength=0.7"):
                llm._configured({"strength": 0.7})


def test_what_has_an_effect_and_what_was_given_before_is_not_named(llm: MaraLLM) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        llm._configured({"temperature": 0.7, "seed": 3})._configured({"order": "descending"})
        llm._configured({"temperature": 0.0})
        llm._configured({"accept_threshold": 0.7, "fallback": -1}).with_agent(None).as_chat()
        copy.copy(llm._configured({"temperature": 0.7}).with_agent(None))


def test_several_answers_need_a_temperature_only(llm: MaraLLM) -> None:
    answers = llm.generate(["is it so"], n=3, temperature=1.5).generations[0]
    assert len({answer.text for answer in answers}) > 1
