"""Spans of requests, as the in-memory exporter of OpenTelemetry's SDK gets them."""

import sys
from collections.abc import Iterator
from importlib import import_module, reload
from typing import Any

import pytest
from http_servers import Listening, wait_until

from langchain_mara.server.telemetry import spans

pytest.importorskip("opentelemetry.sdk", reason="needs opentelemetry-sdk")
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

SECRET = "wallet"
CALLER = "0af7651916cd43dd8448eb211c80319c"
HEADERS = {"x-request-id": "r-1", "traceparent": f"00-{CALLER}-b7ad6b7169203331-01"}


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """What has been exported; OpenTelemetry's provider is that of this test alone."""
    kept, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    yield kept
    provider.shutdown()


def ask(server: Listening, **more: Any) -> None:
    body = {"model": "m+a", "messages": [{"role": "user", "content": f"a lost {SECRET}"}], **more}
    assert server.http().post("/v1/chat/completions", json=body, headers=HEADERS).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_has_a_span(server: Listening, exporter: InMemorySpanExporter, stream: bool) -> None:
    ask(server, stream=stream, max_tokens=5)
    wait_until(lambda: any(span.name == "chat m+a" for span in exporter.get_finished_spans()))
    [span] = [span for span in exporter.get_finished_spans() if span.name == "chat m+a"]
    assert span.attributes is not None
    assert span.attributes["mara.request_id"] == "r-1"
    assert span.attributes["gen_ai.usage.output_tokens"] == 5
    assert span.attributes["gen_ai.usage.input_tokens"] > 5  # type: ignore[operator]
    assert span.attributes["gen_ai.response.finish_reasons"] == ("length",)
    assert [each.name for each in span.events] == ["first_token"]
    assert f"{span.context.trace_id:032x}" == CALLER  # type: ignore[union-attr]


def test_nothing_that_was_said_is_recorded(exporter: InMemorySpanExporter, server: Listening) -> None:
    server.state.settings.__dict__["log_prompts"] = True
    try:
        ask(server, max_tokens=3)
    finally:
        server.state.settings.__dict__["log_prompts"] = False
    refused = {"model": "m", "messages": [{"role": SECRET, "content": SECRET}]}
    assert server.http().post("/v1/chat/completions", json=refused).status_code == 400
    wait_until(lambda: any(span.name == "chat m+a" for span in exporter.get_finished_spans()))
    assert SECRET not in "".join(span.to_json() for span in exporter.get_finished_spans())


def test_an_answer_that_is_given_up_says_so(exporter: InMemorySpanExporter) -> None:
    span = spans.AnswerSpan("chat", "m", "r-2", {})
    span.end({"finish_reasons": ["stop", None]})
    [ended] = exporter.get_finished_spans()
    assert ended.attributes is not None
    assert ended.attributes["gen_ai.response.finish_reasons"] == ("stop", "cancelled")


def test_without_the_package_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "opentelemetry", None)
        bare = reload(import_module(spans.__name__))
        bare.name_request("r-3")
        span = bare.AnswerSpan("chat", "m", "r-3", {})
        span.first_token()
        span.end({"finish_reasons": ["stop"]})
        assert bare.trace is None
    reload(spans)
