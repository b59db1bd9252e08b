"""Rarity: counts by hand, the scale, saving and loading, and what is refused."""

from math import log
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from langchain_mara.exceptions import CheckpointError, OptionsError
from langchain_mara.gates.rarity import Rarity


def test_it_counts_documents_and_not_tokens() -> None:
    rarity = Rarity.of([[0, 0, 0, 1], [0, 2], [0, 2], [2]], vocabulary=4)
    raw = [log(4 / (1 + df)) for df in (3, 1, 3, 0)]
    expected = [(value - raw[0]) / (raw[3] - raw[0]) for value in raw]
    assert rarity.values == pytest.approx(expected, abs=1e-6)
    assert (rarity[0], rarity[3], rarity[99]) == (0.0, 1.0, 1.0)


def test_tokens_that_are_alike_all_count_in_full() -> None:
    assert Rarity.of([[0, 1], [1, 0]], vocabulary=2).values == [1.0, 1.0]


def test_saving_and_loading(tmp_path: Path) -> None:
    rarity = Rarity([0.1, 0.9, 0.3])
    rarity.save(tmp_path / "rarity.safetensors")
    loaded = Rarity.load(tmp_path / "rarity.safetensors")
    assert loaded == rarity
    assert (loaded.values, hash(loaded)) == (rarity.values, hash(rarity))
    assert rarity != Rarity([0.1, 0.9, 0.4])


def test_what_is_no_rarity_is_refused(tmp_path: Path) -> None:
    for values in ([], [0.5, 1.5], [-0.1], [float("nan")]):
        with pytest.raises(OptionsError, match="numbers from 0 to 1"):
            Rarity(values)
    with pytest.raises(OptionsError, match="at least one document"):
        Rarity.of([], 5)
    with pytest.raises(CheckpointError, match="There is no file"):
        Rarity.load(tmp_path / "missing")
    save_file({"other": torch.ones(3)}, tmp_path / "other")
    (tmp_path / "broken").write_bytes(b"no tensors")
    save_file({"rarity": torch.full((3,), 7.0)}, tmp_path / "large")
    for name in ("other", "broken", "large"):
        with pytest.raises(CheckpointError, match="holds no rarities"):
            Rarity.load(tmp_path / name)
