"""What LangChain's users may expect of any `BaseLLM`, one test a promise; written as a suite, since there is none."""

import asyncio
import copy
import pickle
from collections import defaultdict
from typing import Any
from uuid import UUID

import pytest
import torch
from families import decoding_threads, tiny_agent, tiny_model, wait_until
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.load import dumpd
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import GenerationChunk, LLMResult
from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import ConfigurableField, RunnableLambda, RunnableParallel
from transformers import PreTrainedTokenizerFast

from langchain_mara import MaraLLM
from langchain_mara.exceptions import AgentMismatchError, OptionsError, PromptError

PROMPTS = ["hi", "the end", "is it so?", "a"]
DRAWN: dict[str, Any] = {"order": "sampled", "temperature": 1.5}
CALL_OPTIONS: list[dict[str, Any]] = [
    {"top_k": 3},
    {"top_p": 0.3},
    {"order": "reversed"},
    {"strategy": "max-prob"},
    {"accept_threshold": 0.7},
    {"accept_action": 0},
    {"fallback": 2, "accept_threshold": 0.95},
    {"max_new_tokens": 3},
    {"agent": None},
    {"stop": ["e"]},
    {"use_chat_template": False},
    {"system_prompt": "be nice"},
    {**DRAWN, "seed": 3},
]


class Recorder(BaseCallbackHandler):
    """Keeps what each run is told."""

    def __init__(self) -> None:
        self.tokens: dict[UUID, str] = defaultdict(str)
        self.ends: dict[UUID, str] = {}
        self.errors: dict[UUID, BaseException] = {}
        self.started: dict[UUID, str] = {}
        self.metadata: list[dict[str, Any]] = []

    def on_llm_start(self, _: Any, prompts: list[str], *, run_id: UUID, **kwargs: Any) -> None:
        self.started[run_id] = prompts[0]
        self.metadata.append(kwargs.get("metadata") or {})

    def on_llm_new_token(self, token: str, *, run_id: UUID, chunk: Any = None, **_: Any) -> None:
        assert isinstance(chunk, GenerationChunk)
        assert chunk.text == token
        self.tokens[run_id] += token

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **_: Any) -> None:
        self.ends[run_id] = response.generations[0][0].text

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        self.errors[run_id] = error


class AsyncRecorder(AsyncCallbackHandler):
    """Keeps each run's tokens."""

    def __init__(self) -> None:
        self.tokens: dict[UUID, str] = defaultdict(str)

    async def on_llm_new_token(self, token: str, *, run_id: UUID, **_: Any) -> None:
        self.tokens[run_id] += token


@pytest.fixture(params=["transformers_llm", "gguf_llm"])
def llm(request: pytest.FixtureRequest) -> MaraLLM:
    """The same model, run by each backend."""
    found: MaraLLM = request.getfixturevalue(request.param)
    return found


def variant(llm: MaraLLM, **changes: Any) -> MaraLLM:
    return MaraLLM(model=llm.model, tokenizer=llm.tokenizer, **{"agent": llm.agent, "max_new_tokens": 16, **changes})


# Per-call arguments


@pytest.mark.slow
@pytest.mark.parametrize("options", CALL_OPTIONS, ids=str)
async def test_options_act_the_same_on_every_call_and_at_construction(llm: MaraLLM, options: dict[str, Any]) -> None:
    expected = variant(llm, **options).invoke("hi")
    assert expected != llm.invoke("hi")
    assert llm.invoke("hi", **options) == expected
    assert llm.batch(["hi", "a"], **options)[0] == expected
    assert "".join(llm.stream("hi", **options)) == expected
    assert llm.generate(["hi"], **options).generations[0][0].text == expected
    assert llm.bind(**options).invoke("hi") == expected
    assert await llm.ainvoke("hi", **options) == expected
    assert (await llm.abatch(["hi", "a"], **options))[0] == expected
    assert "".join([text async for text in llm.astream("hi", **options)]) == expected
    assert (await llm.agenerate(["hi"], **options)).generations[0][0].text == expected


def test_seed_and_temperature_act_on_a_call(llm: MaraLLM) -> None:
    assert llm.invoke("hi", **DRAWN, seed=1) != llm.invoke("hi", **DRAWN, seed=2)
    cold = {"order": "sampled", "temperature": 0}
    assert llm.invoke("hi", **cold) == llm.invoke("hi")


@pytest.mark.slow
def test_n_answers_are_drawn_with_consecutive_seeds(llm: MaraLLM) -> None:
    result = llm.generate(["hi", "a"], n=3, **DRAWN, seed=5)
    texts = [[generation.text for generation in answers] for answers in result.generations]
    assert texts == [[llm.invoke(p, **DRAWN, seed=5 + i) for i in range(3)] for p in ("hi", "a")]
    assert len(set(texts[0])) == 3
    usage = (result.llm_output or {})["token_usage"]
    assert usage["prompt_tokens"] == sum(len(llm.encode(p)) for p in ("hi", "a"))
    with pytest.raises(OptionsError, match="n=3 asks for different answers.*Set order='sampled'"):
        llm.generate(["hi"], n=3)
    with pytest.raises(OptionsError, match="A stream is one answer, not n=2"):
        list(llm.stream("hi", n=2, **DRAWN))


def test_max_tokens_is_another_name_of_max_new_tokens(llm: MaraLLM) -> None:
    assert MaraLLM(model=llm.model, tokenizer=llm.tokenizer, max_tokens=3).max_new_tokens == 3
    assert llm.invoke("hi", max_tokens=3) == llm.invoke("hi", max_new_tokens=3)


def test_both_names_of_one_option_are_refused(llm: MaraLLM) -> None:
    with pytest.raises(OptionsError, match="max_tokens and max_new_tokens mean the same"):
        llm.invoke("hi", max_tokens=3, max_new_tokens=4)


# Batches


@pytest.mark.slow
@pytest.mark.parametrize("concurrency", [None, 1, 3])
async def test_max_concurrency_changes_no_answer(llm: MaraLLM, concurrency: int | None) -> None:
    expected = [llm.invoke(prompt) for prompt in PROMPTS]
    config: Any = {"max_concurrency": concurrency}
    assert llm.batch(PROMPTS, config) == expected
    assert await llm.abatch(PROMPTS, config) == expected
    assert dict(llm.batch_as_completed(PROMPTS, config)) == dict(enumerate(expected))


@pytest.mark.slow
async def test_one_bad_prompt_fails_alone_where_exceptions_are_returned(llm: MaraLLM) -> None:
    prompts = ["hi", "x" * 300, "a"]
    for answers in (
        llm.batch(prompts, return_exceptions=True),
        await llm.abatch(prompts, return_exceptions=True),
    ):
        assert answers[0] == llm.invoke("hi")
        assert isinstance(answers[1], PromptError)
        assert answers[2] == llm.invoke("a")
    with pytest.raises(PromptError):
        llm.batch(prompts)


# Callbacks, events, metadata


def test_every_prompt_of_a_batch_has_a_run_with_its_own_tokens(llm: MaraLLM) -> None:
    recorder = Recorder()
    texts = llm.batch(PROMPTS, config={"callbacks": [recorder]})
    assert list(recorder.started.values()) == PROMPTS
    assert [recorder.tokens[run] for run in recorder.started] == texts
    assert [recorder.ends[run] for run in recorder.started] == texts


async def test_every_prompt_of_an_async_batch_has_a_run_with_its_own_tokens(llm: MaraLLM) -> None:
    recorder, awaited = Recorder(), AsyncRecorder()
    texts = await llm.abatch(PROMPTS, config={"callbacks": [recorder, awaited]})
    assert sorted(recorder.tokens.values()) == sorted(awaited.tokens.values()) == sorted(texts)


def test_errors_reach_every_run(llm: MaraLLM) -> None:
    recorder = Recorder()
    with pytest.raises(PromptError):
        llm.batch(["hi", "x" * 300], config={"callbacks": [recorder]})
    assert len(recorder.errors) == 2


@pytest.mark.parametrize("way", ["ainvoke", "astream"])
async def test_tokens_are_events_however_the_chain_runs_it(llm: MaraLLM, way: str) -> None:
    prompt = PromptTemplate.from_template("{it}")

    async def step(text: str) -> str:
        if way == "ainvoke":
            return await llm.ainvoke(text)
        return "".join([chunk async for chunk in llm.astream(text)])

    chain = prompt | (lambda value: value.to_string()) | step
    events = [event async for event in chain.astream_events({"it": "hi"})]
    chunks = [event["data"]["chunk"].text for event in events if event["event"] == "on_llm_stream"]
    assert len([chunk for chunk in chunks if chunk]) > 8
    assert "".join(chunks) == llm.invoke("hi")
    assert any(event["event"] == "on_llm_end" for event in events)


async def test_infos_of_chunks_merge_to_the_info_of_the_result(llm: MaraLLM) -> None:
    llm = llm.model_copy(update={"width": 2})  # a measured width, and with it rounding, may change between two answers
    options: dict[str, Any] = {"include_accept_probabilities": True, "stop": [llm.invoke("hi")[9:11]]}
    whole = llm.generate(["hi"], **options).generations[0][0]
    chunks = list(llm._stream("hi", **options))
    merged = chunks[0]
    for chunk in chunks[1:]:
        merged += chunk
    info, merged_info = dict(whole.generation_info or {}), dict(merged.generation_info or {})
    # llama.cpp rounds by where in its memory the prefix lies, which other answers decide.
    streamed, judged = merged_info.pop("accept_probabilities"), info.pop("accept_probabilities")
    assert streamed == [pytest.approx(each, abs=1e-5) for each in judged]
    assert (merged.text, merged_info) == (whole.text, info)
    assert info["finish_reason"] == "stop"
    decisions = [decision for decision, _ in llm.trace(["hi"], stop=options["stop"])[0]]
    # The passes of two answers may differ in width, and so in rounding.
    for probabilities, decision in zip(judged, decisions, strict=True):
        assert probabilities == pytest.approx(list(decision.accept_probabilities), abs=1e-5)
    assert info["decisions"]["tokens"] == len(decisions)


def test_accept_probabilities_come_only_where_asked_for(llm: MaraLLM) -> None:
    assert "accept_probabilities" not in (llm.generate(["hi"]).generations[0][0].generation_info or {})


def test_token_usage_counts_prompts_and_answers(llm: MaraLLM) -> None:
    output = llm.generate(PROMPTS, max_new_tokens=5).llm_output or {}
    prompts = sum(len(llm.encode(prompt)) for prompt in PROMPTS)
    assert output["token_usage"]["prompt_tokens"] == prompts
    assert output["token_usage"]["total_tokens"] == prompts + output["token_usage"]["completion_tokens"]


def test_traces_tell_model_limits_and_stop(llm: MaraLLM) -> None:
    params = llm._get_ls_params(stop=["e"])
    assert params["ls_provider"] == "mara"
    assert params["ls_model_type"] == "llm"
    assert params["ls_model_name"] == llm.model_id
    assert params["ls_max_tokens"] == 16
    assert params["ls_stop"] == ["e"]
    assert llm._get_ls_params(max_new_tokens=4, **DRAWN)["ls_temperature"] == 1.5
    recorder = Recorder()
    llm.invoke("hi", max_new_tokens=4, config={"callbacks": [recorder]})
    assert recorder.metadata[0]["ls_max_tokens"] == 4


# Cache


@pytest.mark.slow
@pytest.mark.parametrize("change", CALL_OPTIONS, ids=str)
async def test_no_cache_entry_serves_another_call(llm: MaraLLM, change: dict[str, Any]) -> None:
    cached = variant(llm, cache=InMemoryCache())
    plain = cached.invoke("hi")
    for _ in range(2):
        assert cached.invoke("hi", **change) == llm.invoke("hi", **change)
        assert await cached.ainvoke("hi", **change) == llm.invoke("hi", **change)
        assert cached.invoke("hi") == plain


@pytest.mark.slow
def test_two_agents_never_share_an_entry(llm: MaraLLM) -> None:
    cached = variant(llm, cache=InMemoryCache())
    for seed in (3, 4, 5):
        agent = tiny_agent(seed=seed)
        assert cached.invoke("hi", agent=agent) == llm.invoke("hi", agent=agent)
        assert cached.with_agent(agent).invoke("hi") == llm.with_agent(agent).invoke("hi")


def test_an_agent_trained_further_has_no_entry(llm: MaraLLM) -> None:
    agent = tiny_agent(seed=3)
    cached = variant(llm, agent=agent, cache=InMemoryCache())
    cached.invoke("hi")
    with torch.no_grad():
        agent.get_parameter("output_linear.bias").copy_(torch.tensor([100.0, -100.0]))
    assert cached.invoke("hi") == llm.with_agent(None).invoke("hi")


def test_two_models_without_names_never_share_an_entry(llm: MaraLLM, tokenizer: PreTrainedTokenizerFast) -> None:
    cache = InMemoryCache()
    other = tiny_model("llama-3", seed=9)
    expected = MaraLLM(model=other, tokenizer=tokenizer, max_new_tokens=16).invoke("hi")
    assert variant(llm, agent=None, cache=cache).invoke("hi") != expected
    assert MaraLLM(model=other, tokenizer=tokenizer, max_new_tokens=16, cache=cache).invoke("hi") == expected


def test_a_model_trained_further_has_no_entry_and_no_prefix(tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model("llama-3", seed=4)
    llm = MaraLLM(model=model, tokenizer=tokenizer, max_new_tokens=8, cache=InMemoryCache())
    prompt = "the end is it so " * 4
    before = llm.invoke(prompt)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(-1.3)
    fresh = MaraLLM(model=copy.deepcopy(model), tokenizer=tokenizer, max_new_tokens=8)
    assert llm.invoke(prompt) == fresh.invoke(prompt) != before


# Configurable


def test_configurable_fields_reload_nothing(llm: MaraLLM) -> None:
    configurable = llm.configurable_fields(
        max_new_tokens=ConfigurableField(id="length"), agent=ConfigurableField(id="agent")
    )
    assert configurable.invoke("hi") == llm.invoke("hi")
    short = configurable.with_config(configurable={"length": 3})
    assert short.invoke("hi") == llm.invoke("hi", max_new_tokens=3)
    prepared, _ = configurable._prepare({"configurable": {"length": 3, "agent": None}})
    assert prepared.model is llm.model  # type: ignore[attr-defined]
    assert prepared.invoke("hi") == llm.invoke("hi", max_new_tokens=3, agent=None)


def test_configurable_alternatives_share_the_model(llm: MaraLLM) -> None:
    chain = PromptTemplate.from_template("{it}") | llm.configurable_alternatives(
        ConfigurableField(id="alignment"), default_key="aligned", plain=llm.with_agent(None)
    )
    assert chain.invoke({"it": "hi"}) == llm.invoke("hi")
    plain = chain.with_config(configurable={"alignment": "plain"})
    assert plain.invoke({"it": "hi"}) == llm.invoke("hi", agent=None)


# Copies


@pytest.mark.slow
def test_copies_share_the_loaded_model_and_nothing_else(llm: MaraLLM) -> None:
    for copied in (copy.copy(llm), copy.deepcopy(llm), llm.model_copy(deep=True), llm.model_copy()):
        assert copied.model is llm.model
        assert copied.tokenizer is llm.tokenizer
        assert copied.invoke("hi") == llm.invoke("hi")
        copied.max_new_tokens = 3
        assert llm.max_new_tokens == 16
        assert copied.invoke("hi") == llm.invoke("hi", max_new_tokens=3)


def test_pickling_is_refused_with_the_way_out(llm: MaraLLM) -> None:
    with pytest.raises(pickle.PicklingError, match="call MaraLLM.from_model_id in the other process"):
        pickle.dumps(llm)


def test_serialization_shows_no_weights(llm: MaraLLM) -> None:
    dumped = dumpd(llm)
    assert dumped["type"] == "not_implemented"
    assert len(str(dumped)) < 1000


# Stop strings


@pytest.mark.slow
@pytest.mark.parametrize("length", [1, 2, 3, 5, 9])
async def test_no_part_of_a_stop_string_is_ever_streamed(llm: MaraLLM, length: int) -> None:
    free = llm.invoke("hi")
    for start in range(len(free) - length):
        stop = free[start : start + length]
        expected = free[: free.index(stop)]
        chunks = list(llm.stream("hi", stop=[stop]))
        assert "".join(chunks) == expected == llm.invoke("hi", stop=[stop])
    assert "".join([text async for text in llm.astream("hi", stop=[stop])]) == expected


# Concurrency


@pytest.mark.slow
async def test_answers_that_are_asked_together_are_those_asked_alone(llm: MaraLLM) -> None:
    expected = {prompt: llm.invoke(prompt) for prompt in PROMPTS}
    answers = await asyncio.gather(*(llm.ainvoke(prompt) for prompt in PROMPTS * 5))
    assert answers == [expected[prompt] for prompt in PROMPTS * 5]
    branches = {name: llm.bind(stop=[name]) for name in "aeh"}
    parallel = RunnableParallel(**branches).invoke("hi")
    assert parallel == {name: llm.invoke("hi", stop=[name]) for name in branches}
    wait_until(lambda: decoding_threads() == 0)


@pytest.mark.slow
async def test_cancelling_a_task_leaves_the_others_and_no_thread(llm: MaraLLM) -> None:
    expected = llm.invoke("a", max_new_tokens=60)
    task = asyncio.create_task(llm.ainvoke("hi", max_new_tokens=60))
    other = asyncio.create_task(llm.ainvoke("a", max_new_tokens=60))
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await other == expected
    wait_until(lambda: decoding_threads() == 0)


async def test_timeout_ends_the_call_with_its_name(llm: MaraLLM) -> None:
    with pytest.raises(TimeoutError, match=r"did not answer within timeout=1e-06 seconds"):
        llm.invoke("hi", timeout=1e-6)
    with pytest.raises(TimeoutError, match="did not answer within"):
        await llm.ainvoke("hi", timeout=1e-6)
    assert llm.invoke("hi", timeout=60) == llm.invoke("hi")
    wait_until(lambda: decoding_threads() == 0)


# Errors


async def test_errors_are_raised_at_once_and_the_llm_goes_on(llm: MaraLLM) -> None:
    expected = llm.invoke("hi")
    calls: list[tuple[type[Exception], dict[str, Any]]] = [
        (AgentMismatchError, {"agent": tiny_agent(16)}),
        (OptionsError, {"top_k": 0}),
        (OptionsError, {"tempurature": 1}),
    ]
    for error, options in calls:
        with pytest.raises(error):
            llm.invoke("hi", **options)
        with pytest.raises(error):
            await llm.ainvoke("hi", **options)
        with pytest.raises(error):
            list(llm.stream("hi", **options))
    assert llm.invoke("hi") == expected


def test_chains_fall_back(llm: MaraLLM) -> None:
    chain = PromptTemplate.from_template("{it}") | llm | StrOutputParser()
    safe = chain.with_fallbacks([RunnableLambda(lambda _: "too long")], exceptions_to_handle=(PromptError,))
    assert safe.invoke({"it": "x" * 300}) == "too long"
    assert safe.invoke({"it": "hi"}) == llm.invoke("hi")
