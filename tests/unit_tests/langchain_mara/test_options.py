"""DecodingOptions: bounds of every field, and one readable sentence for what is wrong."""

from typing import Any, get_args

import pytest
from pydantic import ValidationError

from langchain_mara import DecodingOptions, MaraError
from langchain_mara.exceptions import OptionsError
from langchain_mara.gates.kinds import EntropyGate
from langchain_mara.options import Order, Strategy

INSIDE = {
    "top_k": [1, 10_000],
    "top_p": [1e-9, 1.0, 1],
    "order": list(get_args(Order)),
    "temperature": [1e-9, 100.0],
    "strategy": list(get_args(Strategy)),
    "strength": [0, 0.5, 1.0],
    "gate": [None, EntropyGate(threshold=1.5)],
    "accept_threshold": [0, 0.0, 1.0],
    "accept_action": [0, 1],
    "fallback": [-1_000, -1, 0, 1_000],
    "max_new_tokens": [1, 10**9],
    "min_new_tokens": [0, 10],
    "seed": [0, 2**31, 2**63 - 1],
}
OUTSIDE = {
    "top_k": [0, -1, 1.5, "many", None],
    "top_p": [0, -0.1, 1.000001, float("nan"), "much"],
    "order": ["ascending", "", None, 1],
    "temperature": [-0.1, -1.0, float("nan")],
    "strategy": ["first_accept", "greedy", None],
    "strength": [-0.1, 1.1, float("nan"), "much"],
    "gate": [],  # tested with the gates
    "accept_threshold": [-0.001, 1.001, float("nan")],
    "accept_action": [2, -1, "accept"],
    "fallback": [0.5, "last", None],
    "max_new_tokens": [0, -5, None],
    "min_new_tokens": [-1, None],
    "seed": [1.5, "x", None, -1, 2**63],
}
DEFAULTS = {
    "top_k": 40,
    "top_p": 0.95,
    "order": "descending",
    "temperature": 1.0,
    "strategy": "first-accept",
    "strength": 0.9,
    "gate": None,
    "accept_threshold": 0.5,
    "accept_action": 1,
    "fallback": 0,
    "max_new_tokens": 256,
    "min_new_tokens": 0,
    "seed": 0,
}


def pairs(table: dict[str, list[Any]]) -> list[tuple[str, Any]]:
    return [(name, value) for name, values in table.items() for value in values]


def test_defaults_are_the_papers_and_every_field_is_tested_here() -> None:
    assert DecodingOptions().model_dump() == DEFAULTS
    assert set(INSIDE) == set(OUTSIDE) == set(DEFAULTS)


@pytest.mark.parametrize(("name", "value"), pairs(INSIDE))
def test_values_within_the_bounds_are_kept(name: str, value: Any) -> None:
    assert getattr(DecodingOptions.parse(**{name: value}), name) == value


@pytest.mark.parametrize(("name", "value"), pairs(OUTSIDE))
def test_values_outside_the_bounds_are_refused_by_name_and_value(name: str, value: Any) -> None:
    with pytest.raises(OptionsError) as caught:
        DecodingOptions.parse(**{name: value})
    message = str(caught.value)
    assert message.startswith(f"Invalid options: {name}={value!r} should be ")
    assert message.endswith(".")
    assert "\n" not in message
    assert "pydantic" not in message


def test_all_faults_stand_in_one_sentence() -> None:
    with pytest.raises(OptionsError) as caught:
        DecodingOptions.parse(top_k=0, top_p=2, max_tokens=3)
    message = str(caught.value)
    assert "top_k=0 should" in message
    assert "top_p=2 should" in message
    assert "max_tokens is unknown (did you mean max_new_tokens?)" in message
    assert message.count("; ") == 2


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("topk", "top_k"),
        ("top_kk", "top_k"),
        ("max_tokens", "max_new_tokens"),
        ("temprature", "temperature"),
        ("threshold", "accept_threshold"),
        ("sed", "seed"),
    ],
)
def test_unknown_name_comes_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(OptionsError, match=rf"{name} is unknown \(did you mean {nearest}\?\)\.$"):
        DecodingOptions.parse(**{name: 1})


def test_name_far_from_all_has_no_suggestion() -> None:
    with pytest.raises(OptionsError, match=r"zzz is unknown\.$"):
        DecodingOptions.parse(zzz=1)


def test_errors_are_value_errors_and_the_librarys_own() -> None:
    assert issubclass(OptionsError, ValueError)
    assert issubclass(OptionsError, MaraError)


def test_options_cannot_be_changed_while_decoding() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        DecodingOptions().top_k = 3
