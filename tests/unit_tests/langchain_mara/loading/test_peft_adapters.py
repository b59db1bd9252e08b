"""Adapters: merged they compute what PEFT computes, decode like any model, and are refused with a cause."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import cache_free, tiny_model
from huggingface_hub import constants
from peft import IA3Config, LoraConfig, LoraModel, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from langchain_mara.agents.agent import MaraAgent
from langchain_mara.exceptions import LoadingError
from langchain_mara.llms import MaraLLM
from langchain_mara.loading import peft_adapters as adapters
from langchain_mara.loading.models import load_model
from langchain_mara.loading.peft_adapters import Adapter, merge_adapter
from langchain_mara.policy.model import PolicyModel

KINDS: dict[str, Callable[[], Any]] = {
    "lora": lambda: LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"),
    "lora of some": lambda: LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False),
    "dora": lambda: LoraConfig(r=2, use_dora=True, init_lora_weights=False, task_type="CAUSAL_LM"),
    "ia3": lambda: IA3Config(init_ia3_weights=False, task_type="CAUSAL_LM"),
    "lora and head": lambda: LoraConfig(r=2, init_lora_weights=False, modules_to_save=["lm_head"]),
}
IDS = torch.tensor([[0, 11, 23, 5, 42]])


def adapted(model_folder: Path, config: Any) -> PeftModel:
    """A random adapter on the saved model."""
    torch.manual_seed(5)
    joined = get_peft_model(AutoModelForCausalLM.from_pretrained(model_folder), config)
    for name, parameter in joined.named_parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, 1.0 if "ia3" in name else 0.0, 0.2)
    return joined.eval()


@pytest.fixture(scope="module")
def lora(model_folder: Path) -> PeftModel:
    return adapted(model_folder, KINDS["lora"]())


@pytest.fixture
def folder(lora: PeftModel, tmp_path: Path) -> Path:
    """The saved adapter, free to be damaged."""
    lora.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def configure(folder: Path, **changes: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize("kind", KINDS)
def test_merged_it_computes_what_peft_computes(
    model_folder: Path, model: PreTrainedModel, tmp_path: Path, kind: str
) -> None:
    joined = adapted(model_folder, KINDS[kind]())
    joined.save_pretrained(tmp_path)
    loaded, _ = load_model(tmp_path)
    expected = joined(IDS).logits
    assert type(loaded) is type(model)
    assert {name for name, _ in loaded.named_parameters()} == {name for name, _ in model.named_parameters()}
    torch.testing.assert_close(loaded(IDS).logits, expected, rtol=0, atol=1e-9)
    assert (expected - model(IDS).logits).abs().max() > 0.1


TIED: dict[str, Callable[[], Any]] = {
    "head": lambda: LoraConfig(r=2, init_lora_weights=False, target_modules=["lm_head"]),
    "embedding": lambda: LoraConfig(r=2, init_lora_weights=False, target_modules=["embed_tokens"]),
    "both": lambda: LoraConfig(r=2, init_lora_weights=False, target_modules=["embed_tokens", "lm_head"]),
    "kept tied": lambda: LoraConfig(
        r=2, init_lora_weights=False, target_modules=["embed_tokens", "q_proj"], ensure_weight_tying=True
    ),
    "saved head": lambda: LoraConfig(r=2, init_lora_weights=False, modules_to_save=["lm_head"]),
    "saved embedding": lambda: LoraConfig(r=2, init_lora_weights=False, modules_to_save=["embed_tokens"]),
    "single tokens": lambda: LoraConfig(r=2, init_lora_weights=False, trainable_token_indices=[5, 23]),
    "neither": lambda: LoraConfig(r=2, init_lora_weights=False, target_modules=["q_proj"]),
}


@pytest.fixture(scope="module")
def tied_folder(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose head shares the embedding's weight."""
    folder = tmp_path_factory.mktemp("tied")
    tiny_model("llama-3.2").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`", "ignore:Model with `tie_word_embeddings")
@pytest.mark.parametrize("kind", TIED)
def test_a_tied_embedding_or_head_keeps_what_the_adapter_does_not_change(
    tied_folder: Path, tmp_path: Path, kind: str
) -> None:
    joined = adapted(tied_folder, TIED[kind]())
    joined.save_pretrained(tmp_path)
    loaded, _ = load_model(tmp_path, dtype=torch.float64)
    expected = joined(IDS).logits
    torch.testing.assert_close(loaded(IDS).logits, expected, rtol=0, atol=1e-9)
    tied = loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight
    assert tied is loaded.config.tie_word_embeddings is (kind == "neither")
    loaded.save_pretrained(tmp_path / "merged")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(again(IDS).logits, expected, rtol=0, atol=1e-9)


def test_a_merge_that_computes_something_else_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def destroyed(self: PeftModel, **_: Any) -> PreTrainedModel:
        merged = merge(self)
        merged.get_input_embeddings().weight.data.mul_(-1)
        return merged

    merge = LoraModel.merge_and_unload
    monkeypatch.setattr(LoraModel, "merge_and_unload", destroyed)
    with pytest.raises(LoadingError, match=r"computes something else than before: logits differ by \d+%"):
        load_model(folder)


@pytest.mark.slow
def test_it_decodes_and_takes_an_agent_as_any_model(lora: PeftModel, folder: Path, agent: MaraAgent) -> None:
    llm = MaraLLM.from_model_id(folder, max_new_tokens=12)
    prompt = llm.encode("the answer is")
    answers = []
    for judge in (None, agent):
        decisions = llm.with_agent(judge).trace(["the answer is"])[0]
        answers.append([decision.token_id for decision, _ in decisions])
        assert answers[-1] == cache_free(lora, judge, prompt).token_ids
    assert answers[0] != answers[1]


def test_answers_and_cache_entries_are_not_the_bases(folder: Path, model_folder: Path) -> None:
    base, llm = (MaraLLM.from_model_id(source, max_new_tokens=12) for source in (model_folder, folder))
    assert llm.invoke("the answer is") != base.invoke("the answer is")
    assert llm._identity()["model"] != base._identity()["model"]


def test_it_is_called_by_its_own_name(folder: Path) -> None:
    assert MaraLLM.from_model_id(folder).model_id == str(folder)
    assert PolicyModel(load_model(folder)[0]).name == str(folder)


def test_the_tokenizer_is_the_adapters_or_else_the_bases(
    folder: Path, make_tokenizer: Callable[[], PreTrainedTokenizerBase], tokenizer: PreTrainedTokenizerBase
) -> None:
    assert load_model(folder)[1].chat_template == tokenizer.chat_template
    adapters_tokenizer = make_tokenizer()
    adapters_tokenizer.chat_template = "{{ messages[0]['content'] }}!"
    adapters_tokenizer.save_pretrained(folder)
    assert load_model(folder)[1].chat_template == adapters_tokenizer.chat_template


def test_a_vocabulary_that_grew_in_training_fits(
    model_folder: Path, make_tokenizer: Callable[[], PreTrainedTokenizerBase], tmp_path: Path
) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<tool>", "</tool>"])
    base = AutoModelForCausalLM.from_pretrained(model_folder)
    base.resize_token_embeddings(len(tokenizer))
    whole = ["embed_tokens", "lm_head"]
    joined = get_peft_model(base, LoraConfig(init_lora_weights=False, modules_to_save=whole, task_type="CAUSAL_LM"))
    joined.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, _ = load_model(tmp_path)
    ids = torch.tensor([[3, len(tokenizer) - 1, 7]])
    torch.testing.assert_close(loaded(ids).logits, joined.eval()(ids).logits, rtol=0, atol=1e-9)


def test_half_precision_is_widened_before_it_is_merged(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    base = tmp_path / "base"
    tiny_model("llama-3", torch.float16).save_pretrained(base)
    tokenizer.save_pretrained(base)
    joined = adapted(base, KINDS["lora"]()).float()
    joined.save_pretrained(tmp_path / "adapter")
    loaded, _ = load_model(tmp_path / "adapter", device="cpu")
    assert loaded.dtype is torch.float32
    torch.testing.assert_close(loaded(IDS).logits, joined(IDS).logits, rtol=0, atol=1e-4)


def test_a_folder_with_base_and_adapter_gives_both(
    folder: Path, model_folder: Path, tmp_path: Path, lora: PeftModel
) -> None:
    both = shutil.copytree(model_folder, tmp_path / "both")
    shutil.copytree(folder, both, dirs_exist_ok=True)
    configure(both, base_model_name_or_path="org/out-of-reach")
    llm = MaraLLM.from_model_id(both)
    torch.testing.assert_close(llm.model(IDS).logits, lora(IDS).logits, rtol=0, atol=1e-9)


def test_quantized_weights_keep_the_adapter_beside_them(lora: PeftModel, folder: Path, model_folder: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(model_folder)
    base.hf_quantizer = object()
    joined = merge_adapter(base, Adapter(str(folder), folder, str(model_folder), None))
    assert isinstance(joined, PreTrainedModel)
    assert any("lora_A" in name for name, _ in joined.named_parameters())
    torch.testing.assert_close(joined(IDS).logits, lora(IDS).logits, rtol=0, atol=1e-9)
    PolicyModel(joined)


def test_an_adapter_lies_on_the_hub(
    lora: PeftModel, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "hub" / "models--org--adapter"
    revision = "0" * 40
    shutil.copytree(folder, repository / "snapshots" / revision)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    loaded, _ = load_model("org/adapter", local_files_only=True)
    torch.testing.assert_close(loaded(IDS).logits, lora(IDS).logits, rtol=0, atol=1e-9)
    assert loaded.name_or_path == "org/adapter"


def test_peft_is_asked_for_where_it_is_missing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "is_peft_available", lambda: False)
    with pytest.raises(LoadingError, match=r"is a PEFT adapter.* pip install 'langchain-mara\[dpo\]'"):
        load_model(folder)


@pytest.mark.parametrize(("base", "cause"), [("./gone", r"no folder \./gone"), ("org/gone", "the model org/gone")])
def test_a_base_that_is_gone_is_named_with_the_repair(folder: Path, base: str, cause: str) -> None:
    configure(folder, base_model_name_or_path=base)
    with pytest.raises(LoadingError, match=f"base model of the adapter {folder} cannot be loaded.*{cause}") as caught:
        load_model(folder)
    assert f"change base_model_name_or_path in {folder}/adapter_config.json" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task_type": "SEQ_CLS"}, "is for SEQ_CLS. Give one of task type CAUSAL_LM"),
        ({"base_model_name_or_path": None}, "names no base model. Set base_model_name_or_path"),
        ({"peft_type": "MAGIC"}, "Cannot load the model .*MAGIC"),
        ({"r": 3}, "Cannot load the model .*size mismatch"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    configure(folder, **changes)
    with pytest.raises(LoadingError, match=message):
        load_model(folder)


def test_pickled_weights_are_not_read(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    torch.save(load_file(file), folder / "adapter_model.bin")
    file.unlink()
    with pytest.raises(LoadingError, match="no adapter_model.safetensors, and pickled weights are not read"):
        load_model(folder)


def test_missing_weights_are_refused(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    weights = load_file(file)
    del weights[next(name for name in weights if "layers.1.mlp.up_proj.lora_B" in name)]
    save_file(weights, file)
    with pytest.raises(LoadingError, match="missing adapter keys.*up_proj"):
        load_model(folder)


def test_a_truncated_file_is_refused(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(LoadingError, match=f"Cannot load the model {folder}: "):
        load_model(folder)


def test_prompt_learning_is_refused(model_folder: Path, tmp_path: Path) -> None:
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(AutoModelForCausalLM.from_pretrained(model_folder), config).save_pretrained(tmp_path)
    with pytest.raises(LoadingError, match="type PROMPT_TUNING, which prepends states and changes no weights"):
        load_model(tmp_path)


def test_an_adapter_of_an_adapter_is_refused(folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "other")
    configure(other, base_model_name_or_path=str(folder))
    with pytest.raises(
        LoadingError, match=f"The base {folder} of the adapter {other} is an adapter. Merge it and save"
    ):
        load_model(other)
