"""Settings that LangChain's configuration changes: options, agents, other models, and what was given apart."""

import warnings
from pathlib import Path
from typing import Any

import pytest
from families import tiny_agent
from langchain_core.exceptions import OutputParserException
from langchain_core.rate_limiters import InMemoryRateLimiter
from langchain_core.runnables import ConfigurableField, RunnableLambda
from langchain_core.runnables.utils import ConfigurableFieldMultiOption, ConfigurableFieldSingleOption
from parrot import FOLDER

from langchain_mara import ChatMara, MaraLLM
from langchain_mara.exceptions import OptionsError, PromptError

Model = MaraLLM | ChatMara


@pytest.fixture(params=["text", "chat"])
def model_of_kind(request: pytest.FixtureRequest, llm: MaraLLM) -> Model:
    return llm if request.param == "text" else llm.as_chat()


def said(answer: Any) -> str:
    return answer if isinstance(answer, str) else str(answer.text)


def configured(runnable: Any, **values: Any) -> str:
    return said(runnable.invoke("hi", {"configurable": values}))


def test_the_name_of_a_model_is_text(model_of_kind: Model) -> None:
    assert model_of_kind.model_name == model_of_kind.model_id == "LlamaForCausalLM"


@pytest.mark.parametrize("name", ["temperature", "max_new_tokens", "seed", "accept_threshold", "agent"])
def test_a_configured_option_is_the_same_as_one_of_the_call(model_of_kind: Model, name: str) -> None:
    value = {"temperature": 1.5, "max_new_tokens": 3, "seed": 9, "accept_threshold": 0.7, "agent": tiny_agent(seed=5)}[
        name
    ]
    runnable = model_of_kind.configurable_fields(**{name: ConfigurableField(id="it")})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert configured(runnable, it=value) == said(model_of_kind.invoke("hi", **{name: value}))
        assert configured(runnable) == said(model_of_kind.invoke("hi"))


def test_a_temperature_configured_alone_asks_for_samples(model_of_kind: Model) -> None:
    # LangChain's own class gives every field anew, with order="descending" among them.
    runnable: Any = model_of_kind.configurable_fields(
        temperature=ConfigurableField(id="it"), seed=ConfigurableField(id="s")
    )
    answers = {configured(runnable, it=1.5, s=seed) for seed in range(4)}
    assert len(answers) > 1


def test_the_model_is_configured_by_its_name(model_of_kind: Model, model_folder: Path) -> None:
    field = ConfigurableField(id="model", annotation=str)
    runnable: Any = model_of_kind.configurable_fields(model=field, max_new_tokens=ConfigurableField(id="length"))
    assert configured(runnable, model=str(model_folder), length=3) == said(model_of_kind.invoke("hi", max_tokens=3))
    prepared, _ = runnable._prepare({"configurable": {"model": str(model_folder)}})
    assert prepared.model_name == str(model_folder)
    assert prepared.model is not model_of_kind.model


def say(text: str) -> str:
    """Says a text."""
    return text


def called(answer: Any) -> list[Any]:
    return [(call["name"], call["args"]) for call in (*answer.tool_calls, *answer.invalid_tool_calls)]


async def test_with_tools_or_a_schema_fields_stay_configurable() -> None:
    chat = ChatMara.from_model_id(FOLDER, device="cpu", max_new_tokens=9)
    runnable = chat.configurable_fields(max_new_tokens=ConfigurableField(id="length"))
    config: Any = {"configurable": {"length": 3}}
    bound, expected = runnable.bind_tools([say], tool_choice="say"), chat.bind_tools([say], tool_choice="say")
    assert called(bound.invoke("hi")) == called(expected.invoke("hi")) != []
    for answer in (bound.invoke("hi", config), await bound.ainvoke("hi", config), bound.batch(["hi"], config)[0]):
        assert answer.usage_metadata["output_tokens"] == 3
    assert len([chunk for chunk in bound.stream("hi", config) if chunk.usage_metadata]) == 1

    schema = {"title": "sure", "type": "object", "properties": {"sure": {"type": "boolean"}}, "required": ["sure"]}
    promised = runnable.with_structured_output(schema, method="json_schema")
    assert set(promised.invoke("hi", {"configurable": {"length": 60}})) == {"sure"}
    with pytest.raises(OutputParserException, match="reached max_new_tokens"):
        promised.invoke("hi", config)


def test_options_to_choose_from(model_of_kind: Model) -> None:
    lengths: Any = ConfigurableFieldSingleOption(id="length", options={"short": 3, "long": 9}, default="long")
    stops: Any = ConfigurableFieldMultiOption(id="stops", options={"n": "n", "e": "e"}, default=["n"])
    runnable = model_of_kind.configurable_fields(max_new_tokens=lengths, stop=stops)
    assert configured(runnable) == said(model_of_kind.invoke("hi", max_new_tokens=9, stop=["n"]))
    assert configured(runnable, length="short", stops=["e"]) == said(
        model_of_kind.invoke("hi", max_new_tokens=3, stop=["e"])
    )


def test_unknown_fields_are_refused(model_of_kind: Model) -> None:
    with pytest.raises(ValueError, match="There is no field tempurature to configure. Use one of "):
        model_of_kind.configurable_fields(tempurature=ConfigurableField(id="it"))
    runnable = model_of_kind.configurable_fields(temperature=ConfigurableField(id="it"))
    with pytest.raises(OptionsError, match="temperature='hot' should be a valid number"):
        configured(runnable, it="hot")


def test_alternatives_fallbacks_and_retries(model_of_kind: Model) -> None:
    plain = model_of_kind.with_agent(None)
    either: Any = model_of_kind.configurable_alternatives(ConfigurableField(id="who"), plain=plain)
    assert configured(either, who="plain") == said(plain.invoke("hi"))
    safe = model_of_kind.with_fallbacks([RunnableLambda(lambda _: "too long")], exceptions_to_handle=(PromptError,))
    assert (said(safe.invoke("hi")), safe.invoke("x" * 300)) == (said(model_of_kind.invoke("hi")), "too long")
    retried = model_of_kind.with_retry(retry_if_exception_type=(PromptError,), stop_after_attempt=2)
    with pytest.raises(PromptError):
        retried.invoke("x" * 300)
    bound = model_of_kind.bind(max_tokens=3).with_retry().with_config(tags=["a"])
    assert said(bound.invoke("hi")) == said(model_of_kind.invoke("hi", max_tokens=3))


def test_a_rate_limiter_is_asked_for_every_call(llm: MaraLLM) -> None:
    class Counting(InMemoryRateLimiter):
        asked = 0

        def acquire(self, *, blocking: bool = True) -> bool:
            Counting.asked += 1
            return True

    chat = llm.as_chat(rate_limiter=Counting())
    chat.invoke("hi")
    list(chat.with_agent(None).stream("hi"))
    assert Counting.asked == 2


@pytest.mark.parametrize("none", ["temperature", "top_p", "max_tokens", "seed", "batch_size", "stop", "n"])
def test_none_means_the_default(model_of_kind: Model, none: str) -> None:
    assert said(model_of_kind.invoke("hi", **{none: None})) == said(model_of_kind.invoke("hi"))
    made = type(model_of_kind)(model=model_of_kind.model, tokenizer=model_of_kind.tokenizer, **{none: None})
    name = "max_new_tokens" if none == "max_tokens" else none
    assert getattr(made, name) == type(made).model_fields[name].default


def test_none_beside_the_other_name_of_an_option_is_left_out(model_of_kind: Model) -> None:
    short = said(model_of_kind.invoke("hi", max_tokens=3))
    assert said(model_of_kind.invoke("hi", max_tokens=None, max_new_tokens=3)) == short
    assert said(model_of_kind.invoke("hi", max_tokens=3, max_new_tokens=None, max_completion_tokens=None)) == short


def test_an_option_without_effect_warns_once(model_of_kind: Model) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(2):
            model_of_kind.invoke("hi", temperature=0.5, order="descending")
    assert [str(warning.message) for warning in seen] == [
        "temperature=0.5 has no effect with order='descending'. Leave one of them out."
    ]


def test_a_copy_of_all_fields_does_not_warn(model_of_kind: Model) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        type(model_of_kind)(**dict(model_of_kind))
