"""`mara rl`: a recipe, options that override it, and an agent that `mara evaluate` takes."""

import json
from pathlib import Path

import pytest
from command_line import mara, message_of, succeed, table
from langchain_mara_training import run_folder


@pytest.mark.slow
def test_reinforcement_by_a_recipe() -> None:
    reward = "def short(completions, **_):\n    return [-float(len(one)) for one in completions]\n"
    Path("rl_rewards_of_test_cli.py").write_text(reward)
    Path("own.yaml").write_text(
        "episodes: 16\nparallel: 4\nwidth: 8\nbatch_size: 16\nwarm_up: 1\nevaluate_every: 8\nupdates: 1\n"
        "rewards:\n  - {spec: rl_rewards_of_test_cli:short, weight: 2}\n"
    )
    given = ["--recipe", "own.yaml", "--max-new-tokens", "4", "--evaluation", "prompts.jsonl", "--device", "cpu"]
    given += ["--reward", "rl_rewards_of_test_cli:short"]
    output = table(succeed("rl", "prompts.jsonl", "--output", "run", *given, "--tracker", "tensorboard"))
    assert output["episodes"] == ["16"]
    config = run_folder.read_config("run")["rl"]
    assert (config["reward"], config["reward_weight"]) == (["rl_rewards_of_test_cli:short"], [2.0])
    assert (config["evaluation"], config["tracker"]) == (str(Path("prompts.jsonl").absolute()), ["tensorboard"])
    succeed("rl", "prompts.jsonl", "--output", "run", *given, "--episodes", "24")
    refused = mara("rl", "prompts.jsonl", "--output", "run", *given, "--seed", "3", "--reward-weight", "1")
    assert "began with other options: reward_weight ([2.0] there, [1.0] now), seed (0 there, 3 now)." in message_of(
        refused
    )
    again = ["--reward", "rl_rewards_of_test_cli:short", "--device", "cpu"]
    compared = succeed("evaluate", "prompts.jsonl", "--agent", "run", *again)
    assert "4 prompts, by short" in compared


def test_a_dry_run_shows_prompts_and_trains_nothing() -> None:
    given = ["--reward", "nowhere:f", "--output", "run", "--dry-run", "--device", "cpu"]
    shown = json.loads(succeed("rl", "prompts.jsonl", *given, "--json"))
    assert (shown["rows"], len(shown["examples"])) == (4, 3)
    assert not Path("run").exists()
    assert "is a file" in message_of(mara("rl", "prompts.jsonl", *given, "--output", "prompts.jsonl"))
