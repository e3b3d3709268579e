"""How long first tokens took by the engines' own account, from `/metrics` of either side.

An engine's clock starts when its server has read the request and ends when the token is out of
the engine: what a client waits longer than that is on the way, in front of the engine and after it.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import httpx
from prometheus_client.parser import text_string_to_metric_families

from router.errors import EngineError

NAMES = ("vllm:time_to_first_token_seconds", "expertmesh_engine_ttft_seconds")
TIMEOUT_S = 10.0
POLL_S = 0.5
SETTLED_S = 2.5  # ExpertMesh's processes report every 2 s at the latest
PATIENCE_S = 20.0


@dataclass(frozen=True, slots=True)
class EngineTtft:
    """First tokens of engines since they started."""

    total_s: float
    count: int

    def mean_since(self, before: "EngineTtft", requests: int) -> float:
        """Seconds, of exactly so many requests; nan if the engines counted another number."""
        if requests < 1 or self.count - before.count != requests:
            return float("nan")
        return (self.total_s - before.total_s) / requests


def settled_ttft(urls: Sequence[str]) -> EngineTtft:
    """The servers' sum, once nothing is added to it any more.

    Raises EngineError if a server does not answer.
    """
    end_s = time.monotonic() + PATIENCE_S
    found, since_s = _read(urls), time.monotonic()
    while time.monotonic() < min(end_s, since_s + SETTLED_S):
        time.sleep(POLL_S)
        if (now := _read(urls)) != found:
            found, since_s = now, time.monotonic()
    return found


def _read(urls: Sequence[str]) -> EngineTtft:
    found = [read_ttft(_text(url)) for url in urls]
    return EngineTtft(sum(each.total_s for each in found), sum(each.count for each in found))


def _text(url: str) -> str:
    try:
        answer = httpx.get(f"{url}/metrics", timeout=TIMEOUT_S, trust_env=False)
        return answer.raise_for_status().text
    except httpx.HTTPError as error:
        raise EngineError(f"{url}/metrics: {error!r}") from error


def read_ttft(text: str) -> EngineTtft:
    """Out of one exposition in Prometheus' text format; zeros if it has no such histogram."""
    total_s, count = 0.0, 0.0
    for family in text_string_to_metric_families(text):
        if family.name in NAMES:
            for sample in family.samples:
                total_s += sample.value if sample.name.endswith("_sum") else 0.0
                count += sample.value if sample.name.endswith("_count") else 0.0
    return EngineTtft(total_s, round(count))
