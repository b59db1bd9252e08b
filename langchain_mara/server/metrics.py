"""Figures of a server in Prometheus' form."""

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from langchain_mara.policy.model import PolicyModel
from langchain_mara.serving.completion import Completion
from langchain_mara.serving.scheduler import Scheduler

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class RequestMetrics:
    """What a process counts of requests, whoever computes the answers."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("mara_requests", "Requests that have ended", ["path", "status"], registry=registry)
        self.in_flight = Gauge("mara_requests_in_flight", "Requests that are being answered", registry=registry)

    def text(self) -> bytes:
        """All figures."""
        return generate_latest(self._registry)


class Metrics(RequestMetrics):
    """What a server counts.

    Args:
        policy: The loaded model, whose queue and batch are shown.
    """

    def __init__(self, policy: PolicyModel) -> None:
        super().__init__()
        registry = self._registry
        self._tokens = Counter("mara_tokens", "Tokens of prompts and answers", ["model", "kind"], registry=registry)
        self._first = Histogram(
            "mara_first_token_seconds", "Time until the first token", buckets=_SECONDS, registry=registry
        )
        self._seconds = Histogram("mara_answer_seconds", "Time of whole answers", buckets=_SECONDS, registry=registry)
        self._candidates = Counter(
            "mara_candidates", "Candidates that the agent examined", ["what_became"], registry=registry
        )
        self._positions = Counter("mara_positions", "Positions by how they were decided", ["how"], registry=registry)
        registry.register(_Queue(policy))

    def begun(self, seconds: float) -> None:
        """Counts the first token of a request.

        Args:
            seconds: Time since the request arrived.
        """
        self._first.observe(seconds)

    def ended(self, model: str, completions: list[Completion], usage: dict[str, Any], seconds: float) -> None:
        """Counts the answers to a request, however they ended.

        Args:
            model: Name of the model.
            completions: The answers.
            usage: Their numbers of tokens.
            seconds: Time since the request arrived.
        """
        self._seconds.observe(seconds)
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        for kind, count in (
            ("prompt", usage["prompt_tokens"]), ("cached", cached), ("answer", usage["completion_tokens"]),
        ):  # fmt: skip
            self._tokens.labels(model, kind).inc(count)
        for completion in completions:
            counts = completion.statistics
            accepted = counts.decided - counts.fallbacks
            self._candidates.labels("emitted").inc(accepted)
            self._candidates.labels("passed_over").inc(max(0, counts.examined - accepted))
            self._positions.labels("accepted").inc(accepted)
            self._positions.labels("fallback").inc(counts.fallbacks)
            self._positions.labels("skipped").inc(counts.skipped)


class _Queue(Collector):
    """The queue, the batch and the prefix cache of a loaded model, at the time of asking."""

    def __init__(self, policy: PolicyModel) -> None:
        self._policy = policy

    def collect(self) -> Iterator[Metric]:
        load = Scheduler.of(self._policy).load()
        yield GaugeMetricFamily("mara_queue", "Prompts that wait for a place in the batch", value=load.waiting)
        yield GaugeMetricFamily("mara_batch_rows", "Sequences in the running batch", value=load.running)
        yield CounterMetricFamily("mara_passes", "Passes of the model", value=load.passes)
        kept = self._policy.loaded.kept_prefixes
        yield GaugeMetricFamily("mara_prefix_bytes", "Bytes of kept prefixes", value=kept.size)
        yield CounterMetricFamily("mara_prefix_evictions", "Blocks of prefixes that were dropped", value=kept.evicted)
