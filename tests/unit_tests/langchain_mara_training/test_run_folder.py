"""Run folders: what is written can be read, other options are refused, a crash spoils nothing."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from families import tiny_agent
from langchain_mara_training import run_folder
from langchain_mara_training.labeling.shard_list import write_shard
from langchain_mara_training.run_folder import Run
from langchain_mara_training.storage.records import LIBRARIES, flat

from langchain_mara import MaraAgent, __version__
from langchain_mara.exceptions import OptionsError, TrainingError

LABEL = {"data": "pairs.jsonl", "labeler": "preference", "top_p": 0.95, "limit": None, "device": None}


def begun(folder: Path, command: str = "label", **options: Any) -> Run:
    """A run whose command was interrupted as soon as something was made."""
    run = Run(folder, command, {**LABEL, **options})
    run.begin()
    made = {
        "label": run.features / "labels.json",
        "fit": run.checkpoints / "fitting.pt",
        "rl": folder / "fitting.pt",
    }[command]
    made.parent.mkdir(exist_ok=True)
    made.write_text('{"shards": 2}')
    return run


def records(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]


def test_nothing_is_written_before_the_command_begins(tmp_path: Path) -> None:
    assert not Run(tmp_path / "run", "label", LABEL).resumed
    assert not (tmp_path / "run").exists()


def test_each_command_keeps_its_options_in_one_configuration(tmp_path: Path) -> None:
    run = begun(tmp_path)
    begun(tmp_path, "fit", width=8)
    assert run_folder.read_config(tmp_path) == {"label": LABEL, "fit": {**LABEL, "width": 8}}
    versions = json.loads((tmp_path / "versions.json").read_text())
    assert versions["langchain-mara"] == __version__
    assert versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert set(LIBRARIES) | {"langchain-mara", "python"} == set(versions)
    assert [(record["command"], record["event"]) for record in records(run)] == [
        ("label", "started"),
        ("fit", "started"),
    ]


def test_the_same_options_go_on_and_a_device_may_change(tmp_path: Path) -> None:
    begun(tmp_path)
    run = Run(tmp_path, "label", {**LABEL, "device": "cuda:1"})
    run.begin()
    assert run.resumed
    assert [record["event"] for record in records(run)] == ["started", "resumed"]


def test_other_options_are_refused_by_name(tmp_path: Path) -> None:
    begun(tmp_path)
    changed = {**LABEL, "limit": 3, "top_p": 0.9, "top_k": 5}
    with pytest.raises(TrainingError) as caught:
        Run(tmp_path, "label", changed)
    assert str(caught.value) == (
        f"In {tmp_path}, mara label began with other options: limit (nothing there, 3 now), "
        "top_k (nothing there, 5 now), top_p (0.95 there, 0.9 now). "
        "Give another --output, or the options it began with."
    )


def test_options_of_a_command_that_made_nothing_do_not_bind(tmp_path: Path) -> None:
    Run(tmp_path, "label", LABEL).begin()
    run = Run(tmp_path, "label", {**LABEL, "limit": 3})
    run.begin()
    assert not run.resumed
    assert run_folder.read_config(tmp_path)["label"]["limit"] == 3


@pytest.mark.parametrize("content", ["{", "[1]", '{"label": 3}'])
def test_a_folder_of_something_else_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(TrainingError, match="config.json .*is not the configuration of a run. Give another folder."):
        Run(tmp_path, "label", LABEL)
    with pytest.raises(TrainingError, match="config.json is a file. Give a folder as --output."):
        Run(tmp_path / "config.json", "label", LABEL)


def test_half_a_line_of_the_log_stays_alone(tmp_path: Path) -> None:
    run = begun(tmp_path)
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"event": "cut sh')
    run.log("labeled", share=math.nan, tokens=[1, 2.5], note="größer", folder=tmp_path)
    started, cut, labelled = (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert (json.loads(started)["event"], cut) == ("started", '{"event": "cut sh')
    record = json.loads(labelled)
    assert record.pop("time").endswith("+00:00")
    values = {"share": None, "tokens": [1, 2.5], "note": "größer", "folder": str(tmp_path)}
    assert record == {"command": "label", "event": "labeled", **values}


def test_agent_and_card_are_saved_together_and_replaced(tmp_path: Path) -> None:
    run, agent = begun(tmp_path), tiny_agent(seed=1)
    run.save_agent(tiny_agent(seed=2), {"Old": {"seed": 2}})
    (tmp_path / ".agent.new").mkdir()
    (tmp_path / ".agent.new" / "left behind").touch()
    data = {"data": str(tmp_path / "pairs.jsonl"), "reward": ["my:score", f"pairs:{tmp_path}/a|b.jsonl"], "limit": None}
    run.save_agent(agent, {"Labels": data, "Metrics": {"training_loss": 0.123456, "labels": 12345}})
    assert MaraAgent.from_pretrained(tmp_path / "agent").fingerprint == agent.fingerprint
    card = (tmp_path / "agent" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: langchain-mara")
    assert card.endswith(
        "\n\n## Labels\n\n| | |\n|---|---|\n| data | pairs.jsonl |\n| reward | my:score, pairs:a\\|b.jsonl |"
        "\n\n## Metrics\n\n| | |\n|---|---|\n| training loss | 0.1235 |\n| labels | 12345 |\n"
    )
    assert "Old" not in card
    assert {item.name for item in (tmp_path / "agent").iterdir()} == {"README.md", "config.json", "model.safetensors"}
    assert not (tmp_path / ".agent.new").exists()


def test_labels_are_read_only_once_they_are_whole(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"nix holds no labels. Make them first: mara label … --output .*nix"):
        run_folder.read_labels(tmp_path / "nix")
    run = begun(tmp_path)
    write_shard(run.features, 0, {"states": torch.zeros(1, 2)})
    with pytest.raises(TrainingError, match="has done 1 of 2 shards. Run mara label again; it resumes there."):
        run_folder.read_labels(tmp_path)


def test_the_agent_of_a_run_is_found_and_anything_else_left_alone(tmp_path: Path) -> None:
    run = begun(tmp_path)
    with pytest.raises(TrainingError, match=f"holds labels but no agent yet. Fit one first: mara fit {tmp_path}"):
        run_folder.agent_source(str(tmp_path))
    run.save_agent(tiny_agent(), {})
    assert run_folder.agent_source(str(tmp_path)) == str(tmp_path / "agent")
    for other in ("user/repo:agent.pth", "user/repo", str(tmp_path / "agent")):
        assert run_folder.agent_source(other) == other
        assert run_folder.agent_config(other) == {}


def test_an_agent_goes_back_to_the_labels_it_was_fitted_to(tmp_path: Path) -> None:
    begun(tmp_path / "first", seed=1).save_agent(tiny_agent(), {})
    begun(tmp_path / "second", "fit", labels=str(tmp_path / "first")).save_agent(tiny_agent(), {})
    for name in ("first", "second"):
        assert run_folder.agent_config(str(tmp_path / name)) == {**LABEL, "seed": 1}


def test_an_agent_of_reinforcement_goes_back_to_its_own_options(tmp_path: Path) -> None:
    run = begun(tmp_path, "rl", reward=["my:score"])
    with pytest.raises(TrainingError, match="holds no agent yet. Run mara rl again; it resumes there."):
        run_folder.agent_source(str(tmp_path))
    run.save_agent(tiny_agent(), {})
    assert run_folder.agent_source(str(tmp_path)) == str(tmp_path / "agent")
    assert run_folder.agent_config(str(tmp_path)) == {**LABEL, "reward": ["my:score"]}


def test_reinforcement_that_made_nothing_leaves_the_folder_free(tmp_path: Path) -> None:
    begun(tmp_path, "rl")
    (tmp_path / "fitting.pt").unlink()
    begun(tmp_path).save_agent(tiny_agent(), {})
    assert run_folder.agent_config(str(tmp_path)) == LABEL
    with pytest.raises(TrainingError, match="is a run of mara label. Give another --output."):
        Run(tmp_path, "rl", LABEL)


def test_reinforcement_may_go_on_longer_elsewhere_and_be_watched(tmp_path: Path) -> None:
    begun(tmp_path, "rl", episodes=10, environment={"penalty": 0.1, "scale": 1.0})
    free = {"episodes": 20, "workers": 2, "tracker": ["wandb"], "device": "cpu"}
    config = {**LABEL, "environment": {"penalty": 0.1, "scale": 1.0}, **free}
    assert Run(tmp_path, "rl", config).resumed
    changed = {**config, "environment": {"penalty": 0.2, "scale": 1.0}}
    with pytest.raises(
        TrainingError, match=r"mara rl began with other options: environment\.penalty \(0\.1 there, 0\.2"
    ):
        Run(tmp_path, "rl", changed)


def test_configurations_are_flattened() -> None:
    assert flat({"a": 1, "b": {"c": [2], "d": {"e": None}}}) == {"a": 1, "b.c": [2], "b.d.e": None}


def test_rewards_of_a_run() -> None:
    pairs, rollouts = {"labeler": "preference", "data": "/p.jsonl"}, {"labeler": "rollout", "reward": ["a:b", "c"]}
    assert run_folder.chosen_rewards("run", None, pairs) == ["pairs:/p.jsonl"]
    assert run_folder.chosen_rewards("run", ["x:y"], pairs) == ["x:y"]
    assert run_folder.chosen_rewards("run", ["a:b", "c"], rollouts) == ["a:b", "c"]
    for given in (None, [], ["a:b"], ["c", "a:b"], ["x:y"]):
        with pytest.raises(OptionsError, match="add --reward a:b --reward c. To score .* --agent run/agent"):
            run_folder.chosen_rewards("run", given, rollouts)
    for unknown in ({}, {"labeler": "rollout", "data": "/p.jsonl"}, {"labeler": "preference"}):
        with pytest.raises(OptionsError, match="Choose what scores the answers: --reward"):
            run_folder.chosen_rewards("agent", None, unknown)


def test_options_hold_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    given: dict[str, Any] = {
        "data": "here",
        "model": None,
        "agent": "user/here",
        "reward": ("pairs:here", "here", "m:f"),
        "best_of": [],
    }
    here = str(tmp_path / "here")
    assert run_folder.resolved({**given, "output": "here", "width": 8}, "output") == {
        "data": here, "model": None, "agent": "user/here", "reward": [f"pairs:{here}", here, "m:f"], "best_of": None,
        "width": 8,
    }  # fmt: skip
