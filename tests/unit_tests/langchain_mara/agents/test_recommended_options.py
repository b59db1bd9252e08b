"""Options that an agent recommends count unless the caller says otherwise; an agent knows the model it is for."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from langchain_mara import MaraAgent, MaraLLM
from langchain_mara.agents.embedding_sketch import embedding_sketch
from langchain_mara.exceptions import AgentMismatchError, CheckpointError, OptionsError
from langchain_mara.loading.models import DEMO_MODEL_FOLDER

Recommending = Callable[..., MaraAgent]


@pytest.fixture(scope="module")
def plain() -> MaraLLM:
    return MaraLLM.demo(agent=None, device="cpu")


@pytest.fixture(scope="module")
def recommending(plain: MaraLLM) -> Recommending:
    def agent(**options: float | str) -> MaraAgent:
        return MaraAgent(plain.model.config.hidden_size, 8, recommended_options=options).eval()

    return agent


def options(llm: MaraLLM) -> tuple[float, float]:
    return llm.top_p, llm.accept_threshold


def test_the_callers_word_counts_more(plain: MaraLLM, recommending: Recommending) -> None:
    agent = recommending(top_p=0.5, accept_threshold=0.25)
    parts = {"model": plain.model, "tokenizer": plain.tokenizer}
    assert options(MaraLLM(**parts, agent=agent)) == (0.5, 0.25)
    assert options(MaraLLM(**parts, agent=agent, top_p=0.95)) == (0.95, 0.25)
    assert options(plain.with_agent(agent)) == (0.5, 0.25)
    assert options(plain.model_copy(update={"top_p": 0.8}).with_agent(agent)) == (0.8, 0.25)
    assert options(plain.with_agent(agent).as_chat()) == (0.5, 0.25)


def test_they_leave_with_their_agent(plain: MaraLLM, recommending: Recommending) -> None:
    agent, other = recommending(top_p=0.5), recommending(accept_threshold=0.25)
    assert options(plain.with_agent(agent).with_agent(other)) == (0.95, 0.25)
    assert options(plain.with_agent(agent).with_agent(None)) == (0.95, 0.5)
    assert options(plain.with_agent(agent).model_copy(update={"top_p": 0.6}).with_agent(other)) == (0.6, 0.25)


def test_a_strategy_can_be_recommended(plain: MaraLLM, recommending: Recommending) -> None:
    guided = plain.with_agent(recommending(strategy="guided", strength=0.7))
    assert (guided.strategy, guided.strength) == ("guided", 0.7)
    assert guided.with_agent(None).strategy == "first-accept"
    with pytest.raises(OptionsError, match="strategy='best'"):
        recommending(strategy="best")


def test_a_call_with_another_agent(plain: MaraLLM, recommending: Recommending) -> None:
    # Of a nucleus of almost nothing, only the most probable token is left, whatever the agent says.
    agent = recommending(top_p=1e-6)
    assert plain.invoke("How do I", agent=agent, max_new_tokens=8) == plain.invoke("How do I", max_new_tokens=8)
    assert plain.with_agent(agent)._identity() != plain.with_agent(recommending())._identity()


def test_another_model_for_a_call(plain: MaraLLM, recommending: Recommending) -> None:
    chat = plain.with_agent(recommending(top_p=0.5)).as_chat()
    other = {"model_id": str(DEMO_MODEL_FOLDER)}
    chat.model_id = "the first"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert options(chat._on_model(**other, changes={"accept_threshold": 0.3})) == (0.5, 0.3)
    assert options(chat._on_model(**other, changes={})) == (0.5, 0.5)
    assert options(chat._on_model(**other, changes={"agent": recommending(accept_threshold=0.25)})) == (0.95, 0.25)


def test_saved_and_loaded(recommending: Recommending, tmp_path: Path) -> None:
    recommending(top_p=0.5).save_pretrained(tmp_path)
    assert MaraAgent.from_pretrained(tmp_path).recommended_options == {"top_p": 0.5}
    config = json.loads((tmp_path / "config.json").read_text())
    for wrong in ({"seed": 1}, {"top_p": 7}):
        (tmp_path / "config.json").write_text(json.dumps({**config, "recommended_options": wrong}))
        with pytest.raises((OptionsError, CheckpointError), match="seed is unknown|top_p=7 should be"):
            MaraAgent.from_pretrained(tmp_path)


def test_a_sketch_refuses_another_model_of_the_same_size(plain: MaraLLM) -> None:
    size, embeddings = plain.model.config.hidden_size, plain.model.get_input_embeddings().weight
    known = MaraAgent(size, 8, "the demo", policy_sketch=embedding_sketch(embeddings)).eval()
    assert plain.with_agent(known).agent is known
    with pytest.warns(UserWarning, match="trained on the demo in another quantization than quantized"):
        known.check_fits(size, "quantized", embeddings + 0.05 * embeddings.std() * torch.randn(embeddings.shape))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        known.check_fits(size, "cast", embeddings.bfloat16())
    stranger = MaraAgent(size, 8, "another", policy_sketch=embedding_sketch(embeddings.roll(1, 0))).eval()
    with pytest.raises(AgentMismatchError, match=r"trained on another, and the embeddings of .* are not that model's"):
        plain.with_agent(stranger)


def test_shipped_agents_by_name(plain: MaraLLM) -> None:
    with pytest.raises(CheckpointError, match=r"No agent named builtin:nothing is shipped. There are: builtin:smollm2"):
        plain.with_agent("builtin:nothing")
    with pytest.raises(AgentMismatchError, match="reads states of size 576"):
        plain.with_agent("builtin:smollm2-135m-harmless")


def test_nobody_is_warned_of_options_that_go_with_their_agent(plain: MaraLLM) -> None:
    size = plain.model.config.hidden_size
    guided = MaraAgent(size, 8, recommended_options={"strategy": "guided", "strength": 0.94}).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert plain.with_agent(guided).strength == 0.94
        assert plain.with_agent(guided).with_agent(None).strategy == plain.strategy
