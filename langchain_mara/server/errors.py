"""Errors in OpenAI's form, with the status codes that its clients expect."""

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from langchain_mara.exceptions import (
    GrammarError,
    InterpreterExitError,
    MaraError,
    OptionsError,
    PromptError,
    QueueFullError,
)

RETRY_AFTER = "1"
"""Seconds after which a client that was refused for want of room may try again."""

_OWN = (
    "choice",
    "fallback",
    "gate",
    "grammar",
    "min_p",
    "order",
    "regex",
    "repetition_penalty",
    "strategy",
    "strength",
    "top_k",
)
_NAMES = {
    "max_new_tokens": "max_tokens",
    "accept_threshold": "mara.threshold",
    **{name: f"mara.{name}" for name in _OWN},
}
_OPTION = re.compile(
    r"(?:Invalid options: )?(\w+)=|Invalid options: (\w+) |(\w+) cannot be enforced|.* gave up on (\w+)"
)
_logger = logging.getLogger(__name__)


class ApiError(Exception):
    """An error that a client gets.

    Args:
        status: Status code.
        message: Cause and repair.
        kind: OpenAI's type of the error.
        param: Field of the request that is wrong, if it is one.
        code: OpenAI's code of the error.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.param, self.code = status, message, kind, param, code

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The response with the error object."""
        headers = {401: {"www-authenticate": "Bearer"}, 429: {"retry-after": RETRY_AFTER}}
        headers[503] = headers[429]
        return JSONResponse(self.body, self.status, headers.get(self.status))


def api_error(error: BaseException) -> ApiError:
    """What a client is told of an error. What may say something about the server is left out.

    Args:
        error: Any error.
    """
    if isinstance(error, ApiError):
        return error
    message = str(error)
    if isinstance(error, QueueFullError):
        return ApiError(503, message, kind="server_error", code="queue_full")
    if isinstance(error, InterpreterExitError):
        return ApiError(503, "The server is shutting down. Try again.", kind="server_error", code="draining")
    if isinstance(error, TimeoutError):
        return ApiError(408, message, kind="timeout", code="timeout")
    if isinstance(error, OptionsError | PromptError | GrammarError):
        found = _OPTION.match(message)
        name = next(filter(None, found.groups()), None) if found else None
        unnamed = "response_format" if isinstance(error, GrammarError) else None
        return ApiError(400, message, param=_NAMES.get(name, name) if name else unnamed)
    _logger.error("A request failed", exc_info=error)
    return ApiError(500, "The server failed to answer this request; its log says why.", kind="server_error")


def validation_error(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """The first fault that pydantic found in a request.

    Args:
        errors: Pydantic's list of faults.
    """
    # A value may be one of several types. What is wrong with the right one says more than that it is not the others.
    of_field = [each for each in errors if each["loc"][:2] == errors[0]["loc"][:2]]
    fault = next((each for each in of_field if not each["type"].endswith("_type")), errors[0])
    if fault["type"] == "json_invalid":
        return ApiError(400, f"The body is not valid JSON: {fault.get('ctx', {}).get('error', fault['msg'])}.")
    path = [str(part) for part in fault["loc"] if part != "body" and not _names_a_type(part)]
    param = ".".join(path) or None
    if fault["type"] == "extra_forbidden":
        return ApiError(400, f"Unknown field: {param}.", param=param, code="unknown_parameter")
    if fault["type"] == "missing":
        return ApiError(400, f"{param or 'The body'} is missing.", param=param, code="missing_required_parameter")
    message = str(fault["msg"]).removeprefix("Value error, ").removeprefix("Input ")
    return ApiError(400, f"{param or 'The body'}: {message}.".replace("..", "."), param=param, code="invalid_value")


def _names_a_type(part: Any) -> bool:
    """Whether a part of a path is pydantic's name of one type among several."""
    return isinstance(part, str) and (part in ("str", "int", "bool") or "[" in part or part.startswith("constrained-"))


def handle_errors(app: FastAPI) -> None:
    """Makes an app answer every error in OpenAI's form.

    Args:
        app: The app.
    """

    def on_validation(_: Request, error: Exception) -> JSONResponse:
        return validation_error(getattr(error, "errors", list)()).response()

    def on_http(request: Request, error: Exception) -> JSONResponse:
        if isinstance(error.__cause__, ApiError):  # FastAPI's own error of a body that could not be read
            return error.__cause__.response()
        status = getattr(error, "status_code", 500)
        reason = {404: "There is nothing at", 405: "There is no such method at"}.get(status, str(error))
        return ApiError(status, f"{reason} {request.method} {request.url.path}.", code="unknown_url").response()

    def on_error(_: Request, error: Exception) -> JSONResponse:
        return api_error(error).response()

    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_exception_handler(HTTPException, on_http)
    for kind in (ApiError, MaraError, TimeoutError):
        app.add_exception_handler(kind, on_error)
