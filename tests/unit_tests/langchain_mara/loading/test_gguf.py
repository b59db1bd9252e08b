"""GGUF files: what they become, and what is wrong with one that cannot be loaded."""

import gc
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families import tiny_agent, tiny_look_ahead
from langchain_core.messages import HumanMessage
from transformers import PreTrainedModel

from langchain_mara import ChatMara, MaraLLM
from langchain_mara.exceptions import AgentMismatchError, LoadingError, PromptError

Write = Callable[[str], Path]
PROMPTS = ["hi", "the end", "is it so?", "a"]


def test_answers_are_those_of_transformers(gguf_llm: MaraLLM, llm: MaraLLM) -> None:
    assert gguf_llm.batch(PROMPTS) == llm.batch(PROMPTS)
    assert list(gguf_llm.stream("hi")) == list(llm.stream("hi"))
    assert gguf_llm.with_agent(None).invoke("hi", stop=["e"]) == llm.with_agent(None).invoke("hi", stop=["e"])
    drawn = {"order": "sampled", "temperature": 1.5, "seed": 3}
    ours, theirs = (each.generate(["hi"], n=3, **drawn).generations[0] for each in (gguf_llm, llm))
    assert [answer.text for answer in ours] == [answer.text for answer in theirs]


def test_chat_and_look_ahead_agents_are_those_of_transformers(gguf_llm: MaraLLM, llm: MaraLLM) -> None:
    agent = tiny_look_ahead(seed=2)
    ours, theirs = (each.with_agent(agent).as_chat().invoke([HumanMessage("the end")]) for each in (gguf_llm, llm))
    assert ours.content == theirs.content
    assert ours.response_metadata["finish_reason"] == theirs.response_metadata["finish_reason"]


def test_penalties_and_grammars_hold(gguf_llm: MaraLLM, llm: MaraLLM) -> None:
    options = {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "min_p": 0.05}
    assert gguf_llm.invoke("hi", **options) == llm.invoke("hi", **options)
    assert gguf_llm.invoke("hi", choice=["it is so", "it is not"]) in ("it is so", "it is not")


def test_the_context_is_the_smaller_of_two(gguf_file: Write) -> None:
    llm = MaraLLM.from_gguf(gguf_file("llama-3"), n_ctx=300)  # the model was trained for 128
    with pytest.raises(PromptError, match="holds 128"):
        llm.invoke("e" * 200)


def test_a_gguf_file_is_a_model_id(gguf_file: Write, llm: MaraLLM) -> None:
    file = gguf_file("llama-3")
    by_name = MaraLLM.from_model_id(file, max_new_tokens=16)
    assert by_name.invoke("hi") == llm.with_agent(None).invoke("hi")
    assert ChatMara.from_model_id(str(file), max_new_tokens=4).invoke("hi").content


def test_models_share_nothing_and_leave_nothing(gguf_file: Write) -> None:
    one, other = (MaraLLM.from_gguf(gguf_file(name), max_new_tokens=8) for name in ("llama-3", "qwen-2"))
    expected = one.invoke("hi"), other.invoke("hi")
    gone = weakref.ref(one.model)
    del one
    gc.collect()
    assert gone() is None
    assert MaraLLM.from_gguf(gguf_file("llama-3"), max_new_tokens=8).invoke("hi") == expected[0]
    assert other.invoke("hi") == expected[1]


def test_embeddings_are_those_of_the_model(gguf_llm: MaraLLM, reference: Callable[[str], PreTrainedModel]) -> None:
    model = reference("llama-3")
    for ours, theirs in (
        (gguf_llm.model.get_input_embeddings(), model.get_input_embeddings()),
        (gguf_llm.model.get_output_embeddings(), model.get_output_embeddings()),
    ):
        assert torch.equal(torch.cat(list(ours.weight.split(40))), theirs.weight.float())  # type: ignore[operator, union-attr]
        assert torch.equal(ours.weight[torch.tensor([3, 1])], theirs.weight[[3, 1]].float())  # type: ignore[union-attr, index]


def test_an_agent_of_another_model_needs_permission(gguf_file: Write) -> None:
    trained = MaraLLM.from_gguf(gguf_file("qwen-2"))
    from langchain_mara.agents.embedding_sketch import embedding_sketch  # noqa: PLC0415

    sketch = embedding_sketch(trained.model.get_input_embeddings().weight)
    agent = tiny_agent().with_config(policy_model="tiny-qwen", policy_sketch=sketch)
    assert MaraLLM.from_gguf(gguf_file("qwen-2"), agent=agent, max_new_tokens=2).invoke("hi") is not None
    with pytest.raises(AgentMismatchError, match="allow_other_model=True"):
        MaraLLM.from_gguf(gguf_file("llama-3"), agent=agent)
    allowed = MaraLLM.from_gguf(gguf_file("llama-3"), agent=agent, allow_other_model=True, max_new_tokens=2)
    assert allowed.invoke("hi") is not None


def test_what_cannot_be_loaded_is_said_in_a_sentence(gguf_file: Write, tmp_path: Path) -> None:
    whole = gguf_file("llama-3").read_bytes()
    cut, foreign, missing = (tmp_path / name for name in ("cut.gguf", "foreign.gguf", "missing.gguf"))
    cut.write_bytes(whole[: len(whole) // 2])
    foreign.write_bytes(b"PK\3\4" + bytes(64))
    for file, sentence in [
        (cut, "cut.gguf: .*(corrupted|incomplete|failed)"),
        (foreign, "foreign.gguf is no GGUF file"),
        (missing, "There is no file .*missing.gguf"),
        (tmp_path, "is a folder"),
        (tmp_path / "x-00001-of-00002.gguf", "The model has 2 files"),
    ]:
        with pytest.raises(LoadingError, match=sentence):
            MaraLLM.from_gguf(file)


def test_settings_change_no_fingerprint_but_weights_do(gguf_file: Write) -> None:
    same, again, other = (
        MaraLLM.from_gguf(gguf_file(name), n_ctx=cells)._identity()["model"]
        for name, cells in (("llama-3", 512), ("llama-3", 512), ("llama-3.2", 512))
    )
    assert same == again != other


def test_transformers_dequantizes_a_file_for_training(gguf_file: Write, llm: MaraLLM, tmp_path: Path) -> None:
    file = gguf_file("llama-3")
    loaded = MaraLLM.from_model_id(file.parent, gguf_file=file.name, dtype="float32", max_new_tokens=16)
    assert loaded.get_token_ids("the end") == llm.get_token_ids("the end")
    assert loaded.invoke("hi") == llm.with_agent(None).invoke("hi")
    unpacked = MaraLLM.from_model_id(file.parent, gguf_file=file.name, packed=False)
    unpacked.model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
