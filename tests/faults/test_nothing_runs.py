"""Nothing that a folder, a recipe or a model names is imported, run or fetched; the error says what and why."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import mara, message_of
from families import tiny_agent, tiny_model
from langchain_mara_training.jobs import evaluate, rl
from langchain_mara_training.paper.settings import TableSettings
from langchain_mara_training.reinforcement.recipe import Recipe
from langchain_mara_training.rewards.checkpoint_loading import read_tensors
from langchain_mara_training.rewards.published import BeaverReward, SequenceClassificationReward
from peft import LoraConfig, get_peft_model
from run_folders import EVALUATE, write
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from langchain_mara.exceptions import CheckpointError, LoadingError, OptionsError
from langchain_mara.loading import declared_code
from langchain_mara.loading.models import load_model

TRAP = """
from pathlib import Path
Path({ran!r}).write_text("")

def score(completions, **_):
    return [0.0] * len(completions)
"""
PROMPTS = [{"prompt": "How do I boil an egg?"}]
REWARDS = "rewards: [{spec: trap:score, weight: 2}]\n"


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that exists as soon as a module `trap` of the current folder was imported."""
    ran = tmp_path / "ran"
    (tmp_path / "trap.py").write_text(TRAP.format(ran=str(ran)))
    monkeypatch.chdir(tmp_path)
    return ran


def downloaded_run(folder: Path, command: str, **options: Any) -> Path:
    """A run folder as someone else made it."""
    tiny_agent(192).save_pretrained(folder / "agent")
    first_result = {"label": "features/manifest.json", "rl": "fitting.pt"}[command]
    (folder / first_result).parent.mkdir(exist_ok=True)
    (folder / first_result).touch()
    (folder / "config.json").write_text(json.dumps({command: options}))
    return folder


@pytest.mark.parametrize("command", ["label", "rl"])
@pytest.mark.parametrize("given", [None, ["other:score"], ["trap:score", "trap:score"]])
def test_the_reward_of_a_run_folder_is_not_imported(trap: Path, command: str, given: list[str] | None) -> None:
    run = downloaded_run(Path("run"), command, labeler="rollout", reward=["trap:score"], reward_weight=[0.5])
    options = {**EVALUATE, "data": write(Path("p.jsonl"), PROMPTS), "agent": str(run), "reward": given}
    with pytest.raises(OptionsError, match="name it again: add --reward trap:score. To score .* --agent run/agent"):
        evaluate.evaluate(None, None, options)
    assert not trap.exists()


def test_the_reward_that_is_named_again_scores_with_the_recorded_weight(trap: Path) -> None:
    run = downloaded_run(Path("run"), "rl", reward=["trap:score"], reward_weight=[0.5])
    options = {**EVALUATE, "data": write(Path("p.jsonl"), PROMPTS), "agent": str(run), "reward": ["trap:score"]}
    found = evaluate.evaluate(None, None, {**options, "max_new_tokens": 1})
    assert trap.exists()
    assert found.comparison.config["rewards"] == {"score": 0.5}


@pytest.mark.parametrize("spec", ["beaver:evil/model", "evil/model", "pairs:evil/data", "/tmp/evil"])
def test_reward_models_and_data_that_a_run_folder_names_are_not_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str
) -> None:
    fetched: list[str] = []
    monkeypatch.setattr(evaluate, "reward_function", lambda spec, _: fetched.append(spec))
    run = downloaded_run(tmp_path / "run", "rl", reward=[spec])
    with pytest.raises(OptionsError, match="name it again"):
        evaluate.evaluate(None, None, {**EVALUATE, "data": "nowhere", "agent": str(run)})
    assert fetched == []


def test_the_command_says_which_reward_to_name(trap: Path) -> None:
    run = downloaded_run(Path("run"), "rl", reward=["trap:score; echo"])
    message = message_of(mara("evaluate", write(Path("p.jsonl"), PROMPTS), "--agent", run))
    assert "add --reward 'trap:score; echo'" in message
    assert not trap.exists()


def test_a_recipe_runs_no_code(trap: Path) -> None:
    Path("own.yaml").write_text(REWARDS)
    message = message_of(mara("rl", write(Path("p.jsonl"), PROMPTS), "--output", "run", "--recipe", "own.yaml"))
    assert message == (
        "The recipe names a function to import. A file runs no code, so name it yourself: add --reward trap:score."
    )
    assert not trap.exists()
    assert rl.resolve_options(Recipe.load("own.yaml"), {"reward": ["trap:score"]})["reward_weight"] == [2.0]


def test_settings_of_tables_run_no_code(trap: Path) -> None:
    settings = TableSettings.load().model_copy(update={"rewards": {"reward": "trap:score", "cost": "beaver:a/b"}})
    with pytest.raises(OptionsError, match="name it yourself: add --rewards reward=trap:score"):
        settings.with_sources()
    Path("own.yaml").write_text(settings.model_dump_json())
    assert "add --rewards reward=trap:score" in message_of(mara("table", "1", "--output", "t", "--recipe", "own.yaml"))
    assert not trap.exists()
    assert settings.with_sources(rewards=["reward=trap:score"]).rewards["reward"] == "trap:score"


def test_a_resumed_reinforcement_takes_no_reward_from_its_folder(trap: Path) -> None:
    run = downloaded_run(Path("run"), "rl", reward=["trap:score"])
    shutil.rmtree(run / "agent")
    message = message_of(mara("rl", write(Path("p.jsonl"), PROMPTS), "--output", run))
    assert "Give at least one --reward" in message
    assert not trap.exists()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model's folder, free to be changed, with code of its own that must not run."""
    folder = tmp_path / "model"
    tiny_model("llama-3").save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="a").save_pretrained(folder)
    return folder


@pytest.fixture
def own_code(model: Path) -> Path:
    """A file that exists as soon as the code in the model's folder ran."""
    ran = model.parent / "ran"
    for name in ("modeling_own.py", "custom_generate/generate.py"):
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_text(TRAP.format(ran=str(ran)))
    shutil.rmtree(model / "custom_generate")
    return ran


def configure(file: Path, **changes: Any) -> None:
    known = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**known, **changes}))


def refused(model: Path, reason: str) -> None:
    with pytest.raises(LoadingError, match=reason) as caught:
        load_model(model, device="cpu", local_files_only=True)
    assert "This library runs no code of models." in str(caught.value)
    assert "trust_remote_code" not in str(caught.value)


@pytest.mark.parametrize(
    "kernel",
    ["kernels-community/flash-attn2", "evil/kernel@main:attention", "paged|evil/kernel", "flash_attention_2", 3],
)
@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation"])
@pytest.mark.parametrize("place", [lambda value: value, lambda value: {"": "sdpa", "text_config": value}])
def test_attention_from_the_hub_is_refused(model: Path, key: str, kernel: Any, place: Any) -> None:
    configure(model / "config.json", **{key: place(kernel)})
    refused(model, rf"its config.json names code to compute with \({key}: .*; remove {key} from it")


def test_attention_from_the_hub_is_refused_in_nested_configurations(model: Path) -> None:
    configure(model / "config.json", text_config={"deep": [{"_attn_implementation": "evil/kernel"}]})
    refused(model, "evil/kernel")


def test_attention_of_transformers_itself_is_loaded(model: Path) -> None:
    configure(model / "config.json", _attn_implementation="eager")
    assert load_model(model, device="cpu")[0].config._attn_implementation == "eager"


def test_a_kernel_that_the_user_names_is_refused_too(model: Path) -> None:
    with pytest.raises(
        LoadingError, match="attn_implementation='evil/kernel' is code from the hub; give sdpa or eager"
    ):
        load_model(model, device="cpu", attn_implementation="evil/kernel")


@pytest.mark.parametrize("experts", ["sonicmoe", "deepgemm", "evil/kernel"])
def test_experts_from_the_hub_are_refused(model: Path, experts: str) -> None:
    configure(model / "config.json", _experts_implementation=experts)
    refused(model, "_experts_implementation")


def test_kernels_are_refused(model: Path) -> None:
    configure(model / "config.json", kernel_config={"RMSNorm": "evil/kernel:Norm"})
    refused(model, "names kernels to download")


def test_quantization_that_downloads_kernels_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(declared_code, "is_kernels_available", lambda: True)
    configure(model / "config.json", quantization_config={"quant_method": "mxfp4"})
    refused(model, "uninstall the package kernels")


@pytest.mark.parametrize("classes", [{"AutoConfig": "modeling_own.Own"}, {"AutoModelForCausalLM": "evil/x--own.Own"}])
def test_a_model_of_unknown_architecture_does_not_bring_its_code(
    model: Path, own_code: Path, classes: dict[str, str]
) -> None:
    configure(model / "config.json", model_type="own", auto_map=classes, trust_remote_code=True)
    refused(model, r"its config.json names its own code \(auto_map: .*\), and transformers has none for it")
    assert not own_code.exists()


@pytest.mark.parametrize("name", ["processor_config.json", "preprocessor_config.json"])
def test_processors_do_not_bring_their_code(model: Path, own_code: Path, name: str) -> None:
    configure(model / "config.json", model_type="own")
    configure(model / name, auto_map={"AutoProcessor": "modeling_own.Own"})
    refused(model, f"its {name} names its own code")
    assert not own_code.exists()


@pytest.mark.parametrize("classes", [["modeling_own.Own", None], {"AutoTokenizer": ["modeling_own.Own", None]}])
def test_a_tokenizer_of_unknown_class_does_not_bring_its_code(model: Path, own_code: Path, classes: Any) -> None:
    configure(model / "config.json", model_type="own")
    configure(model / "tokenizer_config.json", tokenizer_class="OwnTokenizer", auto_map=classes)
    refused(model, "its tokenizer_config.json names its own code")
    assert not own_code.exists()


def test_code_beside_a_known_architecture_is_ignored(model: Path, own_code: Path) -> None:
    configure(
        model / "config.json",
        auto_map={"AutoConfig": "modeling_own.Own", "AutoModelForCausalLM": "modeling_own.Own"},
        trust_remote_code=True,
    )
    configure(
        model / "tokenizer_config.json", auto_map={"AutoTokenizer": ["modeling_own.Own", None]}, trust_remote_code=True
    )
    loaded, tokenizer = load_model(model, device="cpu")
    assert type(loaded).__module__.startswith("transformers.")
    assert type(tokenizer).__module__.startswith("transformers.")
    assert not own_code.exists()


def test_a_folder_with_code_to_generate_is_refused(model: Path, own_code: Path) -> None:
    (model / "custom_generate").mkdir()
    shutil.copy(model / "modeling_own.py", model / "custom_generate" / "generate.py")
    refused(model, "it has its own custom_generate/generate.py")
    assert not own_code.exists()


def test_settings_that_name_code_to_generate_are_refused(model: Path) -> None:
    configure(model / "generation_config.json", custom_generate="evil/generate")
    refused(model, r"names code to generate with \(custom_generate: evil/generate\)")


class Bomb:
    def __init__(self, ran: Path) -> None:
        self.ran = ran

    def __reduce__(self) -> Any:
        return (Path.touch, (self.ran,))


def test_pickled_weights_run_no_code(model: Path, own_code: Path) -> None:
    (model / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Bomb(own_code)}, model / "pytorch_model.bin")
    with pytest.raises(LoadingError, match="Cannot load the model"):
        load_model(model, device="cpu")
    assert not own_code.exists()


def test_pickled_score_heads_run_no_code(tmp_path: Path) -> None:
    torch.save({"score_head.weight": Bomb(tmp_path / "ran")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="objects other than tensors, which are not read"):
        read_tensors(tmp_path, {"score_head.weight"})
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", ["[]", "{}", "[" * 100_000, '{"weight_map": {"a": "../elsewhere.safetensors"}}'])
def test_an_index_names_only_files_of_its_folder(tmp_path: Path, content: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"is not an index|nested too deeply|names files outside its folder"):
        read_tensors(tmp_path, {"a"})


@pytest.mark.parametrize("kind", [BeaverReward, SequenceClassificationReward])
def test_reward_models_pass_the_same_door(model: Path, own_code: Path, kind: Any) -> None:
    configure(model / "config.json", model_type="own", auto_map={"AutoModel": "modeling_own.Own"})
    with pytest.raises(LoadingError, match="names its own code"):
        kind(model, device="cpu")
    assert not own_code.exists()


@pytest.fixture
def adapter(model: Path) -> Path:
    """An adapter on the model, free to be changed."""
    settings = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(model), settings).save_pretrained(model.parent / "adapter")
    return model.parent / "adapter"


@pytest.mark.parametrize("embedded", [False, True])
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"auto_mapping": {"parent_library": "trap", "base_model_class": "score"}}, r"import \(auto_mapping: trap\)"),
        ({"megatron_config": {"a": 1}, "megatron_core": "trap"}, r"import \(megatron_core: trap\)"),
        ({"peft_type": "XLORA", "adapters": {"0": "evil/adapter"}}, "names further adapters to load"),
    ],
)
def test_an_adapter_imports_nothing(
    trap: Path, model: Path, adapter: Path, changes: dict[str, Any], reason: str, embedded: bool
) -> None:
    configure(adapter / "adapter_config.json", **changes)
    if embedded:
        shutil.copytree(model, adapter, dirs_exist_ok=True)
    refused(adapter, reason)
    assert not trap.exists()


def test_an_adapter_with_classes_of_transformers_is_loaded(adapter: Path) -> None:
    classes = {"parent_library": "transformers.models.llama.modeling_llama", "base_model_class": "LlamaForCausalLM"}
    configure(adapter / "adapter_config.json", auto_mapping=classes)
    load_model(adapter, device="cpu")


def test_the_base_of_an_adapter_passes_the_same_door(adapter: Path, model: Path, own_code: Path) -> None:
    configure(model / "config.json", model_type="own", auto_map={"AutoModelForCausalLM": "modeling_own.Own"})
    with pytest.raises(LoadingError, match="base model of the adapter .* names its own code"):
        load_model(adapter, device="cpu")
    assert not own_code.exists()


def test_the_base_of_an_adapter_is_no_adapter_whose_base_is_fetched(adapter: Path, tmp_path: Path) -> None:
    chained = Path(shutil.copytree(adapter, tmp_path / "chained"))
    configure(adapter / "adapter_config.json", base_model_name_or_path="evil/model")
    configure(chained / "adapter_config.json", base_model_name_or_path=str(adapter))
    with pytest.raises(LoadingError, match="is an adapter. Merge it and save the result."):
        load_model(chained, device="cpu")
