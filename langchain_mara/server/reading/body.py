"""Reads a body as JSON, and refuses what no answer could repeat: NaN, halves of characters, endless nesting."""

import json
from collections.abc import Callable, Coroutine
from math import isfinite
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from langchain_mara.server.errors import ApiError


class ReadingRoute(APIRoute):
    """A path whose requests are read here."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler of the path."""
        handle = super().get_route_handler()

        async def read(request: Request) -> Response:
            if self.body_field is not None:
                await _check_type(request)
            return await handle(_Reading(request.scope, request.receive))

        return read


class _Reading(Request):
    async def json(self) -> Any:
        return parsed(await self.body())


async def _check_type(request: Request) -> None:
    """Refuses bodies that are not marked as JSON: a page of another site may send those without asking first."""
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given != "application/json" and not given.endswith("+json"):
        message = f"The body is marked as {given or 'nothing'!r:.100}. Send JSON with `Content-Type: application/json`."
        raise ApiError(415, message, code="unsupported_content_type")


def parsed(body: bytes) -> Any:
    """The value that a body holds.

    Args:
        body: The body.

    Raises:
        ApiError: If it is JSON that cannot be repeated.
        JSONDecodeError: If it is no JSON.
    """
    try:
        value = json.loads(body, parse_constant=_refuse, parse_float=_finite)
        return _whole(value) if b"\\u" in body or b"\xed" in body else value
    except RecursionError:
        raise ApiError(400, "The body is nested too deeply.") from None
    except json.JSONDecodeError:
        raise
    except UnicodeDecodeError as error:
        raise ApiError(400, f"The body is not UTF-8: {error.reason} at byte {error.start}.") from None
    except ValueError:  # Python's limit of digits
        raise ApiError(400, "The body holds a number of too many digits.") from None


def _refuse(constant: str) -> None:
    raise ApiError(400, f"The body is not valid JSON: it holds {constant:.30}, which is no number of JSON.")


def _finite(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        _refuse(text)
    return number


def _whole(value: Any) -> Any:
    """The value, if all its texts are of whole characters."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        path = _path_of_half(value) or []
        half = f"{error.object[error.start]!a}, a lone surrogate, which is half of a character"
        message = (
            f"{'.'.join(path) or 'The body'} holds {half}. Text was cut inside an escape or an emoji; send it whole."
        )
        raise ApiError(400, message, param=".".join(path) or None, code="invalid_value") from None
    return value


def _path_of_half(value: Any) -> list[str] | None:
    """Where the first half of a character is: the path to the text, or to the object with such a name."""
    if isinstance(value, str):
        return None if _is_whole(value) else []
    if isinstance(value, dict) and not all(map(_is_whole, value)):
        return []
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, each in items:
        if (path := _path_of_half(each)) is not None:
            return [str(name), *path]
    return None


def _is_whole(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)
