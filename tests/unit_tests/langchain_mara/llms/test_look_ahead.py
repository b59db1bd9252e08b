"""A look-ahead agent wherever an agent is accepted: from a folder, in streams, batches, chat and traces."""

import asyncio
from pathlib import Path

import pytest
from families import decoding_threads, tiny_look_ahead, wait_until

from langchain_mara import ChatMara, LookAheadAgent, MaraAgent, MaraLLM
from langchain_mara.exceptions import AgentMismatchError

PROMPTS = ["the hen", "an inn", "heat"]


@pytest.fixture
def ahead(llm: MaraLLM, tmp_path: Path) -> MaraLLM:
    """The tiny LLM with a look-ahead agent from a folder."""
    tiny_look_ahead(bias=-0.2).save_pretrained(tmp_path / "ahead")
    return llm.with_agent(tmp_path / "ahead")


def test_a_folder_gives_the_agent(ahead: MaraLLM, model_folder: Path, tmp_path: Path) -> None:
    assert isinstance(ahead.agent, LookAheadAgent)
    loaded = MaraLLM.from_model_id(model_folder, agent=str(tmp_path / "ahead"), device="cpu", max_new_tokens=16)
    assert loaded.invoke(PROMPTS[0]) == ahead.invoke(PROMPTS[0])


def test_streams_batches_and_calls_agree(ahead: MaraLLM) -> None:
    answers = ahead.batch(PROMPTS)
    assert answers == [ahead.invoke(prompt) for prompt in PROMPTS]
    assert answers == ["".join(ahead.stream(prompt)) for prompt in PROMPTS]
    assert answers == asyncio.run(ahead.abatch(PROMPTS))
    assert answers == ahead.batch(PROMPTS, draft=4, width=3)
    assert answers != ahead.with_agent(None).batch(PROMPTS)


def test_traces_and_statistics_count_what_it_was_asked(ahead: MaraLLM) -> None:
    traces = ahead.trace(PROMPTS)
    assert [trace.text for trace in traces] == ahead.batch(PROMPTS)
    for trace in traces:
        asked = [decision for decision, _ in trace if decision.accept_probabilities]
        assert trace.statistics.decided == len(asked) > 0
        assert trace.statistics.examined == sum(len(decision.accept_probabilities) for decision in asked)
        assert "%" in trace.to_html()
    assert sum(trace.statistics.examined for trace in traces) > sum(trace.statistics.decided for trace in traces)


def test_chat(ahead: MaraLLM) -> None:
    chat = ahead.as_chat()
    assert isinstance(chat, ChatMara)
    assert chat.agent is ahead.agent
    whole = chat.invoke(PROMPTS[0]).content
    assert whole == "".join(str(chunk.content) for chunk in chat.stream(PROMPTS[0]))


def test_a_closed_stream_frees_its_row(ahead: MaraLLM) -> None:
    stream = ahead.stream(PROMPTS[0], max_new_tokens=100)
    next(stream)
    stream.close()
    wait_until(lambda: decoding_threads() == 0)
    assert ahead.invoke(PROMPTS[1]) == ahead.batch(PROMPTS)[1]


def test_an_agent_that_is_trained_further_is_bound_again(ahead: MaraLLM) -> None:
    before = ahead.invoke(PROMPTS[0])
    agent = ahead.agent
    assert isinstance(agent, LookAheadAgent)
    agent.output_linear.bias.data.copy_(agent.output_linear.bias.data.new_tensor([0.0, 100.0]))
    assert ahead.invoke(PROMPTS[0]) == ahead.with_agent(None).invoke(PROMPTS[0]) != before


def test_an_agent_of_another_model_is_refused(llm: MaraLLM) -> None:
    with pytest.raises(AgentMismatchError, match="size 16.*gives 32"):
        llm.with_agent(tiny_look_ahead(16))
    other = LookAheadAgent(32, policy_model="org/other", policy_sketch=[0.5] * 120)
    with pytest.raises(AgentMismatchError, match="trained on org/other"):
        llm.with_agent(other)


def test_the_cache_tells_agents_apart(llm: MaraLLM, ahead: MaraLLM) -> None:
    agents = [ahead.agent, tiny_look_ahead(seed=2), llm.agent, None]
    keys = {str(llm.with_agent(agent)._identity()) for agent in agents}
    assert len(keys) == 4
    assert isinstance(llm.agent, MaraAgent)
