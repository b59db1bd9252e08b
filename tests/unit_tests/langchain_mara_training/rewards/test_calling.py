"""Reward functions that fail for want of a network are called again, a bounded number of times; others are not."""

import urllib.error
from collections.abc import Callable
from http.client import HTTPMessage
from typing import Any

import httpx
import pytest
from langchain_mara_training import WeightedRewards
from langchain_mara_training.rewards import calling

from langchain_mara.exceptions import RewardError

REQUEST = httpx.Request("POST", "http://localhost/score")
TIMES = 4


@pytest.fixture(autouse=True)
def _without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calling, "FIRST_WAIT_SECONDS", 0.0)


def status(code: int) -> httpx.HTTPStatusError:
    return httpx.HTTPStatusError("refused", request=REQUEST, response=httpx.Response(code, request=REQUEST))


def of_urllib(code: int) -> urllib.error.HTTPError:
    return urllib.error.HTTPError("http://localhost", code, "refused", HTTPMessage(), None)


PASSING = [
    ConnectionResetError("reset"), TimeoutError("slow"), httpx.ReadTimeout("slow", request=REQUEST),
    httpx.ConnectError("no route", request=REQUEST), status(503), status(429), of_urllib(502),
    urllib.error.URLError(ConnectionRefusedError("refused")),
]  # fmt: skip
LASTING = [ValueError("wrong"), FileNotFoundError("model"), status(401), of_urllib(404), KeyError("status")]


def synchronous(error: Exception, failures: int) -> tuple[Callable[..., Any], list[int]]:
    calls: list[int] = []

    def score(completions: list[str]) -> list[float]:
        calls.append(1)
        if len(calls) <= failures:
            raise error
        return [float(len(text)) for text in completions]

    return score, calls


def asynchronous(error: Exception, failures: int) -> tuple[Callable[..., Any], list[int]]:
    plain, calls = synchronous(error, failures)

    async def score(completions: list[str]) -> Any:
        return plain(completions)

    return score, calls


BOTH = pytest.mark.parametrize("kind", [synchronous, asynchronous])


def scores(function: Callable[..., Any]) -> list[float]:
    rewards = WeightedRewards([function, lambda completions: [1.0] * len(completions)])
    return rewards(prompts=["Hi."] * 2, completions=["four", "and"]).tolist()


@BOTH
@pytest.mark.filterwarnings("ignore:The reward function score failed")
@pytest.mark.parametrize("error", PASSING, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("failures", [1, TIMES - 1])
def test_what_passes_is_tried_again(kind: Any, error: Exception, failures: int) -> None:
    function, calls = kind(error, failures)
    with pytest.warns(UserWarning, match=f"The reward function score failed.*attempt {failures} of {TIMES}"):
        assert scores(function) == [5.0, 4.0]
    assert len(calls) == failures + 1


@BOTH
@pytest.mark.filterwarnings("ignore:The reward function score failed")
def test_what_does_not_pass_ends_after_the_last_attempt(kind: Any) -> None:
    function, calls = kind(ConnectionError("no route"), 99)
    with pytest.raises(RewardError, match=f"failed with ConnectionError: no route .it was called {TIMES} times"):
        scores(function)
    assert len(calls) == TIMES


@BOTH
@pytest.mark.parametrize("error", LASTING, ids=lambda error: type(error).__name__)
def test_other_errors_are_not_tried_again(kind: Any, error: Exception) -> None:
    function, calls = kind(error, 1)
    with pytest.raises(RewardError, match=f"failed with {type(error).__name__}"):
        scores(function)
    assert len(calls) == 1


def test_an_interruption_is_not_tried_again() -> None:
    calls: list[int] = []

    def score(**_: Any) -> list[float]:
        calls.append(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scores(score)
    assert len(calls) == 1
