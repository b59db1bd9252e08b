"""Digests depend on what a value holds, and on nothing else."""

import enum
import functools
import logging
import math
import re
import sys
import threading
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from langchain_mara_training.storage.identity.content_digest import digest
from torch import nn


@dataclass
class Settings:
    a: int = 1
    b: list[int] = field(default_factory=list)


class Color(enum.Enum):
    RED = 1
    BLUE = 2


class Slotted:
    __slots__ = ("a",)

    def __init__(self, a: Any) -> None:
        self.a = a


def ring(value: int) -> list[Any]:
    made: list[Any] = [value]
    made.append(made)
    return made


VALUES: list[Callable[[], Any]] = [
    lambda: None, lambda: True, lambda: 1, lambda: 1.0, lambda: math.nan, lambda: "1", lambda: b"1", lambda: (),
    list, dict, set, lambda: (1, 2), lambda: [1, 2], lambda: [[1], 2], lambda: {1: 2},
    lambda: {2: 1}, lambda: {"a", "b"}, lambda: {"a", "c"}, lambda: Path("a"), lambda: np.arange(3),
    lambda: np.arange(3.0), lambda: np.arange(3).reshape(3, 1), lambda: np.array([1, "x"], dtype=object),
    lambda: torch.arange(3), lambda: torch.arange(3).bfloat16(), lambda: torch.arange(4), Settings,
    lambda: Settings(2), lambda: Settings(1, [3]), lambda: Settings, lambda: Color.RED, lambda: Color.BLUE,
    lambda: Slotted(1), lambda: Slotted(2), lambda: re.compile("a"), lambda: re.compile("b"),
    lambda: re.compile("a").match, lambda: len, lambda: math.sqrt, lambda: math, lambda: np.mean, lambda: np.exp,
    lambda: logging.getLogger("a"), lambda: functools.partial(max, 1), lambda: functools.partial(max, 2),
    lambda: np.random.default_rng(0), lambda: np.random.default_rng(1), lambda: ring(1), lambda: ring(2),
    lambda: types.MappingProxyType({3: 4}), lambda: torch.float32, lambda: nn.Dropout(0.1), lambda: nn.Dropout(0.2),
    lambda: nn.LeakyReLU(0.1),
]  # fmt: skip


def test_equal_values_have_equal_digests_and_others_have_others() -> None:
    digests = [digest(make()) for make in VALUES]
    assert digests == [digest(make()) for make in VALUES]
    assert len(set(digests)) == len(digests)


def test_no_name_in_your_own_values_is_left_out() -> None:
    for name in ("name_or_path", "training", "transformers_version"):
        assert digest({name: 1}) != digest({name: 2}) != digest({})


def test_order_counts_where_it_counts() -> None:
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest([1, 2]) != digest([2, 1])


def function(source: str, **values: Any) -> Any:
    namespace = {"__name__": "of_somebody", **values}
    exec(source, namespace)
    return namespace["f"]


def test_code_counts_and_its_place_does_not() -> None:
    source = "def f(x):\n    return x + 1"
    assert digest(function(source)) == digest(function(f"\n\n# a comment\n{source}"))
    assert digest(function(source)) != digest(function(source.replace("1", "2")))
    assert digest(function(source)) != digest(function(source.replace("+", "-")))


def test_only_what_a_function_refers_to_counts() -> None:
    source = "def f(x):\n    return [y * used for y in x]"
    assert digest(function(source, used=1, other=1)) == digest(function(source, used=1, other=2))
    assert digest(function(source, used=1)) != digest(function(source, used=2))


def test_functions_that_call_one_another() -> None:
    source = "def g(x):\n    return x and f(x - {0})\ndef f(x):\n    return x and g(x - 1)"
    assert digest(function(source.format(1))) == digest(function(source.format(1)))
    assert digest(function(source.format(1))) != digest(function(source.format(2)))


def test_members_of_a_module_of_your_own_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helpers = types.ModuleType("helpers_of_somebody")
    exec("def used(x):\n    return x\ndef other(x):\n    return x", vars(helpers))
    f = function("def f(x):\n    return helpers.used(x)", helpers=helpers)
    before = digest(f)
    exec("def other(x):\n    return 2", vars(helpers))
    assert digest(f) == before
    exec("def used(x):\n    return 2", vars(helpers))
    assert digest(f) != before
    # Also where it is imported only when the function runs.
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "imported_by_f.py").write_text("K = 1")
    late = function("def f(x):\n    import imported_by_f\n    return imported_by_f.K")
    before = digest(late)
    assert "imported_by_f" not in sys.modules
    (tmp_path / "imported_by_f.py").write_text("K = 2")
    assert digest(late) != before


def test_weights_and_settings_of_networks_count() -> None:
    def network() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Dropout(0.5))

    before = digest(network())
    assert digest(network().eval()) == before
    for change in ("[0].weight.data[1, 1] += 1", "[1].running_mean += 1", "[2].p = 0.1", "[1].eps = 0.1"):
        changed = network()
        exec(f"changed{change}")
        assert digest(changed) != before, change


@pytest.mark.parametrize("value", [threading.Lock(), (x for x in ()), {"inner": [threading.RLock()]}])
def test_what_has_no_state_to_read_is_said(value: Any) -> None:
    with pytest.raises(TypeError, match=r"the state of a \w+ cannot be read"):
        digest(value)


def test_the_error_says_where() -> None:
    lock = threading.Lock()
    with pytest.raises(TypeError, match="guard: the state of a lock cannot be read"):
        digest(function("def f(x):\n    with guard:\n        return x", guard=lock))
