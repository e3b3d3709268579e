"""vLLM's own figures, in our metrics' names: vLLM 0.32 keeps them in this process's registry.

They are what the engine did, token by token, and so what clients are told as usage. An engine
that was given `disable_log_stats` keeps none, and then there are none here; with
bounds of histograms overridden, its histograms are not exported.
"""

import logging

import numpy as np
from numpy.typing import NDArray
from prometheus_client import REGISTRY, CollectorRegistry, Metric

from monitoring.metric import PREFIX
from monitoring.metrics import METRICS
from monitoring.totals import Key, number

log = logging.getLogger(__name__)

COUNTERS = {
    "vllm:prompt_tokens": "prompt_tokens_total",
    "vllm:generation_tokens": "output_tokens_total",
    "vllm:num_preemptions": "engine_preemptions_total",
}
HISTOGRAMS = {
    "vllm:time_to_first_token_seconds": "engine_ttft_seconds",
    "vllm:inter_token_latency_seconds": "inter_token_seconds",
}
STATES = {
    "vllm:num_requests_running": "engine_running_requests",
    "vllm:num_requests_waiting": "engine_waiting_requests",
    "vllm:kv_cache_usage_perc": "kv_cache_used_ratio",  # vLLM's name says percent, its value 0-1
}
SAMPLES = (
    *(f"{name}_total" for name in COUNTERS),
    *STATES,
    *(f"{name}{end}" for name in HISTOGRAMS for end in ("_bucket", "_sum")),
)
Numbers = dict[Key, NDArray[np.float64]]


class EngineNumbers:
    """Reads the engine's figures."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._registry = registry
        self._has_warned = False

    def read(self) -> tuple[Numbers, Numbers]:
        """(totals, states) of the engine; empty before it has started."""
        totals: Numbers = {}
        states: Numbers = {}
        for family in self._registry.restricted_registry(SAMPLES).collect():
            if name := COUNTERS.get(family.name):
                totals[PREFIX + name,] = _sum(family, "_total")
            elif name := STATES.get(family.name):
                states[PREFIX + name,] = _sum(family, "")
            elif name := HISTOGRAMS.get(family.name):
                totals |= self._histogram(family, PREFIX + name)
        return totals, states

    def _histogram(self, family: Metric, name: str) -> Numbers:
        """[buckets + 2], as `monitoring.totals` has it; nothing if it has other bounds."""
        buckets: dict[float, float] = {}
        for sample in family.samples:
            if sample.name.endswith("_bucket"):
                bound = float(sample.labels["le"])
                buckets[bound] = buckets.get(bound, 0.0) + sample.value
        bounds = tuple(sorted(buckets))
        if bounds[:-1] != METRICS[name].buckets:
            if not self._has_warned:
                log.warning("%s is not exported: %s has bounds %s", name, family.name, bounds)
            self._has_warned = True
            return {}
        counts = np.diff([buckets[bound] for bound in bounds], prepend=0.0)
        return {(name,): np.append(counts, _sum(family, "_sum"))}


def _sum(family: Metric, suffix: str) -> NDArray[np.float64]:
    wanted = family.name + suffix
    return number(sum(sample.value for sample in family.samples if sample.name == wanted))
