"""Errors as clients get them."""

import logging

import pytest

from langchain_mara.exceptions import (
    GrammarError,
    InterpreterExitError,
    NonFiniteError,
    OptionsError,
    PromptError,
    QueueFullError,
)
from langchain_mara.server.errors import ApiError, api_error


@pytest.mark.parametrize(
    ("error", "status", "param", "code"),
    [
        (QueueFullError("full"), 503, None, "queue_full"),
        (InterpreterExitError("over"), 503, None, "draining"),
        (TimeoutError("late"), 408, None, "timeout"),
        (OptionsError("Invalid options: top_p=2 should be less."), 400, "top_p", None),
        (OptionsError("Invalid options: accept_threshold=2 should be less."), 400, "mara.threshold", None),
        (OptionsError("Give one."), 400, None, None),
        (GrammarError("no schema"), 400, "response_format", None),
        (PromptError("empty"), 400, None, None),
        (NonFiniteError("NaN"), 500, None, None),
        (RuntimeError("secret"), 500, None, None),
    ],
)
def test_statuses(error: Exception, status: int, param: str | None, code: str | None) -> None:
    told = api_error(error)
    assert (told.status, told.param, told.code) == (status, param, code)
    assert told.body["error"]["message"] == told.message
    assert ("retry-after" in told.response().headers) is (status == 503)


def test_what_failed_is_logged_and_not_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        told = api_error(RuntimeError("secret"))
    assert "secret" in caplog.text
    assert "secret" not in str(told.body)


def test_an_error_for_clients_stays_as_it_is() -> None:
    error = ApiError(401, "no", code="invalid_api_key")
    assert api_error(error) is error
    assert error.response().headers["www-authenticate"] == "Bearer"
