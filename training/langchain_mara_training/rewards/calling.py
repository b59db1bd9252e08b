"""Calls of reward functions: each gets what it asks for, is awaited where it is asynchronous, and checked."""

import asyncio
import inspect
import math
import numbers
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from langchain_mara.exceptions import MaraError, RewardError
from langchain_mara_training.data.readers import Prompt

RewardFunction = Callable[..., Any]
"""`f(prompts=[…], completions=[…], completion_ids=[…] or None, **columns)`, a number or None for each completion."""


class TextReward(ABC):
    """A reward function that reads prompts and completions, and nothing else that it is given."""

    def __call__(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Prompt],
        completion_ids: Sequence[Sequence[int]] | None = None,  # noqa: ARG002 - TRL's signature
        **columns: Any,  # noqa: ARG002
    ) -> list[float]:
        """The reward of each completion.

        Args:
            prompts: n texts, a user's message each, or lists of messages.
            completions: n texts or lists of messages, the assistant's answers.
            completion_ids: Not used.
            columns: Not used.

        Raises:
            RewardError: If they cannot be scored.
        """
        return self.rewards(list(zip(prompts, completions, strict=True)))

    @abstractmethod
    def rewards(self, pairs: Sequence[tuple[Prompt, Prompt]]) -> list[float]:
        """The reward of each pair of a prompt and its completion."""


def call(functions: Sequence[RewardFunction], names: Sequence[str], given: dict[str, Any]) -> list[Any]:
    """What each function returns; what is to be awaited is awaited concurrently.

    Args:
        functions: Called one by one, by keyword, with what they name of `given`.
        names: Of the functions, for messages.
        given: Prompts, completions and columns.

    Raises:
        RewardError: If a function asks for more than there is, or fails.
    """
    results: list[Any] = []
    try:
        for function, name in zip(functions, names, strict=True):
            results.append(_called(function, name, given))
        return _awaited(results, names)
    finally:
        # Where a later function failed, those made before were never awaited.
        for result in results:
            if inspect.iscoroutine(result):
                result.close()


def name_of(function: RewardFunction) -> str:
    """The `name` or `__name__` of a function or of what a partial calls, or its class."""
    for owner in (function, getattr(function, "func", None)):  # that of a functools.partial
        for attribute in ("name", "__name__"):
            name = getattr(owner, attribute, None)
            if isinstance(name, str):
                return name.strip("<>")
    return type(function).__name__


def _called(function: RewardFunction, name: str, given: dict[str, Any]) -> Any:
    try:
        return function(**_asked(function, name, given))
    except MaraError:
        raise
    except Exception as error:
        raise RewardError(f"The reward function {name} failed with {type(error).__name__}: {error}") from error


def _asked(function: RewardFunction, name: str, given: dict[str, Any]) -> dict[str, Any]:
    """Of what there is, that which a function takes."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # functions written in C need not tell
        return given
    if any(one.kind is one.VAR_KEYWORD for one in parameters):
        return given
    named = [one for one in parameters if one.kind is not one.VAR_POSITIONAL]
    missing = [one.name for one in named if one.default is one.empty and one.name not in given]
    if missing:
        raise RewardError(
            f"The reward function {name} needs {', '.join(missing)}, but there is {', '.join(given)}. Name its "
            "parameters so, add the column to the dataset, or give the parameter a default."
        )
    return {one.name: given[one.name] for one in named if one.name in given}


def _awaited(results: list[Any], names: Sequence[str]) -> list[Any]:
    if not any(inspect.isawaitable(result) for result in results):
        return results
    future = asyncio.run_coroutine_threadsafe(_together(results, names), _event_loop(os.getpid()))
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


async def _together(results: list[Any], names: Sequence[str]) -> list[Any]:
    async def finished(awaitable: Awaitable[Any], name: str) -> Any:
        try:
            return await awaitable
        except MaraError:
            raise
        except Exception as error:
            raise RewardError(f"The reward function {name} failed with {type(error).__name__}: {error}") from error

    async def known(result: Any) -> Any:
        return result

    pairs = zip(results, names, strict=True)
    return await asyncio.gather(*(finished(r, name) if inspect.isawaitable(r) else known(r) for r, name in pairs))


@lru_cache(maxsize=1)
def _event_loop(process: int) -> asyncio.AbstractEventLoop:
    """The loop of a process, which threads do not survive the forking of; clients that are bound to it stay usable."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name=f"mara-rewards-{process}", daemon=True).start()
    return loop


def scores_of(result: Any, name: str, count: int) -> NDArray[np.float64]:
    """Rewards (n,) from what a function returned: NaN where it did not score.

    Args:
        result: A list, tuple, array or tensor of numbers and None.
        name: Of the function.
        count: n.

    Raises:
        RewardError: If it is something else, of another length, or infinite.
    """
    values = result.tolist() if hasattr(result, "tolist") else result
    if not isinstance(values, list | tuple):
        raise RewardError(f"The reward function {name} returned {type(result).__name__}; return a list of numbers.")
    if len(values) != count:
        raise RewardError(
            f"The reward function {name} returned {len(values)} rewards for {count} completions; "
            "return one for each, None where there is nothing to say."
        )
    return np.array([_score(value, name) for value in values], dtype=np.float64)


def _score(value: Any, name: str) -> float:
    number = value.item() if hasattr(value, "item") else value
    if number is None:
        return math.nan
    if not isinstance(number, numbers.Real) or math.isinf(number):
        raise RewardError(f"The reward function {name} returned {value!r} as a reward; return finite numbers or None.")
    return float(number)
