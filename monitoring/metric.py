"""What a metric is, how one is declared, and the bounds of histograms; `metrics` declares all."""

from dataclasses import dataclass
from typing import Literal

PREFIX = "expertmesh_"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. name: as in dashboards, so counters end in `_total`.

    help: what it is. question: what an operator learns from it.
    buckets: upper bounds of a histogram, without +Inf.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    question: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def is_per_expert(self) -> bool:
        """Whether `monitoring.per_expert` decides about its series."""
        return "expert" in self.labels


# vLLM 0.32's own bounds of what the engine measures; the counts are taken over as they are.
ENGINE_TTFT_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
INTER_TOKEN_S = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
TTFT_S = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 40.0, 80.0)
REQUEST_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0)
DISPATCH_S = (
    *(0.0002, 0.0005, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0),
)


def counter(name: str, help_: str, question: str, *labels: str) -> Metric:
    return Metric(f"{PREFIX}{name}_total", "counter", help_, question, labels)


def gauge(name: str, help_: str, question: str, *labels: str) -> Metric:
    return Metric(f"{PREFIX}{name}", "gauge", help_, question, labels)


def histogram(name: str, help_: str, question: str, buckets: tuple[float, ...]) -> Metric:
    return Metric(f"{PREFIX}{name}", "histogram", help_, question, (), buckets)
