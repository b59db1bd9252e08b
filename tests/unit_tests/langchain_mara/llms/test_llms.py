"""MaraLLM: one answer however it is run, and an agent that steers it."""

import asyncio
import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from families import decoding_threads, tiny_agent, wait_until
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from langchain_mara import MaraAgent, MaraLLM
from langchain_mara.exceptions import CheckpointError
from langchain_mara.policy.cache import RaggedCache
from langchain_mara.serving.completion import Completion

PROMPTS = ["hi", "the end", "is it so?", "", "a", "hi"]


def token_ids(llm: MaraLLM, prompt: str, **kwargs: Any) -> list[int]:
    return [decision.token_id or 0 for decision, _ in llm.trace([prompt], **kwargs)[0]]


def alive() -> int:
    """Caches and completions that exist."""
    gc.collect()
    return sum(type(thing) in (RaggedCache, Completion) for thing in gc.get_objects())


@pytest.mark.slow
@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"stop": ["e"]},
        {"max_new_tokens": 5, "accept_threshold": 0.7},
        {"agent": None},
        {"order": "sampled", "strategy": "random", "seed": 5, "temperature": 0.7},
    ],
    ids=str,
)
async def test_every_way_of_running_gives_the_same_text(llm: MaraLLM, kwargs: dict[str, Any]) -> None:
    expected = llm.invoke("hi", **kwargs)
    assert "".join(llm.stream("hi", **kwargs)) == expected
    assert llm.batch(["the", "hi"], **kwargs)[1] == expected
    assert llm.generate(["the", "hi"], **kwargs).generations[1][0].text == expected
    assert "".join(text for _, text in llm.trace(["hi"], **kwargs)[0]) == expected
    assert await llm.ainvoke("hi", **kwargs) == expected
    assert (await llm.abatch(["the", "hi"], **kwargs))[1] == expected
    assert "".join([text async for text in llm.astream("hi", **kwargs)]) == expected
    assert expected != ""


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"order": "sampled", "strategy": "random", "top_k": 8}], ids=str)
def test_batch_size_and_width_never_change_results(llm: MaraLLM, options: dict[str, Any]) -> None:
    fields = {
        "model": llm.model,
        "tokenizer": llm.tokenizer,
        "agent": llm.agent,
        "max_new_tokens": 6,
        **options,
    }
    alone = MaraLLM(**fields, batch_size=1, width=1)
    expected = [alone.invoke(prompt) for prompt in PROMPTS]
    assert len(set(expected)) == len(set(PROMPTS))
    for batch_size, width in [(1, 3), (2, 1), (3, 40), (8, 8)]:
        assert MaraLLM(**fields, batch_size=batch_size, width=width).batch(PROMPTS) == expected


def test_max_concurrency_only_cuts_batches(llm: MaraLLM) -> None:
    assert llm.batch(PROMPTS, config={"max_concurrency": 2}) == llm.batch(PROMPTS)


async def test_concurrent_calls_do_not_disturb_each_other(llm: MaraLLM) -> None:
    expected = [llm.invoke(prompt) for prompt in PROMPTS[:4]]
    assert await asyncio.gather(*(llm.ainvoke(prompt) for prompt in PROMPTS[:4])) == expected


def test_interleaved_streams_do_not_disturb_each_other(llm: MaraLLM) -> None:
    expected = (llm.invoke("hi"), llm.invoke("the end"))
    left, right = llm.stream("hi"), llm.stream("the end")
    texts = [next(left) + next(left), next(right)]
    texts[0] += "".join(left)
    texts[1] += "".join(right)
    assert tuple(texts) == expected


def test_stream_delivers_text_while_it_is_decoded(llm: MaraLLM) -> None:
    chunks = list(llm.stream("hi"))
    assert len(chunks) > 8
    assert not torch.is_inference_mode_enabled()


def test_running_leaves_global_random_state_and_gradients_alone(llm: MaraLLM) -> None:
    before = torch.get_rng_state()
    llm.invoke("hi", order="sampled", strategy="random")
    assert torch.equal(torch.get_rng_state(), before)
    stream = llm.stream("hi")
    next(stream)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


@pytest.mark.slow
def test_closing_a_stream_early_leaves_nothing_behind(llm: MaraLLM) -> None:
    expected = llm.invoke("hi")
    wait_until(lambda: decoding_threads() == 0)  # an answer is there a little before its thread has ended
    before = alive()
    stream = llm.stream("hi")
    first = next(stream)
    assert alive() == before + 2
    stream.close()  # type: ignore[attr-defined]
    wait_until(lambda: alive() == before)
    assert expected.startswith(first)
    assert llm.invoke("hi") == expected


async def test_breaking_off_an_async_stream_leaves_the_llm_usable(llm: MaraLLM) -> None:
    expected = await llm.ainvoke("hi")
    async for text in llm.astream("hi"):
        assert expected.startswith(text)
        break
    assert await llm.ainvoke("hi") == expected


@pytest.mark.parametrize("prompt", PROMPTS[:5])
def test_without_agent_it_is_greedy_generate(llm: MaraLLM, model: PreTrainedModel, prompt: str) -> None:
    ids = llm.encode(prompt)
    output = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=16, pad_token_id=1)
    plain = llm.with_agent(None)
    assert token_ids(plain, prompt) == output[0, len(ids) :].tolist()
    assert plain.invoke(prompt) == llm.tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True)


@pytest.mark.parametrize("kwargs", [{"accept_threshold": 1.0}, {"accept_threshold": 0.0}], ids=["never", "always"])
def test_agent_that_never_or_always_accepts_is_plain_decoding(llm: MaraLLM, kwargs: dict[str, float]) -> None:
    plain = llm.with_agent(None)
    for prompt in PROMPTS[:3]:
        assert token_ids(llm, prompt, **kwargs) == token_ids(plain, prompt)


@pytest.mark.parametrize("bias", [100.0, -100.0], ids=["always", "never"])
def test_the_same_holds_for_agents_by_their_weights(llm: MaraLLM, bias: float) -> None:
    assert token_ids(llm, "hi", agent=tiny_agent(bias=bias)) == token_ids(llm, "hi", agent=None)


def test_agent_that_sometimes_accepts_steers(llm: MaraLLM) -> None:
    plain = llm.with_agent(None)
    assert all(llm.invoke(prompt) != plain.invoke(prompt) for prompt in PROMPTS[:3])


def test_with_agent_shares_the_model_and_leaves_the_original_alone(llm: MaraLLM) -> None:
    original, expected = llm.agent, llm.invoke("hi")
    other = llm.with_agent(tiny_agent(seed=5))
    assert other.model is llm.model
    assert other.tokenizer is llm.tokenizer
    assert other.max_new_tokens == llm.max_new_tokens
    assert llm.agent is original
    assert other.invoke("hi") != expected
    assert llm.invoke("hi") == expected


@pytest.mark.slow
def test_agent_comes_as_object_folder_checkpoint_or_none(
    llm: MaraLLM, agent: MaraAgent, agent_folder: Path, tmp_path: Path
) -> None:
    torch.save(agent.state_dict(), tmp_path / "actor.pth")
    plain = llm.with_agent(None)
    for source in (agent, agent_folder, str(agent_folder), tmp_path / "actor.pth"):
        assert plain.with_agent(source).invoke("hi") == llm.invoke("hi")
        assert plain.invoke("hi", agent=source) == llm.invoke("hi")
    assert llm.invoke("hi", agent=None) == plain.invoke("hi")
    with pytest.raises(CheckpointError, match=r"no folder \./nowhere"):
        llm.invoke("hi", agent="./nowhere")


def test_llm_from_a_folder_is_the_llm_from_objects(llm: MaraLLM, model_folder: Path, agent_folder: Path) -> None:
    loaded = MaraLLM.from_model_id(model_folder, agent=agent_folder, max_new_tokens=16, device="cpu")
    assert loaded.batch(PROMPTS) == llm.batch(PROMPTS)
    assert loaded.model_id == str(model_folder)


def test_stop_string_cuts_on_every_path_as_field_and_per_call(llm: MaraLLM) -> None:
    free = llm.invoke("hi")
    stop = [free[9:11], free[4:6]]
    expected = free[: free.index(stop[1])]
    field = MaraLLM(model=llm.model, tokenizer=llm.tokenizer, agent=llm.agent, max_new_tokens=16, stop=stop)
    assert llm.invoke("hi", stop=stop) == field.invoke("hi") == expected
    assert "".join(llm.stream("hi", stop=stop)) == "".join(field.stream("hi")) == expected
    assert llm.bind(stop=stop).invoke("hi") == expected
    assert llm.trace(["hi"], stop=stop)[0][-1][0].request.cancelled


def test_stop_per_call_replaces_the_field(llm: MaraLLM) -> None:
    free = llm.invoke("hi")
    field = MaraLLM(model=llm.model, tokenizer=llm.tokenizer, agent=llm.agent, max_new_tokens=16, stop=[free[2:4]])
    assert field.invoke("hi", stop=[free[6:8]]) == free[: free.index(free[6:8])]
    assert field.invoke("hi", stop=[]) == free


def test_seed_alone_decides_what_is_drawn(llm: MaraLLM) -> None:
    drawn = [llm.invoke("hi", agent=None, order="sampled", seed=seed) for seed in (1, 1, 2, 3)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 3
    together = llm.batch(["a", "hi", "the"], agent=None, order="sampled", seed=1)
    assert together[1] == drawn[0]


def test_per_call_options_act_on_that_call_alone(llm: MaraLLM) -> None:
    before = llm.invoke("hi")
    assert len(token_ids(llm, "hi", max_new_tokens=3)) == 3
    assert before.startswith(llm.invoke("hi", max_new_tokens=3).rstrip("\N{REPLACEMENT CHARACTER}"))
    assert llm.invoke("hi", accept_threshold=0.95) != before
    assert llm.invoke("hi", top_k=1) == llm.with_agent(None).invoke("hi")
    assert llm.bind(max_new_tokens=3).invoke("hi") == llm.invoke("hi", max_new_tokens=3)
    assert llm.invoke("hi") == before


def test_min_new_tokens_keeps_the_answer_going(llm: MaraLLM) -> None:
    eos = token_ids(llm, "hi")[4]
    llm.tokenizer.eos_token_id, original = eos, llm.tokenizer.eos_token_id
    try:
        assert len(token_ids(llm, "hi")) <= 5
        assert eos not in token_ids(llm, "hi", min_new_tokens=10)[:10]
    finally:
        llm.tokenizer.eos_token_id = original


def test_tokenizer_without_template_is_prompted_with_plain_text(
    llm: MaraLLM, tokenizer: PreTrainedTokenizerBase
) -> None:
    plain = MaraLLM(model=llm.model, tokenizer=tokenizer, use_chat_template=False, max_new_tokens=4)
    assert tokenizer.decode(plain.encode("hi")) == "<s>hi"
    assert tokenizer.decode(llm.encode("hi")) == "<s><|user|>hi<|model|>"


def test_system_prompt_is_put_before_the_prompt(llm: MaraLLM) -> None:
    polite = MaraLLM(model=llm.model, tokenizer=llm.tokenizer, system_prompt="be nice", max_new_tokens=4)
    assert llm.tokenizer.decode(polite.encode("hi")) == "<s><|system|>be nice<|user|>hi<|model|>"
    assert polite.invoke("hi") != llm.invoke("hi", agent=None, max_new_tokens=4)
