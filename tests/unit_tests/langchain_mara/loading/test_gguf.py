"""GGUF files: what they become, and what is wrong with one that cannot be loaded."""

import gc
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from families import decoding_threads, tiny_agent, tiny_look_ahead, wait_until
from gguf_files import skip_without_llama_cpp, write_gguf
from langchain_core.messages import HumanMessage
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from langchain_mara import ChatMara, MaraLLM
from langchain_mara.exceptions import AgentMismatchError, LoadingError, PromptError
from langchain_mara.policy.llama_cpp.library import library

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


def test_two_models_run_at_the_same_time(gguf_file: Write) -> None:
    llms = [MaraLLM.from_gguf(gguf_file(name), n_ctx=1024, max_new_tokens=16) for name in ("llama-3", "qwen-2")]
    expected = [llm.batch(PROMPTS) for llm in llms]
    with ThreadPoolExecutor(6) as pool:
        answers = [pool.submit(llm.batch, PROMPTS) for _ in range(3) for llm in llms]
    assert [answer.result() for answer in answers] == 3 * expected


def test_memory_is_freed_once_when_the_model_goes(gguf_file: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = MaraLLM.from_gguf(gguf_file("llama-3"), n_ctx=512, max_new_tokens=4)
    llm.invoke("hi")
    freed: list[tuple[str, object]] = []
    for name in ("llama_free", "llama_model_free"):
        free = getattr(library(), name)

        def counted(pointer: object, name: str = name, free: Callable[..., None] = free) -> None:
            freed.append((name, pointer))
            free(pointer)

        monkeypatch.setattr(library(), name, counted)
    context = llm.model.context.pointer  # type: ignore[operator, union-attr]
    wait_until(lambda: decoding_threads() == 0)
    del llm
    gc.collect()
    assert [name for name, _ in freed] == ["llama_free", "llama_model_free"]
    assert freed[0][1] is context


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
    cut, headless, foreign, missing = (tmp_path / f"{name}.gguf" for name in ("cut", "headless", "foreign", "missing"))
    cut.write_bytes(whole[: len(whole) // 2])
    headless.write_bytes(whole[:20])
    foreign.write_bytes(b"PK\3\4" + bytes(64))
    picture = gguf.GGUFWriter(tmp_path / "picture.gguf", "clip")
    picture.add_tensor("v.patch_embd.weight", np.zeros((4, 4), np.float32))
    picture.write_header_to_file()
    picture.write_kv_data_to_file()
    picture.write_tensors_to_file()
    picture.close()
    for file, sentence in [
        (cut, "cut.gguf: .*(corrupted|incomplete|failed)"),
        (headless, "cannot load .*headless.gguf: "),
        (foreign, "foreign.gguf is no GGUF file"),
        (missing, "There is no file .*missing.gguf"),
        (tmp_path, "is a folder"),
        (tmp_path / "picture.gguf", "cannot load .*picture.gguf: .*"),
        (tmp_path / "x-00001-of-00002.gguf", "The model has 2 files"),
    ]:
        with pytest.raises(LoadingError, match=sentence):
            MaraLLM.from_gguf(file)


@pytest.fixture
def sharded(
    reference: Callable[[str], PreTrainedModel], make_tokenizer: Callable[[], PreTrainedTokenizerFast], tmp_path: Path
) -> list[Path]:
    """The tiny Llama in several files."""
    skip_without_llama_cpp()
    write_gguf(reference("llama-3"), make_tokenizer(), tmp_path / "tiny.gguf", tensors_per_file=8)
    return sorted(tmp_path.glob("tiny-*.gguf"))


def test_a_model_in_several_files_is_one_model(gguf_file: Write, sharded: list[Path]) -> None:
    assert len(sharded) > 2
    whole = MaraLLM.from_gguf(gguf_file("llama-3"), n_ctx=512, max_new_tokens=8)
    for named in (sharded[0], sharded[-1]):
        parts = MaraLLM.from_gguf(named, n_ctx=512, agent=tiny_look_ahead(seed=2), max_new_tokens=8)
        assert parts.invoke("the end") == whole.with_agent(tiny_look_ahead(seed=2)).invoke("the end")
    sharded[1].unlink()
    with pytest.raises(LoadingError, match=f"There is no file .*-00002-of-.*The model has {len(sharded)} files"):
        MaraLLM.from_gguf(sharded[0])


def test_another_weight_in_any_file_is_another_model(sharded: list[Path]) -> None:
    before = MaraLLM.from_gguf(sharded[0], n_ctx=512)._identity()["model"]
    last = bytearray(sharded[-1].read_bytes())
    last[-4:] = b"\0\0\1\0"
    sharded[-1].write_bytes(last)
    assert MaraLLM.from_gguf(sharded[0], n_ctx=512)._identity()["model"] != before


class Hub:
    """Takes the place of the hub: gives the files of a folder, and remembers what was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[tuple[str, str]] = []
        self.options: dict[str, object] = {}

    def __call__(self, repository: str, name: str, **options: object) -> str:
        self.asked.append((repository, name))
        self.options = options
        if not (self.folder / name).is_file():
            raise FileNotFoundError(f"404: no {name}\nin the repository")
        return str(self.folder / name)


def test_a_file_on_the_hub(gguf_file: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    file = gguf_file("llama-3")
    hub = Hub(file.parent)
    monkeypatch.setattr("langchain_mara.loading.gguf.hf_hub_download", hub)
    options = {"revision": "abc", "token": "t", "local_files_only": True}
    llm = MaraLLM.from_gguf(f"somebody/tiny:{file.name}", max_new_tokens=8, **options)
    assert llm.invoke("hi") == MaraLLM.from_gguf(file, max_new_tokens=8).invoke("hi")
    assert MaraLLM.from_model_id(f"somebody/tiny:{file.name}", device="cpu").model_id == f"somebody/tiny:{file.name}"
    assert hub.asked == [("somebody/tiny", file.name)] * 2
    MaraLLM.from_gguf(f"somebody/tiny:{file.name}", **options)
    assert hub.options == options
    with pytest.raises(LoadingError, match=r"Cannot fetch no\.gguf of somebody/tiny: 404: no no\.gguf in the"):
        MaraLLM.from_gguf("somebody/tiny:no.gguf")


def test_all_files_of_a_model_are_fetched_from_the_hub(sharded: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(sharded[0].parent)
    monkeypatch.setattr("langchain_mara.loading.gguf.hf_hub_download", hub)
    assert MaraLLM.from_gguf(f"somebody/tiny:{sharded[0].name}", max_new_tokens=2).invoke("hi") is not None
    assert hub.asked == [("somebody/tiny", file.name) for file in sharded]


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
