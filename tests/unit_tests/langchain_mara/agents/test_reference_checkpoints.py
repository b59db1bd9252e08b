"""Reference checkpoints that are damaged, foreign or out of reach are refused, each with its cause."""

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from langchain_mara.agents.agent import MaraAgent
from langchain_mara.exceptions import CheckpointError


@pytest.mark.parametrize("kept", [0, 1, 500, -1])
def test_truncated_reference_checkpoint_is_refused(save_pth: Callable[..., Path], kept: int) -> None:
    file = save_pth()
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"actor\.pth is truncated(, not| or not) a PyTorch state dict"):
        MaraAgent.from_reference(file)


class _Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_never_executed(tmp_path: Path, zipped: bool) -> None:
    target, file = tmp_path / "executed", tmp_path / "actor.pth"
    if zipped:
        torch.save({"ln.weight": _Bomb(target)}, file)
    else:
        file.write_bytes(pickle.dumps({"ln.weight": _Bomb(target)}, protocol=2))
    with pytest.raises(CheckpointError, match="weights_only=True"):
        MaraAgent.from_reference(file)
    assert not target.exists()


def test_refusal_of_code_never_advises_to_execute_it(tmp_path: Path) -> None:
    torch.save({"ln.weight": _Bomb(tmp_path / "executed")}, tmp_path / "actor.pth")
    torch.save(_Bomb(tmp_path / "executed"), tmp_path / "whole.pth")
    (tmp_path / "short.pth").write_bytes(b"x")
    for file in sorted(tmp_path.glob("*.pth")):
        with pytest.raises(CheckpointError) as caught:
            MaraAgent.from_reference(file)
        assert not re.search(r"\x1b|can still be loaded|likely succeed", str(caught.value))


@pytest.mark.parametrize("content", [[torch.zeros(1)], torch.zeros(3), 5])
def test_checkpoint_that_is_no_dict_is_refused_by_its_type(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "actor.pth")
    with pytest.raises(CheckpointError, match=f"holds a {type(content).__name__}, not a state dict"):
        MaraAgent.from_reference(tmp_path / "actor.pth")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ln__bias": None}, r"not a MARA agent: missing keys \['ln.bias'\], unexpected keys \[\]"),
        ({"more": torch.zeros(1)}, r"missing keys \[\], unexpected keys \['more'\].*has the keys ln\.\*"),
        ({"linear2__bias": torch.zeros(7)}, r"wrong shapes: .*\n.*linear2\.bias"),
        ({"ln__weight": torch.zeros(31)}, r"wrong shapes: [\s\S]*ln\."),
        ({"output_linear__weight": torch.zeros(3, 4)}, r"wrong shapes: .*\n.*output_linear\.weight"),
        ({"linear1__weight": torch.zeros(7)}, r"wrong shapes: [\s\S]*linear1\.weight"),
        ({"ln__weight": torch.tensor(1.0)}, r"wrong shapes: ln\.weight and linear1\.bias must be vectors"),
        ({"ln__bias": torch.full((32,), torch.nan)}, r"ln\.bias holds NaN or infinite values"),
        ({"linear2__bias": torch.full((4,), torch.inf)}, r"linear2\.bias holds NaN or infinite values"),
        pytest.param({"ln__bias": [0.0] * 32}, r"ln\.bias .*(list|no tensor|not a tensor)"),
    ],
)
def test_wrong_weights_are_refused_by_name(
    save_pth: Callable[..., Path], changes: dict[str, Tensor | None], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        MaraAgent.from_reference(save_pth(**changes))


def test_dict_with_other_keys_than_names_is_refused(tmp_path: Path) -> None:
    torch.save({0: torch.zeros(1), "lr": 0.1}, tmp_path / "optimizer.pth")
    with pytest.raises(CheckpointError, match="not a MARA agent"):
        MaraAgent.from_reference(tmp_path / "optimizer.pth")


@pytest.mark.parametrize("source", ["nowhere.pth", "some/deep/folder/nowhere.pth", "/nowhere/actor.pth"])
def test_missing_reference_checkpoint_is_named(source: str) -> None:
    with pytest.raises(CheckpointError, match=f"no file {source}.*repo:file"):
        MaraAgent.from_reference(source)


def test_file_of_a_hub_repository_without_network_is_refused() -> None:
    with pytest.raises(CheckpointError, match="No agent at org/nothing:actor.pth.*network"):
        MaraAgent.from_reference("org/nothing:actor.pth")
