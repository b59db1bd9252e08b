"""A resumed job is the same job: whatever its results depend on, a change is refused and named."""

import functools
import os
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from langchain_mara_training import PreferenceReward, WeightedRewards
from small_jobs import DECODED, JOBS, PAIRS, SCORED, compare_systems, vowels
from torch import nn

from langchain_mara import MaraLLM
from langchain_mara.exceptions import RewardError, TrainingError

pytestmark = pytest.mark.slow

Pair = tuple[Callable[..., Any], Callable[..., Any]]


def in_module(source: str, **values: Any) -> Any:
    """The function `score` of a module with this source."""
    module = types.ModuleType("rewards_of_somebody")
    vars(module).update(values)
    exec(source, vars(module))
    return vars(module)["score"]


class Judge:
    """A callable object with a state."""

    name = "score"

    def __init__(self, state: Any) -> None:
        self.state = state

    def __call__(self, completions: list[str], **_: Any) -> list[float]:
        if isinstance(self.state, nn.Module):
            return [float(self.state(torch.full((2,), float(len(text)))).detach()) for text in completions]
        return [self.state * len(text) for text in completions]


def closure(factor: Any) -> Any:
    def score(completions: list[str], **_: Any) -> list[float]:
        return [len(text) * factor for text in completions]

    return score


def with_default(*, factor: float) -> Any:
    def score(completions: list[str], *, factor: float = factor, **_: Any) -> list[float]:
        return [len(text) * factor for text in completions]

    return score


def network(weight: float) -> Any:
    made = nn.Linear(2, 1)
    with torch.no_grad():
        made.weight.copy_(torch.tensor([[1.0, weight]]))
        made.bias.zero_()
    return made


def fitted(count: int) -> Any:
    reward = PreferenceReward().fit(PAIRS[:count])
    reward.name = "score"  # type: ignore[attr-defined]
    return reward


CODE = "def score(completions, **_):\n    return [len(text) {} for text in completions]"
NESTED = (
    "def score(completions, **_):\n    def inner(text):\n        return {}\n    return [inner(t) for t in completions]"
)
NAMED = "def score(completions, **_):\n    return [len(text) * factor for text in completions]"
CALLING = "def helper(text):\n    return {}\ndef score(completions, **_):\n    return [helper(t) for t in completions]"
METHOD = """
class Base:
    def value(self, text):
        return {}
class Score(Base):
    name = "score"
    def __call__(self, completions, **_):
        return [self.value(text) for text in completions]
score = Score()
"""

REWARDS: dict[str, Pair] = {
    "operator": (in_module(CODE.format("+ 1")), in_module(CODE.format("- 1"))),
    "constant": (in_module(CODE.format("+ 1")), in_module(CODE.format("+ 2"))),
    "code inside": (in_module(NESTED.format("len(text)")), in_module(NESTED.format("-len(text)"))),
    "global value": (in_module(NAMED, factor=1), in_module(NAMED, factor=2)),
    "global function": (in_module(CALLING.format("len(text)")), in_module(CALLING.format("2 * len(text)"))),
    "method of a base": (in_module(METHOD.format("len(text)")), in_module(METHOD.format("2 * len(text)"))),
    "closure": (closure(1.0), closure(2.0)),
    "default": (with_default(factor=1.0), with_default(factor=2.0)),
    "partial": (functools.partial(closure(1.0), a=1), functools.partial(closure(1.0), a=2)),
    "attribute": (Judge(1.0), Judge(2.0)),
    "bound method": (Judge(1.0).__call__, Judge(2.0).__call__),
    "weights": (Judge(network(1.0)), Judge(network(1.5))),
    "fitted": (fitted(2), fitted(3)),
}


@pytest.mark.parametrize("kind", REWARDS)
def test_a_reward_of_the_same_name_that_computes_something_else_is_refused(
    kind: str, llm: MaraLLM, tmp_path: Path
) -> None:
    first, second = REWARDS[kind]
    compare_systems(tmp_path, llm, first)
    compare_systems(tmp_path, llm, first)
    with pytest.raises(TrainingError, match=r"another comparison; different: .*code \(\"\w+\" there, \"\w+\" now\)"):
        compare_systems(tmp_path, llm, second)


@pytest.mark.parametrize("name", SCORED)
def test_every_job_refuses_another_reward_of_the_same_name(
    name: str, llm: MaraLLM, finished: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(finished[name], tmp_path / "copy")
    other = in_module("def vowels(completions, **_):\n    return [1.0] * len(completions)\nscore = vowels")
    with pytest.raises(TrainingError, match="different: .*there.*now"):
        JOBS[name](folder, llm, other)


@pytest.mark.parametrize("name", SCORED)
def test_every_job_refuses_other_weights_of_rewards(
    name: str, llm: MaraLLM, finished: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(finished[name], tmp_path / "copy")
    if name == "compare":
        with pytest.raises(TrainingError, match=r"rewards.vowels \(1.0 there, 2.0 now\)"):
            compare_systems(folder, llm, WeightedRewards(vowels, [2.0]))
        return
    with pytest.raises(TrainingError, match=r"different: .*\(.* there, .*2.0.* now\)"):
        JOBS[name](folder, llm, vowels, reward_weights=[2.0])


@pytest.mark.parametrize("name", DECODED)
@pytest.mark.parametrize(
    ("option", "value"),
    [("system_prompt", "Be brief."), ("order", "reversed"), ("strategy", "random"), ("fallback", 1), ("top_p", 0.5)],
)
def test_every_job_refuses_other_decoding(
    name: str, option: str, value: Any, llm: MaraLLM, finished: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(finished[name], tmp_path / "copy")
    with pytest.raises(TrainingError, match=rf"{option} \(.+ there, .+ now\)"):
        JOBS[name](folder, llm.model_copy(update={option: value}))


def other_template(llm: MaraLLM) -> MaraLLM:
    changed = MaraLLM.demo(max_new_tokens=6, batch_size=4)
    changed.tokenizer.chat_template = f"{llm.tokenizer.chat_template} "
    return changed


def other_tokenizer(_llm: MaraLLM) -> MaraLLM:
    changed = MaraLLM.demo(max_new_tokens=6, batch_size=4)
    changed.tokenizer.add_tokens(["eggs"])
    return changed


def one_other_weight(_llm: MaraLLM) -> MaraLLM:
    """One that no sample of a few values per weight would see."""
    changed = MaraLLM.demo(max_new_tokens=6, batch_size=4, packed=False)
    with torch.no_grad():
        changed.model.get_input_embeddings().weight[3, 5] += 1e-3
    return changed


@pytest.mark.parametrize("name", ["label_pairs", *DECODED])
@pytest.mark.parametrize(
    ("change", "named"),
    [(other_template, "tokenizer"), (other_tokenizer, "tokenizer"), (one_other_weight, "weights")],
)
def test_every_job_refuses_another_model(
    name: str, change: Any, named: str, llm: MaraLLM, finished: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(finished[name], tmp_path / "copy")
    with pytest.raises(TrainingError, match=rf"{named} \(.+ there, .+ now\)"):
        JOBS[name](folder, change(llm))


def test_the_major_version_of_transformers_counts(
    llm: MaraLLM, finished: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(finished["compare"], tmp_path / "copy")
    monkeypatch.setattr("langchain_mara_training.storage.identity.job_identity.version", lambda _: "6.0.1")
    with pytest.raises(TrainingError, match=r'transformers \("5" there, "6" now\)'):
        compare_systems(folder, llm)


@pytest.mark.parametrize(("name", "option"), [("label_pairs", "shard_tokens"), ("label_rollouts", "prompts_per_shard")])
def test_shards_of_another_size_are_refused(
    name: str, option: str, llm: MaraLLM, finished: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(finished[name], tmp_path / "copy")
    with pytest.raises(TrainingError, match=rf"{option} \(\d+ there, 9 now\)"):
        JOBS[name](folder, llm, **{option: 9})


@pytest.mark.parametrize(
    "change", [{"random_state": 1}, {"labeler": "rollout", "labeler_options": {}}, {"labeler_options": {"decay": 0.5}}]
)
def test_an_alignment_refuses_other_options(
    change: dict[str, Any], llm: MaraLLM, finished: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(finished["align"], tmp_path / "copy")
    with pytest.raises(TrainingError, match=f"{next(iter(change))}.* there, .* now"):
        JOBS["align"](folder, llm, **change)


@pytest.mark.parametrize("name", JOBS)
def test_the_same_job_resumes(name: str, llm: MaraLLM, finished: dict[str, Path], tmp_path: Path) -> None:
    JOBS[name](shutil.copytree(finished[name], tmp_path / "copy"), llm)


class Connected(Judge):
    """Holds what has no state to read."""

    def __init__(self) -> None:
        super().__init__(1.0)
        self.connection = open(os.devnull)  # noqa: PTH123, SIM115


@pytest.mark.parametrize("name", SCORED)
@pytest.mark.parametrize("reward", [Connected(), functools.partial(max, [0.0] * 99)], ids=["connection", "C"])
def test_a_reward_that_cannot_be_told_from_others_needs_a_version(
    name: str, reward: Any, llm: MaraLLM, tmp_path: Path
) -> None:
    if name == "reinforce" and not isinstance(reward, Connected):
        reward = "".join  # a function of C itself
    elif not isinstance(reward, Connected):
        reward = {}.get
    with pytest.raises(RewardError, match=r"cannot be told from others: .*version = '1'"):
        JOBS[name](tmp_path / "job", llm, reward)


def test_a_version_tells_rewards_apart(llm: MaraLLM, tmp_path: Path) -> None:
    reward = Connected()
    reward.version = "1"  # type: ignore[attr-defined]
    compare_systems(tmp_path, llm, reward)
    compare_systems(tmp_path, llm, reward)
    reward.version = "2"  # type: ignore[attr-defined]
    with pytest.raises(TrainingError, match=r'code \("version 1" there, "version 2" now\)'):
        compare_systems(tmp_path, llm, reward)


def test_in_memory_every_reward_is_welcome(llm: MaraLLM) -> None:
    assert compare_systems(None, llm, Connected()).rewards("plain").shape == (3,)  # type: ignore[arg-type]


STABLE = """
import sys
sys.path[:0] = {paths!r}
from test_identity import REWARDS
from langchain_mara_training.storage.identity.content_digest import digest
print([digest(reward) for pair in REWARDS.values() for reward in pair])
"""


@pytest.mark.slow
def test_digests_are_the_same_in_every_process(tmp_path: Path) -> None:
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    printed = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        arguments = [sys.executable, "-c", STABLE.format(paths=paths)]
        printed.add(subprocess.run(arguments, env=environment, check=True, capture_output=True, cwd=tmp_path).stdout)
    assert len(printed) == 1
    digests = eval(printed.pop())
    assert len(set(digests)) == len(digests) - 1  # "operator" and "constant" begin with the same function
