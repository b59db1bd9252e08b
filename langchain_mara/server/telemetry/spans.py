"""Spans of answers for OpenTelemetry, if its package is there. They never hold prompts or answers."""

from collections.abc import Mapping
from typing import Any

try:
    from opentelemetry import propagate, trace
except ImportError:  # older versions of FastAPI do without it
    trace = None  # type: ignore[assignment]

_REQUEST_ID = "mara.request_id"
_ATTRIBUTES = {
    "model": "gen_ai.request.model",
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "completion_tokens": "gen_ai.usage.output_tokens",
}
"""What is noted of an answer, under OpenTelemetry's names. All else stays out of spans."""


def name_request(request_id: str) -> None:
    """Gives the span of the HTTP request, which FastAPI makes, its id.

    Args:
        request_id: The id.
    """
    if trace is not None:
        trace.get_current_span().set_attribute(_REQUEST_ID, request_id)


class AnswerSpan:
    """The span of the answers to one request, from its queueing to its end; does nothing without OpenTelemetry.

    Args:
        operation: What is done: `chat` or `text_completion`.
        model: Name of the model.
        request_id: Id of the request.
        headers: Headers of the request, which may name the caller's span.
    """

    def __init__(self, operation: str, model: str, request_id: str, headers: Mapping[str, str]) -> None:
        self._span: Any = None
        if trace is None:
            return
        # FastAPI's own span of the request comes between, where its version makes one.
        within = None if trace.get_current_span().get_span_context().is_valid else propagate.extract(headers)
        self._span = trace.get_tracer("langchain_mara").start_span(
            f"{operation} {model}",
            within,
            attributes={_REQUEST_ID: request_id, "gen_ai.operation.name": operation, "gen_ai.request.model": model},
        )

    def first_token(self) -> None:
        """Notes that the first token is there."""
        if self._span is not None:
            self._span.add_event("first_token")

    def end(self, noted: Mapping[str, Any]) -> None:
        """Ends the span.

        Args:
            noted: What is noted of the answers: numbers of tokens, finish reasons.
        """
        if self._span is None:
            return
        for name, attribute in _ATTRIBUTES.items():
            if name in noted:
                self._span.set_attribute(attribute, noted[name])
        # An answer that was given up has no reason.
        reasons = [reason or "cancelled" for reason in noted.get("finish_reasons", ())]
        self._span.set_attribute("gen_ai.response.finish_reasons", reasons)
        self._span.end()
