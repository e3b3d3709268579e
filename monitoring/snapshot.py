"""All that can be told at one moment: the controller makes it, the gateway renders it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from monitoring.metric import Metric
from monitoring.metrics import METRICS
from monitoring.totals import Values

PerExpert = Literal["full", "top", "off"]
TOP = 10  # experts of each layer whose series are shown by `top`


@dataclass(frozen=True, slots=True)
class Snapshot:
    """values: by metric and first labels; the other labels are indices of the arrays.

    recent_rows: [L, E] rows of each expert lately, which decide who is hottest; None for no
    traffic.
    """

    values: Values
    recent_rows: NDArray[np.float64] | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One series. value: a number, or a histogram's counts by bucket and the sum."""

    labels: tuple[str, ...]
    value: NDArray[np.float64]


def samples(snapshot: Snapshot, per_expert: PerExpert) -> Iterator[tuple[Metric, list[Sample]]]:
    """Every metric that has values, in the order of their declaration."""
    by_name: dict[str, list[tuple[tuple[str, ...], NDArray[np.float64]]]] = {}
    for key, value in snapshot.values.items():
        by_name.setdefault(key[0], []).append((key[1:], value))
    for name, metric in METRICS.items():
        if name not in by_name or (metric.is_per_expert and per_expert == "off"):
            continue
        shown = None
        if metric.is_per_expert and per_expert == "top":
            shown = hottest(by_name[name][0][1], snapshot.recent_rows)
        yield metric, [s for labels, v in by_name[name] for s in _split(metric, labels, v, shown)]


def hottest(
    values: NDArray[np.float64], recent_rows: NDArray[np.float64] | None, count: int = TOP
) -> NDArray[np.bool_]:
    """[L, E] bool, the `count` experts of each layer with most rows lately.

    values: [L, E]; without traffic the experts with the lowest numbers are taken.
    """
    n_experts = values.shape[1]
    if n_experts <= count:
        return np.ones(values.shape, np.bool_)
    loads = recent_rows if recent_rows is not None else np.zeros(values.shape)
    first = np.argsort(-loads, axis=1, kind="stable")[:, :count]
    shown = np.zeros(values.shape, np.bool_)
    np.put_along_axis(shown, first, True, axis=1)
    return shown


def _split(
    metric: Metric,
    labels: tuple[str, ...],
    value: NDArray[np.float64],
    shown: NDArray[np.bool_] | None,
) -> Iterator[Sample]:
    """One sample for each cell of the array."""
    if metric.kind == "histogram" or value.ndim == 0:
        yield Sample(labels, value)
        return
    for index in np.ndindex(value.shape):
        if shown is None or shown[index]:
            yield Sample((*labels, *map(str, index)), value[index])
