"""Loading by path: device and dtype rules, every form of an agent, and refusals with a cause."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import tiny_model
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from langchain_mara.agents.agent import MaraAgent
from langchain_mara.exceptions import CheckpointError, LoadingError
from langchain_mara.llms import MaraLLM
from langchain_mara.loading.models import load_agent, load_model
from langchain_mara.policy.loaded_model import LoadedModel

Damage = Callable[[Path], Any]


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    """A copy of the saved model, free to be damaged."""
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


@pytest.fixture(scope="module")
def folder_of(
    tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[torch.dtype], Path]:
    """Saves a model in a dtype, once."""
    root = tmp_path_factory.mktemp("dtypes")

    def save(dtype: torch.dtype) -> Path:
        folder = root / str(dtype)
        if not folder.exists():
            tiny_model("llama-3", dtype).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        return folder

    return save


def truncate(name: str) -> Damage:
    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return damage


def remove(*names: str) -> Damage:
    return lambda folder: [(folder / name).unlink() for name in names]


def configure(**changes: Any) -> Damage:
    def damage(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))

    return damage


def drop_weight(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def test_model_and_tokenizer_load_as_saved(
    model_folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    loaded, loaded_tokenizer = load_model(str(model_folder))
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight)
    assert loaded.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert loaded_tokenizer("hello the €").input_ids == tokenizer("hello the €").input_ids
    assert loaded_tokenizer.chat_template == tokenizer.chat_template


@pytest.mark.parametrize(
    ("saved", "asked", "expected"),
    [
        (torch.float16, None, torch.float32),
        (torch.bfloat16, None, torch.bfloat16),
        (torch.float64, None, torch.float64),
        (torch.float16, "auto", torch.float16),
        (torch.float16, torch.float16, torch.float16),
        (torch.float16, "bfloat16", torch.bfloat16),
        (torch.bfloat16, "float32", torch.float32),
        (torch.bfloat16, torch.float64, torch.float64),
    ],
)
def test_dtype_is_the_checkpoints_but_never_half_precision_on_the_cpu_unasked(
    folder_of: Callable[[torch.dtype], Path],
    saved: torch.dtype,
    asked: str | torch.dtype | None,
    expected: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    loaded, _ = load_model(folder_of(saved), device="cpu", dtype=asked)
    assert loaded.dtype is expected
    assert {weight.dtype for weight in loaded.parameters()} == {expected}


@pytest.mark.parametrize(("asked", "expected"), [(None, torch.float32), ("auto", torch.bfloat16)])
def test_bfloat16_is_avoided_on_a_cpu_that_is_slow_in_it(
    folder_of: Callable[[torch.dtype], Path],
    asked: str | None,
    expected: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert load_model(folder_of(torch.bfloat16), device="cpu", dtype=asked)[0].dtype is expected


@pytest.mark.parametrize("place", [{"device": "cpu"}, {"device": torch.device("cpu")}, {"device_map": "cpu"}])
def test_model_stands_where_it_is_asked_for(model_folder: Path, place: dict[str, Any]) -> None:
    assert load_model(model_folder, **place)[0].device.type == "cpu"


def test_attention_implementation_is_handed_on(model_folder: Path) -> None:
    loaded, _ = load_model(model_folder, attn_implementation="eager")
    assert loaded.config._attn_implementation == "eager"


@pytest.mark.parametrize("device", ["gpu", "", "cuda:99", "meta", "tpu:0", torch.device("cuda", 77)])
def test_unknown_device_is_refused_with_those_there_are(model_folder: Path, device: str | torch.device) -> None:
    with pytest.raises(LoadingError, match=f"no device '{device}' here; available: cpu"):
        load_model(model_folder, device=device)


def test_first_cpu_is_the_cpu(model_folder: Path) -> None:
    assert load_model(model_folder, device="cpu:0")[0].device.type == "cpu"


def test_device_excludes_device_map(model_folder: Path) -> None:
    with pytest.raises(LoadingError, match="Give device or device_map, not both"):
        load_model(model_folder, device="cpu", device_map="auto")


def test_unknown_device_map_is_refused(model_folder: Path) -> None:
    with pytest.raises(LoadingError, match="device_map.* found nonsense"):
        load_model(model_folder, device_map="nonsense")


@pytest.mark.parametrize("dtype", ["float99", "bf16", "Tensor", ""])
def test_unknown_dtype_is_refused_with_those_to_try(model_folder: Path, dtype: str) -> None:
    with pytest.raises(LoadingError, match=f"no dtype '{dtype}'; try bfloat16, float16 or float32"):
        load_model(model_folder, dtype=dtype)


def test_dtype_that_holds_no_fractions_is_refused(model_folder: Path) -> None:
    with pytest.raises(LoadingError, match="int8.* not a floating-point dtype"):
        load_model(model_folder, dtype="int8")


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/model", "a/b/c", "~/nowhere", r"C:\nowhere"])
def test_missing_folder_is_refused_without_asking_the_hub(name: str) -> None:
    with pytest.raises(LoadingError, match="no folder .*nowhere|no folder a/b/c") as caught:
        load_model(name)
    assert "Give a model's folder, or a hub id such as org/model." in str(caught.value)


def test_file_is_no_folder(model_folder: Path) -> None:
    with pytest.raises(LoadingError, match=r"no folder .*config\.json"):
        load_model(model_folder / "config.json")


def test_hub_id_out_of_reach_is_refused_in_one_line() -> None:
    with pytest.raises(LoadingError, match="Cannot load the model org/nothing: ") as caught:
        load_model("org/nothing")
    assert "\n" not in str(caught.value)


def test_empty_folder_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(LoadingError, match=f"Cannot load the model {tmp_path}: "):
        load_model(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "cause"),
    [
        pytest.param(remove("model.safetensors"), "no file named model.safetensors", id="no weights"),
        pytest.param(remove("config.json"), "model_type", id="no config"),
        pytest.param(truncate("config.json"), "not valid JSON", id="truncated config"),
        pytest.param(configure(model_type="zzz"), "zzz", id="unknown architecture"),
        pytest.param(configure(model_type="t5"), "AutoModelForCausalLM", id="no causal model"),
        pytest.param(remove("tokenizer.json"), "tokenizer", id="no tokenizer"),
        pytest.param(truncate("tokenizer.json"), "Cannot load", id="truncated tokenizer"),
    ],
)
def test_folder_that_is_no_model_is_refused_with_the_cause(folder: Path, damage: Damage, cause: str) -> None:
    damage(folder)
    with pytest.raises(LoadingError, match=f"Cannot load the model {folder}: ") as caught:
        load_model(folder)
    assert cause in str(caught.value)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(truncate("model.safetensors"), id="truncated weights: SafetensorError"),
        pytest.param(configure(hidden_size=64), id="weights of another size: RuntimeError"),
        pytest.param(configure(num_attention_heads=3), id="impossible config: StrictDataclassError"),
    ],
)
def test_damaged_model_is_refused_by_the_librarys_own_error(folder: Path, damage: Damage) -> None:
    damage(folder)
    with pytest.raises(LoadingError, match=f"Cannot load the model {folder}"):
        load_model(folder)


@pytest.mark.parametrize("damage", [drop_weight, configure(num_hidden_layers=5)])
def test_model_with_missing_weights_is_refused(folder: Path, damage: Damage) -> None:
    damage(folder)
    with pytest.raises(LoadingError, match="up_proj"):
        load_model(folder)


def test_no_agent_is_no_agent() -> None:
    assert load_agent(None) is None


def test_agent_object_is_taken_as_it_is(agent: MaraAgent) -> None:
    assert load_agent(agent) is agent


@pytest.mark.parametrize("kind", [str, Path])
def test_agent_loads_from_its_folder(agent_folder: Path, agent: MaraAgent, kind: type) -> None:
    loaded = load_agent(kind(agent_folder))
    assert loaded is not None
    assert loaded.fingerprint == agent.fingerprint


@pytest.mark.parametrize("name", ["actor.pth", "actor.pt", "has:colon"])
@pytest.mark.parametrize("kind", [str, Path])
def test_agent_loads_from_a_reference_checkpoint(tmp_path: Path, agent: MaraAgent, kind: type, name: str) -> None:
    if name == "has:colon":
        agent.save_pretrained(tmp_path / name)
    else:
        torch.save(agent.state_dict(), tmp_path / name)
    loaded = load_agent(kind(tmp_path / name))
    assert loaded is not None
    assert loaded.fingerprint == agent.fingerprint


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("./nowhere", r"no folder \./nowhere"),
        ("nowhere.pth", r"no file nowhere\.pth"),
        ("org/nothing", "No agent at org/nothing"),
        ("org/nothing:actor.pth", "No agent at org/nothing:actor.pth"),
    ],
)
def test_missing_agent_is_refused_by_its_name(source: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_agent(source)


@pytest.mark.parametrize(
    ("source", "loader"), [("org/agent", "from_pretrained"), ("org/agents:a.pth", "from_reference")]
)
def test_an_agent_on_the_hub_is_loaded_with_the_models_token(
    source: str, loader: str, agent: MaraAgent, llm: MaraLLM, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, dict[str, object]]] = []
    monkeypatch.setattr(MaraAgent, loader, lambda name, **hub: calls.append((name, hub)) or agent)
    hub = {"token": "secret", "local_files_only": True}
    loaded = MaraLLM.from_model_id(model_folder, agent=source, **hub)
    loaded.with_agent(source)
    assert calls == [(source, hub)] * 2
    llm.with_agent(source)
    assert calls[2] == (source, {})


def test_the_demo_says_nothing_of_the_network_for_other_models() -> None:
    assert not LoadedModel.of(MaraLLM.demo(device="cpu").model).hub_options.get("local_files_only")
