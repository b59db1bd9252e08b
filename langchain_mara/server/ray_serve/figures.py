"""What a process in front of replicas counts, and what they have counted, each under a label with its name."""

from collections.abc import Iterator

from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from langchain_mara.server.metrics import RequestMetrics

_OWN = ("mara_requests", "mara_requests_in_flight")


class FrontMetrics(RequestMetrics):
    """Requests as this process sees them, and counts of the replicas as of the last answer of each.

    What is not a count, such as the length of a queue, is left out: it would be of another moment.
    """

    def __init__(self) -> None:
        super().__init__()
        self._heard = _Heard()
        self._registry.register(self._heard)

    def heard(self, replica: str, figures: str) -> None:
        """Takes what a replica has counted so far.

        Args:
            replica: Its name.
            figures: Its figures in Prometheus' form.
        """
        self._heard.by_replica[replica] = figures


class _Heard(Collector):
    def __init__(self) -> None:
        self.by_replica: dict[str, str] = {}

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for replica, text in self.by_replica.items():
            for family in text_string_to_metric_families(text):
                if family.name in _OWN or family.type == "gauge":
                    continue
                merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    merged.add_sample(sample.name, {**sample.labels, "replica": replica}, sample.value)
        yield from families.values()
