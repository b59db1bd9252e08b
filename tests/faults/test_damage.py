"""Whatever is lost, cut or damaged in a job's folder is refused or computed again, and never used."""

import json
import random
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from langchain_mara_training import Comparison, TokenLabels
from langchain_mara_training.data.readers import read_prompts
from langchain_mara_training.reinforcement.replay_buffer import ReplayBuffer
from safetensors.torch import save_file
from small_jobs import JOBS, PROMPTS, align, compare_systems, contents, label_pairs, reinforce

from langchain_mara import MaraAgent, MaraLLM
from langchain_mara.exceptions import CheckpointError, DataError, TrainingError

pytestmark = pytest.mark.slow

MAKERS = {"label_pairs": "labels.json", "label_rollouts": "labels.json", "compare": "config.json", "align": "job.json"}


@pytest.fixture
def copy(finished: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: Path(shutil.copytree(finished[name], tmp_path / "copy"))


def flip(file: Path, place: int, bit: int = 0) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1 << bit
    file.write_bytes(content)


def untimed(answers: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {name: [answer.model_copy(update={"seconds": 0.0}) for answer in given] for name, given in answers.items()}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("content", [None, b"", b"{", b'{"systems": {}}', b"\xff\xfe"])
def test_results_of_unknown_origin_are_refused(
    name: str, content: bytes | None, llm: MaraLLM, copy: Callable[[str], Path]
) -> None:
    folder = copy(name)
    (folder / MAKERS[name]).unlink(missing_ok=True)
    if content is not None:
        (folder / MAKERS[name]).write_bytes(content)
    before = contents(folder)
    with pytest.raises(TrainingError, match=r"[Gg]ive (another|a) folder"):
        JOBS[name](folder, llm)
    assert contents(folder) == before


@pytest.mark.parametrize("name", MAKERS)
def test_any_damaged_byte_of_an_identity_is_noticed(name: str, llm: MaraLLM, copy: Callable[[str], Path]) -> None:
    file = copy(name) / MAKERS[name]
    intact = file.read_bytes()
    for place in random.Random(0).sample(range(len(intact)), 12):
        flip(file, place, place % 8)
        with pytest.raises(TrainingError):
            JOBS[name](file.parent, llm)
        file.write_bytes(intact)


@pytest.mark.parametrize("name", ["label_pairs", "label_rollouts"])
@pytest.mark.parametrize("where", ["states", "labels", "header"])
def test_a_damaged_shard_is_refused_by_readers_and_computed_again_by_its_job(
    name: str, where: str, llm: MaraLLM, copy: Callable[[str], Path]
) -> None:
    folder = copy(name)
    before = contents(folder)
    file = folder / "shard-00001.safetensors"
    length = int.from_bytes(file.read_bytes()[:8], "little")
    header = json.loads(file.read_bytes()[8 : 8 + length])
    offset = 20 if where == "header" else 8 + length + header[where]["data_offsets"][0]
    flip(file, offset, 1)
    with pytest.raises(DataError, match="shard-00001.safetensors"):
        TokenLabels.load(folder)
    JOBS[name](folder, llm)
    assert contents(folder) == before


@pytest.mark.parametrize("lost", ["shard-00001.safetensors", "shards.jsonl"])
def test_lost_shards_are_computed_again(lost: str, llm: MaraLLM, copy: Callable[[str], Path]) -> None:
    folder = copy("label_pairs")
    before = contents(folder)
    (folder / lost).unlink(missing_ok=True)
    with pytest.raises(DataError, match=r"shard"):
        TokenLabels.load(folder)
    label_pairs(folder, llm)
    assert contents(folder) == before


def test_a_foreign_shard_is_not_adopted(llm: MaraLLM, copy: Callable[[str], Path]) -> None:
    folder = copy("label_pairs")
    count = len(TokenLabels.load(folder))
    shutil.copy(folder / "shard-00000.safetensors", folder / "shard-99999.safetensors")
    assert len(TokenLabels.load(folder)) == count == len(label_pairs(folder, llm))


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.95])
@pytest.mark.parametrize("name", ["answers/plain.jsonl", "prompts.jsonl", "config.json"])
def test_any_damaged_byte_of_a_comparison_is_refused(name: str, share: float, copy: Callable[[str], Path]) -> None:
    folder = copy("compare")
    intact = Comparison.load(folder)
    file = folder / name
    content = file.read_bytes()
    for place in range(int(share * len(content)), min(int(share * len(content)) + 8, len(content))):
        flip(file, place)
        try:
            assert untimed(Comparison.load(folder).answers) == untimed(intact.answers)
        except (TrainingError, DataError):
            pass
        else:
            pytest.fail(f"byte {place} of {name} was damaged, and nobody noticed")
        file.write_bytes(content)


def test_a_damaged_answer_stops_the_resume(llm: MaraLLM, copy: Callable[[str], Path]) -> None:
    folder = copy("compare")
    file = folder / "answers" / "plain.jsonl"
    file.write_bytes(file.read_bytes().replace(b'"tokens":6', b'"tokens":7', 1))
    with pytest.raises(DataError, match=r"plain.jsonl, line \d is not an answer \(it does not match its digest\)"):
        compare_systems(folder, llm)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        *product(("states", "rewards", "actions", "done"), ("missing", "cut", "cut to its header", "flipped")),
        *product(("states", "rewards"), ("of another time",)),
    ],
)
def test_a_buffer_that_is_not_what_the_checkpoint_says_stops_the_resume(
    name: str, fault: str, llm: MaraLLM, copy: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = copy("reinforce")
    file = folder / "buffer" / f"{name}.npy"
    if fault == "missing":
        file.unlink()
    elif fault == "flipped":
        flip(file, 128)
    elif fault == "of another time":
        reinforce(tmp_path / "other", llm, random_state=1)
        shutil.copy(tmp_path / "other" / "buffer" / file.name, file)
    else:
        file.write_bytes(file.read_bytes()[: 128 if "header" in fault else -100])
    with pytest.raises(CheckpointError, match=r"(missing|corrupt|do not hold).*to start over\.$"):
        reinforce(folder, llm, episodes=16)


def test_an_intact_buffer_resumes(llm: MaraLLM, copy: Callable[[str], Path]) -> None:
    assert reinforce(copy("reinforce"), llm, episodes=16).history_[-1]["episodes"] == 16


def test_every_single_bit_of_a_needed_row_is_checked(tmp_path: Path) -> None:
    def added(folder: Path) -> tuple[ReplayBuffer, Any]:
        buffer = ReplayBuffer(folder, 5, capacity=8, slack=8)
        for number in range(3):
            states = torch.arange(20.0).reshape(4, 5) + number
            buffer.add_episode(states, torch.tensor([0, 1, 0, 1]), torch.arange(4.0))
            kept = buffer.state_dict()
        return buffer, kept

    buffer, kept = added(tmp_path)
    del buffer
    ReplayBuffer(tmp_path, 5, 8, 8).load_state_dict(kept)
    generator = random.Random(0)
    for name, size in {"states": 10, "actions": 1, "rewards": 4, "done": 1}.items():
        for row in range(4, 12):
            place = 128 + row * size + generator.randrange(size)
            bit = generator.randrange(8)
            flip(tmp_path / f"{name}.npy", place, bit)
            with pytest.raises(CheckpointError, match="do not hold the transitions"):
                ReplayBuffer(tmp_path, 5, 8, 8).load_state_dict(kept)
            flip(tmp_path / f"{name}.npy", place, bit)
    # Rows that the checkpoint does not need may change, as they do before the next one.
    flip(tmp_path / "states.npy", 128)
    ReplayBuffer(tmp_path, 5, 8, 8).load_state_dict(kept)


@pytest.mark.parametrize("name", ["fit", "reinforce"])
@pytest.mark.parametrize("share", [0.0, 0.4, 0.9])
def test_a_damaged_checkpoint_stops_the_resume(
    name: str, share: float, llm: MaraLLM, copy: Callable[[str], Path]
) -> None:
    folder = copy(name)
    flip(folder / "fitting.pt", int(share * (folder / "fitting.pt").stat().st_size))
    with pytest.raises(CheckpointError, match=r"truncated or corrupt.*Delete it to start over"):
        JOBS[name](folder, llm)


def test_a_damaged_history_stops_the_resume(llm: MaraLLM, copy: Callable[[str], Path]) -> None:
    folder = copy("align")
    file = folder / "round-1" / "history.json"
    file.write_text(file.read_text().replace('"labels": ', '"labels": 1', 1))
    with pytest.raises(TrainingError, match=r"history.json is damaged.*Delete this file"):
        align(folder, llm)


def test_any_damaged_weight_of_an_agent_is_noticed(copy: Callable[[str], Path]) -> None:
    folder = copy("align") / "round-1" / "agent"
    file = folder / "model.safetensors"
    intact = file.read_bytes()
    length = int.from_bytes(intact[:8], "little")
    for place in random.Random(0).sample(range(8 + length, len(intact)), 20):
        flip(file, place, place % 8)
        with pytest.raises(CheckpointError, match=r"damaged|holds NaN"):
            MaraAgent.from_pretrained(folder)
        file.write_bytes(intact)
    MaraAgent.from_pretrained(folder)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_an_agent_that_is_not_finite_is_neither_saved_nor_loaded(value: float, tmp_path: Path) -> None:
    agent = MaraAgent(6, width=8)
    agent.save_pretrained(tmp_path / "agent")
    before = contents(tmp_path / "agent")
    with torch.no_grad():
        agent.linear2.bias[1] = value
    with pytest.raises(CheckpointError, match=r"not finite in linear2.bias. It was not saved"):
        agent.save_pretrained(tmp_path / "agent")
    assert contents(tmp_path / "agent")["model.safetensors"] == before["model.safetensors"]
    torch.save(agent.state_dict(), tmp_path / "agent.pth")
    with pytest.raises(CheckpointError, match=r"agent.pth: linear2.bias holds NaN or infinite values"):
        MaraAgent.from_reference(tmp_path / "agent.pth")
    save_file(agent.state_dict(), tmp_path / "agent" / "model.safetensors")
    with pytest.raises(CheckpointError, match="model.safetensors: linear2.bias holds NaN or infinite values"):
        MaraAgent.from_pretrained(tmp_path / "agent")


ODD_NAMES = ["a[1]", "a*", "a?", "{a,b}", "a b", "a\nb", "größe", "日本", "[!a]", "100%", "~a", "a;b'c\""]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_file_of_an_odd_name_is_the_one_that_is_read(name: str, tmp_path: Path) -> None:
    for decoy in ("a1", "ab", "b", "a", "aa"):
        (tmp_path / f"{decoy}.jsonl").write_text('{"prompt": "decoy"}\n')
    (tmp_path / f"{name}.jsonl").write_text('{"prompt": "meant"}\n')
    assert read_prompts(tmp_path / f"{name}.jsonl") == [{"prompt": "meant"}]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_jobs_work_in_a_folder_of_an_odd_name(name: str, llm: MaraLLM, tmp_path: Path) -> None:
    label_pairs(tmp_path / "a1", llm, decay=0.5)
    folder = tmp_path / name
    labels = label_pairs(folder, llm)
    np.testing.assert_array_equal(TokenLabels.load(folder).weight, labels.weight)
    assert labels.weight.min() == 1
    comparison = compare_systems(folder / "compare", llm)
    assert untimed(Comparison.load(folder / "compare").answers) == untimed(comparison.answers)
    assert comparison.prompts == PROMPTS
