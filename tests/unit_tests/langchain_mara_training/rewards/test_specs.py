"""Rewards by name: pairs, functions of the current folder, reward models; what cannot be had is one sentence."""

import json
import re
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from langchain_mara_training import BeaverReward, PreferenceReward, UltraRMReward, ZiyaReward
from langchain_mara_training.rewards.reward_model import RewardModel
from langchain_mara_training.rewards.specs import current_folder_first, reward_function, split_prefix
from safetensors.torch import save_file
from transformers import AutoTokenizer, LlamaConfig, LlamaModel

from langchain_mara.exceptions import CheckpointError, DataError, LoadingError, RewardError
from langchain_mara.loading.models import DEMO_MODEL_FOLDER

MODULE = """
from helper_of_rewards_{0} import SIGN

def score(completions, **_):
    import late_helper_of_rewards_{0}
    return [SIGN * len(text) for text in completions]

number = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A module of the current folder, of a name that no other test imports."""
    suffix = re.sub(r"\W", "_", request.node.name)
    (tmp_path / f"rewards_{suffix}.py").write_text(MODULE.format(suffix))
    (tmp_path / f"helper_of_rewards_{suffix}.py").write_text("SIGN = -1\n")
    (tmp_path / f"late_helper_of_rewards_{suffix}.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    return f"rewards_{suffix}"


def test_function_of_the_current_folder(module: str) -> None:
    function: Any = reward_function(f"{module}:score")
    with pytest.raises(ModuleNotFoundError, match="late_helper"):
        function(prompts=[""], completions=["a"])
    with current_folder_first():
        assert function(prompts=["", ""], completions=["a", "bcd"]) == [-1, -3]


@pytest.mark.parametrize("is_on_path", [False, True])
@pytest.mark.parametrize("name", ["score", "nothing"])
def test_the_path_is_as_before(module: str, name: str, is_on_path: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if is_on_path:
        monkeypatch.setattr(sys, "path", [*sys.path, str(Path.cwd())])
    path, entries = sys.path, list(sys.path)
    with nullcontext() if name == "score" else pytest.raises(RewardError):
        reward_function(f"{module}:{name}")
    assert sys.path is path
    assert path == entries


@pytest.mark.usefixtures("module")
def test_the_current_folder_comes_first() -> None:
    # The standard library has a module named `this` too.
    Path("this.py").write_text("def score(completions): return [7.0]\n")
    entries = list(sys.path)
    with current_folder_first():
        assert sys.path == [str(Path.cwd()), *entries]
    assert "this" not in sys.modules
    function: Any = reward_function("this:score")
    try:
        assert function(["?"]) == [7.0]
    finally:
        del sys.modules["this"]


def test_paths_that_a_module_adds_are_left_alone(module: str) -> None:
    Path(f"{module}.py").write_text("import sys\nsys.path.append('added')\ndef score(completions): return []\n")
    entries = list(sys.path)
    reward_function(f"{module}:score")
    assert sys.path == [*entries, "added"]


def test_installed_function() -> None:
    assert reward_function("math:fsum") is __import__("math").fsum


def test_pairs_are_learnt_from(tmp_path: Path, demo_pairs: list[dict[str, Any]]) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(pair) + "\n" for pair in demo_pairs[:20]))
    function: Any = reward_function(f"pairs:{file}")
    texts = [demo_pairs[0]["chosen"], demo_pairs[0]["rejected"]]
    expected = PreferenceReward().fit(demo_pairs[:20])(["", ""], texts)
    assert function(["", ""], texts) == pytest.approx(expected)
    assert expected[0] > expected[1]


@pytest.mark.parametrize(
    ("prefix", "kind", "head"),
    [
        ("beaver:", BeaverReward, "score_head"),
        ("ultrarm:", UltraRMReward, "regression_head"),
        ("ziya:", ZiyaReward, "value_head"),
    ],
)
def test_adapters_of_reward_models(tmp_path: Path, prefix: str, kind: type[RewardModel], head: str) -> None:
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL_FOLDER)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaModel(LlamaConfig(vocab_size=len(tokenizer), pad_token_id=0, **sizes))
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    model.config.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    save_file({**tensors, f"{head}.weight": torch.randn(1, 16)}, tmp_path / "model.safetensors", {"format": "pt"})
    function: Any = reward_function(f"{prefix}{tmp_path}", "cpu")
    assert type(function) is kind
    given = (["Hi.", "Hi."], ["Hello there!", "Go away."])
    assert function(*given) == kind(tmp_path, device="cpu")(*given)
    for other in {"beaver:", "ultrarm:", "ziya:"} - {prefix}:
        with pytest.raises(CheckpointError, match=f"has no .*{head}"):
            reward_function(f"{other}{tmp_path}", "cpu")


def test_what_stands_before_a_source() -> None:
    assert split_prefix("beaver:PKU-Alignment/beaver-7b-v1.0-cost") == ("beaver:", "PKU-Alignment/beaver-7b-v1.0-cost")
    assert split_prefix("pairs:pairs.jsonl") == ("pairs:", "pairs.jsonl")
    for plain in ("my:score", "org/model", "beaver/model"):
        assert split_prefix(plain) == ("", plain)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "nowhere_to_be_found:score",
            "ModuleNotFoundError: No module named 'nowhere_to_be_found'. Give module:",
        ),
        ("{}:nothing", "AttributeError: module '{}' has no attribute 'nothing'. Give module:function"),
        ("{}:number", "{}:number is not a function but a int. Give module:function."),
        (":score", "Cannot import the reward function :score: ValueError"),
    ],
)
def test_what_cannot_be_imported_is_named(module: str, name: str, message: str) -> None:
    with pytest.raises(RewardError, match=re.escape(message.format(module))):
        reward_function(name.format(module))


def test_a_module_that_fails_is_named(module: str) -> None:
    Path(f"{module}.py").write_text("1 / 0\n")
    with pytest.raises(RewardError, match=f"function {module}:score: ZeroDivisionError: division by zero. Give"):
        reward_function(f"{module}:score")


def test_other_kinds_that_are_not_there() -> None:
    with pytest.raises(LoadingError, match="nowhere"):
        reward_function("./nowhere")
    with pytest.raises(LoadingError, match="There is no folder ./nowhere"):
        reward_function("beaver:./nowhere")
    with pytest.raises(DataError, match="There is no file nowhere.jsonl"):
        reward_function("pairs:nowhere.jsonl")
