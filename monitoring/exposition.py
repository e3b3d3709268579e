"""A snapshot as text that Prometheus reads."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.registry import Collector

from monitoring.metric import Metric
from monitoring.metrics import METRICS
from monitoring.snapshot import PerExpert, Sample, Snapshot, samples
from monitoring.totals import number

UP = "expertmesh_controller_up"
Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily


class SnapshotCollector(Collector):
    """Renders one snapshot; None: the controller did not answer, and only that is said."""

    def __init__(self, snapshot: Snapshot | None, per_expert: PerExpert) -> None:
        self._snapshot = snapshot
        self._per_expert = per_expert

    def collect(self) -> Iterator[Family]:
        """As prometheus_client asks for it."""
        is_up = self._snapshot is not None
        yield _family(METRICS[UP], [Sample((), number(float(is_up)))])
        if self._snapshot is not None:
            for metric, found in samples(self._snapshot, self._per_expert):
                yield _family(metric, found)


def exposition(snapshot: Snapshot | None, per_expert: PerExpert) -> bytes:
    """The text of one scrape."""
    registry = CollectorRegistry()
    registry.register(SnapshotCollector(snapshot, per_expert))
    return generate_latest(registry)


def _family(metric: Metric, found: list[Sample]) -> Family:
    if metric.kind == "histogram":
        histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
        for sample in found:
            histogram.add_metric(sample.labels, *_buckets(metric, sample.value))
        return histogram
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = kind(metric.name, metric.help, labels=metric.labels)
    for sample in found:
        family.add_metric(sample.labels, float(sample.value))
    return family


def _buckets(metric: Metric, value: NDArray[np.float64]) -> tuple[list[tuple[str, float]], float]:
    """(upper bound, requests up to it), and the sum."""
    bounds = [*map(str, metric.buckets), "+Inf"]
    return list(zip(bounds, np.cumsum(value[:-1]).tolist(), strict=True)), float(value[-1])
