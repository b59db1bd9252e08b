"""Mixtures wherever an agent is named: from text, per call, in batches, streams, traces, chat and the cache's key."""

from pathlib import Path

import pytest
from families import tiny_agent, tiny_look_ahead

from langchain_mara import MaraLLM, MixtureAgent
from langchain_mara.agents.base import Agent
from langchain_mara.exceptions import AgentMismatchError, CheckpointError, OptionsError

PROMPTS = ["the hen", "an inn", "heat"]


@pytest.fixture(params=["after", "before"])
def folders(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    """Folders of two agents of one kind."""
    make = tiny_agent if request.param == "after" else tiny_look_ahead
    for name, seed in (("a", 1), ("b", 2)):
        make(seed=seed, bias=0.2).save_pretrained(tmp_path / name)
    return [str(tmp_path / name) for name in ("a", "b")]


def test_text_gives_a_mixture_per_instance_and_per_call(
    llm: MaraLLM, folders: list[str], model_folder: Path, tmp_path: Path
) -> None:
    text = "0.7*{}+0.3*{}".format(*folders)
    loaded = MaraLLM.from_model_id(model_folder, agent=text, device="cpu", max_new_tokens=16)
    assert isinstance(loaded.agent, MixtureAgent)
    assert loaded.agent.weights == (0.7, 0.3)
    answers = [llm.invoke(prompt, agent=text) for prompt in PROMPTS]
    assert answers == [loaded.invoke(prompt) for prompt in PROMPTS]
    assert answers == loaded.batch(PROMPTS) == ["".join(loaded.stream(prompt)) for prompt in PROMPTS]
    assert answers == loaded.batch(PROMPTS, draft=4, width=3)
    loaded.agent.save_pretrained(tmp_path / "mixed")
    assert llm.with_agent(tmp_path / "mixed").batch(PROMPTS) == answers
    assert loaded.as_chat().agent is loaded.agent


def test_each_rule_and_weight_is_an_agent_of_its_own(llm: MaraLLM, folders: list[str]) -> None:
    together = "+".join(folders)
    texts = [together, "all:" + together, "any:" + together, "2*" + together, *folders]
    keys = {str(llm.with_agent(text)._identity()) for text in texts}
    assert len(keys) == len(texts)
    answers = {tuple(llm.with_agent(text).batch(PROMPTS, strategy="max-prob")) for text in texts}
    assert len(answers) > 1


def test_a_member_that_never_accepts_decides_by_rule_and_weight(llm: MaraLLM, folders: list[str]) -> None:
    make = tiny_agent if llm.with_agent(folders[0]).agent.judges == "after" else tiny_look_ahead  # type: ignore[union-attr]
    first: Agent = llm.with_agent(folders[0]).agent  # type: ignore[assignment]
    never = make(seed=5, bias=-100.0)
    llm = MaraLLM(model=llm.model, tokenizer=llm.tokenizer, agent=first, max_new_tokens=16, fallback=1)
    alone, none = llm.with_agent(first).batch(PROMPTS), llm.with_agent(never).batch(PROMPTS)
    assert alone != none
    assert llm.with_agent(MixtureAgent([first, never], rule="all")).batch(PROMPTS) == none
    assert llm.with_agent(MixtureAgent([first, never], rule="any")).batch(PROMPTS) == alone
    mixed = MixtureAgent([first, never])
    assert llm.batch(PROMPTS, agent=mixed.weighted(1, 0)) == alone
    assert llm.batch(PROMPTS, agent=mixed.weighted(0, 1)) == none


def test_traces_show_what_the_mixture_says(llm: MaraLLM, folders: list[str]) -> None:
    mixed = llm.with_agent("all:" + "+".join(folders))
    each = [llm.with_agent(folder) for folder in folders]
    for prompt, trace in zip(PROMPTS, mixed.trace(PROMPTS), strict=True):
        first = trace[0][0]
        own = [member.trace([prompt])[0][0][0].accept_probabilities for member in each]
        assert first.accept_probabilities[0] == pytest.approx(min(p[0] for p in own), abs=1e-5)
        assert trace.statistics.decided > 0


def test_agents_of_two_kinds_and_missing_ones_are_refused(llm: MaraLLM, folders: list[str], tmp_path: Path) -> None:
    other = tiny_look_ahead if llm.with_agent(folders[0]).agent.judges == "after" else tiny_agent  # type: ignore[union-attr]
    other().save_pretrained(tmp_path / "other")
    with pytest.raises(AgentMismatchError, match="cannot be mixed"):
        llm.with_agent(f"{folders[0]}+{tmp_path / 'other'}")
    with pytest.raises(CheckpointError, match="no folder"):
        llm.with_agent(f"{folders[0]}+{tmp_path / 'missing'}")
    with pytest.raises(OptionsError, match="a name is missing"):
        llm.invoke("hi", agent=f"{folders[0]}+")


def test_a_folder_with_a_plus_in_its_name_is_a_folder(llm: MaraLLM, tmp_path: Path) -> None:
    tiny_agent(seed=1).save_pretrained(tmp_path / "a+b")
    assert not isinstance(llm.with_agent(str(tmp_path / "a+b")).agent, MixtureAgent)
