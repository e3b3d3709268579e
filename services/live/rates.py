"""What counters say of the time between two looks at them. Pure."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from monitoring.metrics import METRICS
from monitoring.totals import Key, Values


@dataclass(frozen=True, slots=True)
class Mark:
    """Figures of one moment. at_s: of the monotonic clock."""

    at_s: float
    values: Values

    def for_later(self) -> "Mark":
        """What later marks are compared with: without the large arrays by layer and expert."""
        kept = {k: v for k, v in self.values.items() if "layer" not in METRICS[k[0]].labels}
        return Mark(self.at_s, kept)


def growth(now: Mark, before: Mark | None, key: Key) -> NDArray[np.float64] | None:
    """By how much a total has grown; None if that is not known, or the controller began anew."""
    value = now.values.get(key)
    if value is None or before is None or before.at_s >= now.at_s:
        return None
    was = before.values.get(key)
    grown = value - was if was is not None and was.shape == value.shape else value
    return None if (grown < 0).any() else grown


def per_second(now: Mark, before: Mark | None, key: Key) -> float | None:
    """A counter's rate."""
    grown = growth(now, before, key)
    return None if grown is None or before is None else float(grown) / (now.at_s - before.at_s)


def quantile(now: Mark, before: Mark | None, name: str, share: float) -> float | None:
    """Of what a histogram has counted in between; linear within a bucket; None for nothing.

    share: 0 to 1. What lies above the last bound is taken for that bound, as Prometheus does.
    """
    grown = growth(now, before, (name,))
    if grown is None or not grown[:-1].any():
        return None
    bounds = np.array([0.0, *METRICS[name].buckets])
    counts = np.cumsum(grown[:-1])
    wanted = share * counts[-1]
    bucket = int(np.searchsorted(counts, wanted))
    if bucket >= len(bounds) - 1:
        return float(bounds[-1])
    below = counts[bucket - 1] if bucket else 0.0
    part = (wanted - below) / (counts[bucket] - below)
    return float(bounds[bucket] + part * (bounds[bucket + 1] - bounds[bucket]))


def over_places(now: Mark, name: str) -> float | None:
    """A gauge of all replicas together; None if nobody reports it."""
    found = [float(value) for key, value in now.values.items() if key[0] == name]
    return sum(found) if found else None
