"""Ray Data is an extra, and what a worker raises can be sent whatever it holds. `integration_tests` has the rest."""

import sys
import threading

import cloudpickle
import pytest
from langchain_mara_training.engines.ray_data import RayData, _sendable

from langchain_mara.exceptions import DataError, OptionsError, TrainingError


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(OptionsError, match=r"--engine ray needs Ray: pip install 'langchain-mara\[ray\]'"):
        RayData(int)


class _TwoArgumentsError(Exception):
    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


class _UnsendableError(Exception):
    def __init__(self) -> None:
        super().__init__("held")
        self.lock = threading.Lock()


def raised(error: Exception) -> Exception:
    try:
        raise error from ValueError("its cause")
    except type(error) as caught:
        return caught


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (DataError("bad row"), DataError, "bad row"),
        (_TwoArgumentsError(1, 2), TrainingError, "_TwoArgumentsError: 1 and 2"),
        (_UnsendableError(), TrainingError, "_UnsendableError: held"),
    ],
)
def test_what_a_worker_raises_is_sent_with_its_place(error: Exception, kind: type[Exception], text: str) -> None:
    sent = cloudpickle.loads(cloudpickle.dumps(_sendable(raised(error), cloudpickle)))
    assert (type(sent), str(sent)) == (kind, text)
    [note] = sent.__notes__
    assert note.startswith("In a worker of Ray:\n")
    assert "in raised" in note
    assert "its cause" in note
