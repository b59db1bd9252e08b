"""MaraLLM inside LangChain: results' metadata, callbacks, caches, chains, token counts."""

from typing import Any

import pytest
from families import tiny_agent
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.globals import get_llm_cache, set_llm_cache
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import LLMResult
from langchain_core.prompts import PromptTemplate

from langchain_mara import MaraLLM


class Recorder(BaseCallbackHandler):
    """Keeps the tokens and the results it is told of."""

    def __init__(self) -> None:
        self.tokens: list[str] = []
        self.results: list[LLMResult] = []
        self.errors: list[BaseException] = []

    def on_llm_new_token(self, token: str, **_: Any) -> None:
        self.tokens.append(token)

    def on_llm_end(self, response: LLMResult, **_: Any) -> None:
        self.results.append(response)

    def on_llm_error(self, error: BaseException, **_: Any) -> None:
        self.errors.append(error)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def cached(llm: MaraLLM) -> MaraLLM:
    """The LLM with a cache of its own; `with_agent` shares it."""
    return variant(llm, cache=InMemoryCache())


def variant(llm: MaraLLM, **changes: Any) -> MaraLLM:
    fields = {"model": llm.model, "tokenizer": llm.tokenizer, "agent": llm.agent, "cache": llm.cache}
    return MaraLLM(**{**fields, "max_new_tokens": 16, **changes})


def test_result_tells_finish_reason_and_decisions(llm: MaraLLM) -> None:
    free = llm.invoke("hi")
    result = llm.generate(["hi", "the end"], max_new_tokens=6)
    for prompt, generations in zip(["hi", "the end"], result.generations, strict=True):
        info = generations[0].generation_info or {}
        decisions = [decision for decision, _ in llm.trace([prompt], max_new_tokens=6)[0]]
        assert info["finish_reason"] == "length"
        assert info["decisions"]["tokens"] == len(decisions) == 6
        assert info["decisions"]["examined"] == sum(len(decision.accept_probabilities) for decision in decisions)
    stopped = llm.generate(["hi"], stop=[free[5:7]]).generations[0][0].generation_info or {}
    assert stopped["finish_reason"] == "stop"


def test_result_counts_tokens_of_all_prompts(llm: MaraLLM) -> None:
    prompts = ["hi", "the end"]
    output = llm.generate(prompts, max_new_tokens=6).llm_output or {}
    prompt_tokens = sum(len(llm.encode(prompt)) for prompt in prompts)
    expected = {"prompt_tokens": prompt_tokens, "completion_tokens": 12, "total_tokens": prompt_tokens + 12}
    assert output["token_usage"] == expected
    assert output["model_name"] == "LlamaForCausalLM"


def test_last_chunk_of_a_stream_tells_the_same_as_the_result(llm: MaraLLM) -> None:
    chunks = list(llm._stream("hi"))
    assert [chunk.generation_info is None for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    assert chunks[-1].generation_info == llm.generate(["hi"]).generations[0][0].generation_info


def test_callbacks_get_every_piece_of_a_stream(llm: MaraLLM, recorder: Recorder) -> None:
    chunks = list(llm.stream("hi", config={"callbacks": [recorder]}))
    assert [token for token in recorder.tokens if token] == [chunk for chunk in chunks if chunk]
    assert recorder.results[0].generations[0][0].text == "".join(chunks)


async def test_callbacks_get_every_piece_of_an_async_stream(llm: MaraLLM, recorder: Recorder) -> None:
    chunks = [chunk async for chunk in llm.astream("hi", config={"callbacks": [recorder]})]
    assert len(chunks) > 8
    assert "".join(recorder.tokens) == "".join(chunks) == recorder.results[0].generations[0][0].text


def test_callbacks_get_the_tokens_of_an_invocation(llm: MaraLLM, recorder: Recorder) -> None:
    text = llm.invoke("hi", config={"callbacks": [recorder]})
    assert len(recorder.tokens) > 8
    assert "".join(recorder.tokens) == text


def test_callbacks_learn_of_errors(llm: MaraLLM, recorder: Recorder) -> None:
    with pytest.raises(ValueError, match="Shorten"):
        llm.invoke("x" * 200, config={"callbacks": [recorder]})
    assert "Shorten" in str(recorder.errors[0])


def test_it_is_a_link_of_a_chain(llm: MaraLLM) -> None:
    chain = PromptTemplate.from_template("is {it} so?") | llm | StrOutputParser()
    expected = llm.invoke("is it so?")
    assert chain.invoke({"it": "it"}) == expected
    chunks = list(chain.stream({"it": "it"}))
    assert "".join(chunks) == expected
    assert len(chunks) > 3
    assert chain.batch([{"it": "it"}, {"it": "he"}]) == [expected, llm.invoke("is he so?")]


def test_agents_differ_in_the_identifying_parameters(llm: MaraLLM) -> None:
    identities = [
        instance._identifying_params for instance in (llm, llm.with_agent(tiny_agent(seed=5)), llm.with_agent(None))
    ]
    assert len({str(identity) for identity in identities}) == 3
    assert [identity["agent"] is None for identity in identities] == [False, False, True]


@pytest.mark.parametrize(
    "changes",
    [
        {"agent": None},
        {"accept_threshold": 0.7},
        {"order": "reversed"},
        {"seed": 3},
        {"max_new_tokens": 3},
        {"stop": ["e"]},
        {"system_prompt": "be nice"},
        {"use_chat_template": False},
        {"model_id": "other"},
    ],
    ids=str,
)
def test_whatever_changes_the_answer_changes_the_identity(llm: MaraLLM, changes: dict[str, Any]) -> None:
    assert variant(llm, **changes)._identifying_params != llm._identifying_params


def test_what_only_changes_the_speed_keeps_the_identity(llm: MaraLLM) -> None:
    assert variant(llm, batch_size=1, width=1)._identifying_params == llm._identifying_params


def test_cache_spares_the_second_run(cached: MaraLLM) -> None:
    passes = []
    handle = cached.model.model.register_forward_pre_hook(lambda *_: passes.append(1))
    try:
        first = cached.invoke("hi")
        count = len(passes)
        assert cached.invoke("hi") == first
    finally:
        handle.remove()
    assert len(passes) == count > 0


@pytest.mark.slow
def test_cache_does_not_mix_up_agents(llm: MaraLLM, cached: MaraLLM) -> None:
    for agent in (llm.agent, tiny_agent(seed=5), None):
        for _ in range(2):
            assert cached.with_agent(agent).invoke("hi") == llm.with_agent(agent).invoke("hi")


def test_global_cache_does_not_mix_up_agents(llm: MaraLLM) -> None:
    expected = [llm.invoke("hi"), llm.with_agent(None).invoke("hi")]
    before = get_llm_cache()
    set_llm_cache(InMemoryCache())
    try:
        assert [llm.invoke("hi"), llm.with_agent(None).invoke("hi")] == expected
    finally:
        set_llm_cache(before)


def test_cache_does_not_mix_up_stop_strings_of_calls(llm: MaraLLM, cached: MaraLLM) -> None:
    assert cached.invoke("hi") == llm.invoke("hi")
    assert cached.invoke("hi", stop=["e"]) == llm.invoke("hi", stop=["e"]) != llm.invoke("hi")


def test_cache_does_not_mix_up_stop_strings_of_instances(llm: MaraLLM, cached: MaraLLM) -> None:
    assert cached.invoke("hi") == llm.invoke("hi")
    assert variant(cached, stop=["e"]).invoke("hi") == llm.invoke("hi", stop=["e"])


@pytest.mark.parametrize("kwargs", [{"agent": None}, {"max_new_tokens": 3}])
def test_cache_does_not_mix_up_options_of_calls(llm: MaraLLM, cached: MaraLLM, kwargs: dict[str, Any]) -> None:
    assert cached.invoke("hi") == llm.invoke("hi")
    assert cached.invoke("hi", **kwargs) == llm.invoke("hi", **kwargs)


def test_tokens_are_counted_by_the_models_tokenizer(llm: MaraLLM) -> None:
    for text in ("", "hi", "the end €"):
        ids = llm.get_token_ids(text)
        assert llm.get_num_tokens(text) == len(ids)
        assert llm.tokenizer.decode(ids) == text


def test_description_shows_no_weights(llm: MaraLLM) -> None:
    assert "Embedding" not in repr(llm)
    assert "LayerNorm" not in repr(llm)
    assert len(repr(llm)) < 300
    assert not {"model", "tokenizer", "agent"} & set(llm.model_dump())
    assert llm._llm_type == "mara"
