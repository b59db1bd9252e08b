"""Calls reward functions: passes each the arguments it names, awaits asynchronous ones, and checks the results."""

import asyncio
import inspect
import math
import numbers
import os
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    wait_exponential,
    wait_random,
)

from langchain_mara.exceptions import MaraError, RewardError
from langchain_mara_training.data.readers import Prompt

RewardFunction = Callable[..., Any]
"""`f(prompts=[…], completions=[…], completion_ids=[…] or None, **columns)` -> a number or None per completion."""


ATTEMPTS = 4
"""How often a reward function is called when the network fails."""
FIRST_WAIT_SECONDS = 1.0
"""Shortest wait before the second attempt. It doubles with each one; up to as much is added at random."""
_LONGEST_WAIT_SECONDS = 30

# Clients have errors of their own, most of which inherit from none of Python's: httpx, aiohttp, requests, openai.
_OF_THE_NETWORK = {
    "APIConnectionError", "ClientConnectionError", "ConnectionError", "ServerTimeoutError", "Timeout", "TransportError",
}  # fmt: skip
_MAY_PASS = {408, 425, 429, 500, 502, 503, 504}  # HTTP status codes


class TextReward(ABC):
    """A reward function that reads prompts and completions and ignores all other arguments."""

    def __call__(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Prompt],
        completion_ids: Sequence[Sequence[int]] | None = None,  # noqa: ARG002 - TRL's signature
        **columns: Any,  # noqa: ARG002
    ) -> list[float]:
        """The reward of each completion.

        Args:
            prompts: n prompts: texts (a user's message each) or lists of messages.
            completions: n answers of the assistant: texts or lists of messages.
            completion_ids: Ignored.
            columns: Ignored.

        Raises:
            RewardError: If the completions cannot be scored.
        """
        return self.rewards(list(zip(prompts, completions, strict=True)))

    @abstractmethod
    def rewards(self, pairs: Sequence[tuple[Prompt, Prompt]]) -> list[float]:
        """The reward of each pair of a prompt and its completion."""


def call(functions: Sequence[RewardFunction], names: Sequence[str], arguments: dict[str, Any]) -> list[Any]:
    """Calls reward functions and returns what each returned. Awaitable results are awaited concurrently.

    If the network fails, a function is called again, `ATTEMPTS` times in all.

    Args:
        functions: Reward functions, called one after the other with the keyword arguments they name.
        names: Names of the functions, for error messages.
        arguments: Prompts, completions and columns, by name.

    Raises:
        RewardError: If a function needs an argument that does not exist, or fails.
    """
    calls = [
        partial(function, **_accepted_arguments(function, name, arguments))
        for function, name in zip(functions, names, strict=True)
    ]
    results: list[Any] = []
    try:
        for each, name in zip(calls, names, strict=True):
            results.append(_called(each, name))
        return _awaited(results, calls, names)
    finally:
        # If a later function failed, the coroutines of the earlier ones were never awaited.
        for result in results:
            if inspect.iscoroutine(result):
                result.close()


def is_of_the_network(error: BaseException) -> bool:
    """Whether an error is of the network or of a busy server, so that another attempt may succeed.

    Args:
        error: Error of Python's, or of an HTTP client: by the names of its classes, or the status code it carries.
    """
    response = getattr(error, "response", None)
    codes = [getattr(error, "status_code", None), getattr(error, "code", None), getattr(error, "status", None)]
    codes.append(getattr(response, "status_code", None))
    statuses = [code for code in codes if isinstance(code, int) and 100 <= code < 600]  # noqa: PLR2004
    if statuses:
        return not _MAY_PASS.isdisjoint(statuses)
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    reason = getattr(error, "reason", None)  # of urllib's URLError
    if isinstance(reason, BaseException):
        return is_of_the_network(reason)
    return not _OF_THE_NETWORK.isdisjoint(kind.__name__ for kind in type(error).__mro__)


def name_of(function: RewardFunction) -> str:
    """The name of a reward function: its `name` or `__name__`, that of a partial's function, or its class."""
    for named in (function, getattr(function, "func", None)):  # `func` is the function of a functools.partial
        for attribute in ("name", "__name__"):
            name = getattr(named, attribute, None)
            if isinstance(name, str):
                return name.strip("<>")
    return type(function).__name__


def _called(function: Callable[[], Any], name: str) -> Any:
    try:
        return Retrying(**_retrying(name))(function)
    except MaraError:
        raise
    except Exception as error:
        raise _failure(name, error) from error


def _retrying(name: str) -> dict[str, Any]:
    def warn(state: RetryCallState) -> None:
        error = None if state.outcome is None else state.outcome.exception()
        warnings.warn(
            f"The reward function {name} failed with {type(error).__name__}: {error}. This was attempt "
            f"{state.attempt_number} of {ATTEMPTS}.",
            stacklevel=2,
        )

    return {
        "stop": stop_after_attempt(ATTEMPTS),
        "wait": wait_exponential(FIRST_WAIT_SECONDS, max=_LONGEST_WAIT_SECONDS) + wait_random(0, FIRST_WAIT_SECONDS),
        "retry": retry_if_exception(is_of_the_network),
        "before_sleep": warn,
        "reraise": True,
    }


def _failure(name: str, error: Exception) -> RewardError:
    again = f" (it was called {ATTEMPTS} times)" if is_of_the_network(error) else ""
    return RewardError(f"The reward function {name} failed with {type(error).__name__}: {error}{again}")


def _accepted_arguments(function: RewardFunction, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments that a function accepts."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # functions written in C may have no signature
        return arguments
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return arguments
    named = [parameter for parameter in parameters if parameter.kind is not parameter.VAR_POSITIONAL]
    required = [parameter.name for parameter in named if parameter.default is parameter.empty]
    missing = [required_name for required_name in required if required_name not in arguments]
    if missing:
        raise RewardError(
            f"The reward function {name} needs {', '.join(missing)}, but only {', '.join(arguments)} exist. Rename its "
            "parameters, add the column to the data set, or give the parameter a default."
        )
    return {parameter.name: arguments[parameter.name] for parameter in named if parameter.name in arguments}


def _awaited(results: list[Any], calls: Sequence[Callable[[], Any]], names: Sequence[str]) -> list[Any]:
    if not any(inspect.isawaitable(result) for result in results):
        return results
    future = asyncio.run_coroutine_threadsafe(_gathered(results, calls, names), _event_loop(os.getpid()))
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


async def _gathered(results: list[Any], calls: Sequence[Callable[[], Any]], names: Sequence[str]) -> list[Any]:
    async def awaited(result: Any, call_again: Callable[[], Any], name: str) -> Any:
        pending = [result]  # what the function has already returned; later attempts call it

        async def attempt() -> Any:
            return await (pending.pop() if pending else call_again())

        try:
            return await AsyncRetrying(**_retrying(name))(attempt)
        except MaraError:
            raise
        except Exception as error:
            raise _failure(name, error) from error

    async def unchanged(result: Any) -> Any:
        return result

    triples = zip(results, calls, names, strict=True)
    return await asyncio.gather(
        *(
            awaited(result, call_again, name) if inspect.isawaitable(result) else unchanged(result)
            for result, call_again, name in triples
        )
    )


@lru_cache(maxsize=1)
def _event_loop(process: int) -> asyncio.AbstractEventLoop:
    """The event loop of a process, in a thread of its own.

    A single loop for all calls keeps clients usable that are bound to their loop. A forked process needs its own,
    because threads do not survive a fork.
    """
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name=f"mara-rewards-{process}", daemon=True).start()
    return loop


def scores_of(result: Any, name: str, count: int) -> NDArray[np.float64]:
    """Rewards (n,) from a function's result; NaN for completions it did not score.

    Args:
        result: List, tuple, array or tensor of numbers and None. For NaN, there is a warning with its count: only None
            says clearly that a completion is not scored.
        name: Name of the function, for error messages.
        count: Number n of completions.

    Raises:
        RewardError: If the result has another type or length, or holds an infinite number.
    """
    values = result.tolist() if hasattr(result, "tolist") else result
    if not isinstance(values, list | tuple):
        raise RewardError(f"The reward function {name} returned {type(result).__name__}; return a list of numbers.")
    if len(values) != count:
        raise RewardError(
            f"The reward function {name} returned {len(values)} rewards for {count} completions; "
            "return one for each, None for a completion that is not scored."
        )
    scores = np.array([_score(value, name) for value in values], dtype=np.float64)
    undefined = int(np.isnan(scores).sum()) - sum(value is None for value in values)
    if undefined:
        warnings.warn(
            f"The reward function {name} returned NaN for {undefined} of {count} completions, which count as not "
            "scored. Return None for them if that is meant.",
            stacklevel=2,
        )
    return scores


def _score(value: Any, name: str) -> float:
    number = value.item() if hasattr(value, "item") else value
    if number is None:
        return math.nan
    if not isinstance(number, numbers.Real) or math.isinf(number):
        raise RewardError(f"The reward function {name} returned {value!r} as a reward; return finite numbers or None.")
    return float(number)
