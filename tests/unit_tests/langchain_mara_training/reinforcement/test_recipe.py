"""Recipes: the shipped ones say what the paper does, each key is explained, and what is wrong is named."""

import inspect
import math
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from langchain_mara_training import EnvironmentOptions, MaraSAC, Recipe, UpdateOptions
from langchain_mara_training.reinforcement.recipe import PromptData, Reward, recipe_names
from langchain_mara_training.storage.settings import DecodingSettings
from pydantic import BaseModel

from langchain_mara.exceptions import OptionsError

# Hub id, and how much the reward counts for one of the cost.
MODELS = {
    "llama-3-8b": ("meta-llama/Meta-Llama-3-8B-Instruct", 1),
    "llama-3.1-8b": ("meta-llama/Llama-3.1-8B-Instruct", 1),
    "llama-3.2-1b": ("meta-llama/Llama-3.2-1B-Instruct", 1),
    "llama-3.2-3b": ("meta-llama/Llama-3.2-3B-Instruct", 1),
    "mistral-v0.1": ("mistralai/Mistral-7B-Instruct-v0.1", 2),
    "mistral-v0.2": ("mistralai/Mistral-7B-Instruct-v0.2", 2),
    "mistral-v0.3": ("mistralai/Mistral-7B-Instruct-v0.3", 2),
}
FOLDER = Path(inspect.getfile(Recipe)).parents[1] / "recipes"


def write(folder: Path, text: str) -> Path:
    file = folder / "own.yaml"
    file.write_text(text)
    return file


def test_the_paper_s_seven_models_are_there() -> None:
    assert recipe_names() == sorted(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_a_shipped_recipe_says_what_the_paper_does(name: str) -> None:
    recipe = Recipe.load(name)
    model, weight = MODELS[name]
    assert (recipe.model, recipe.agent) == (model, None)
    assert {reward.spec: reward.weight for reward in recipe.rewards} == {
        "beaver:PKU-Alignment/beaver-7b-v1.0-reward": weight,
        "beaver:PKU-Alignment/beaver-7b-v1.0-cost": -1,
    }
    assert recipe.data is not None
    assert (recipe.data.source, recipe.data.split, recipe.data.prompt_column) == (
        "PKU-Alignment/PKU-SafeRLHF", "train", "prompt",
    )  # fmt: skip
    assert (recipe.decoding.top_k, recipe.decoding.top_p, recipe.decoding.max_new_tokens) == (40, 0.95, 512)
    assert recipe.environment == EnvironmentOptions(penalty=0.1, discount=0.99, temperature=0.8)
    assert recipe.update.target_entropy == pytest.approx(0.6 * math.log(2), abs=1e-15)
    assert recipe.update == UpdateOptions(
        discount=0.99, target_rate=0.005, max_gradient_norm=0.5, initial_temperature=0.01,
        learning_rate_actor=3e-4, learning_rate_critic=3e-4, learning_rate_temperature=3e-4,
        target_entropy=recipe.update.target_entropy,
    )  # fmt: skip
    counts = (recipe.episodes, recipe.batch_size, recipe.updates, recipe.warm_up, recipe.buffer_size, recipe.width)
    assert counts == (21_000, 1024, 10, 64, 1_000_000, 1024)
    assert recipe.workers == 7


@pytest.mark.parametrize("name", MODELS)
def test_a_shipped_recipe_explains_every_setting_it_has(name: str) -> None:
    text = (FOLDER / f"{name}.yaml").read_text()
    settings = yaml.safe_load(text)
    assert set(settings) == set(Recipe.model_fields)
    assert set(settings["update"]) == set(UpdateOptions.model_fields)
    assert set(settings["data"]) | set(settings["decoding"]) == {
        "source", "split", "prompt_column", "top_k", "top_p", "max_new_tokens",
    }  # fmt: skip
    lines = text.splitlines()
    rates = re.compile(r"\s*learning_rate_")  # share one comment
    for before, line in pairwise(lines):
        if re.match(r"\s*(- )?\w+:", line) and not line.lstrip().startswith(("weight:", "#")):
            assert before.lstrip().startswith("#") or (rates.match(line) and rates.match(before)), line
    assert f"--recipe {name} " in lines[1]


def test_the_paper_s_recipes_differ_in_nothing_but_model_and_weight() -> None:
    common = {}
    for name in MODELS:
        recipe = Recipe.load(name)
        shared_settings = recipe.model_dump(exclude={"model", "rewards"})
        assert common.setdefault("shared_settings", shared_settings) == shared_settings


def test_the_defaults_are_those_of_the_estimator() -> None:
    parameters = inspect.signature(MaraSAC).parameters
    recipe = Recipe()
    shared = set(parameters) & set(Recipe.model_fields) - {"environment", "update"}
    assert {"episodes", "parallel", "width", "batch_size", "updates", "warm_up", "buffer_size", "preset"} <= shared
    assert {name: getattr(recipe, name) for name in shared} == {name: parameters[name].default for name in shared}
    assert recipe.seed == parameters["random_state"].default
    assert (recipe.environment, recipe.update) == (EnvironmentOptions(), UpdateOptions())


@pytest.mark.parametrize("kind", [Recipe, PromptData, Reward, DecodingSettings, EnvironmentOptions, UpdateOptions])
def test_every_setting_has_a_docstring(kind: type[BaseModel]) -> None:
    source = inspect.getsource(kind)
    explained = re.findall(r'^    (\w+): .*\n    """', source, re.MULTILINE)
    assert explained == list(kind.model_fields)


def test_a_recipe_of_one_s_own(tmp_path: Path) -> None:
    file = write(tmp_path, "episodes: 20\nrewards: [{spec: my:score}]\nenvironment: {penalty: 0.5}\n")
    recipe = Recipe.load(file)
    assert recipe == Recipe.load(str(file))
    options = recipe.options()
    assert (options["episodes"], options["reward"], options["reward_weight"]) == (20, ["my:score"], [1.0])
    assert options["environment"] == {"penalty": 0.5}
    assert options["data"] is None


def test_a_file_named_like_a_recipe_does_not_shadow_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("llama-3-8b").write_text("episodes: 3\n")
    assert Recipe.load("llama-3-8b").episodes == 21_000
    assert Recipe.load("./llama-3-8b").episodes == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("episodes: 0", r"In the recipe \S+own.yaml, episodes=0 should be greater than or equal to 1\.$"),
        ("seeed: 2", r"own.yaml, seeed is unknown \(did you mean seed\?\)\.$"),
        ("decoding: {topk: 3}", r"own.yaml, decoding.topk is unknown \(did you mean decoding.top_k\?\)\."),
        ("rewards: [{weight: 2}]", r"own.yaml, rewards.0.spec is required\."),
        ("rewards: [{spec: a, weight: .nan}]", "rewards.0.weight=nan should be a finite number"),
        ("update: {target_rate: 2}", "update.target_rate=2 should be less than or equal to 1"),
        ("preset: paper", "preset='paper' should be 'default' or 'reference'"),
        ("episodes: [\n", r"The recipe \S+own.yaml is not YAML: .*line 2\."),
        ("- a list", r"own.yaml holds no settings. Write one setting per line, such as episodes: 200."),
        ("3: 4", "holds no settings"),
        ("", "holds no settings"),
        ("a: !!python/object/apply:os.getcwd []", "is not YAML: could not determine a constructor"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(OptionsError, match=message):
        Recipe.load(write(tmp_path, text))


def test_an_unknown_recipe_comes_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(OptionsError) as caught:
        Recipe.load("llama3.1-8b")
    assert str(caught.value) == (
        "There is no recipe 'llama3.1-8b'. Did you mean llama-3.1-8b? "
        f"Give one of {', '.join(sorted(MODELS))}, or a YAML file."
    )
    with pytest.raises(OptionsError, match=r"There is no recipe '\S+nowhere.yaml'. Give one of llama-3-8b, "):
        Recipe.load(tmp_path / "nowhere.yaml")


def test_a_recipe_cannot_be_changed() -> None:
    recipe: Any = Recipe()
    with pytest.raises(ValueError, match="frozen"):
        recipe.episodes = 3
