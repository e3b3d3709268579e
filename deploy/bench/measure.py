"""What one round of load has shown of one server, and what pairs of such rounds say together.

Pure arithmetic; `deploy.bench.throughput` makes the rounds.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from deploy.bench.load import Stream, percentile
from deploy.bench.sides import EXPERTMESH, VLLM
from deploy.bench.usage import CpuUse
from router.errors import EngineError

COMPARED = (
    "output_tokens_per_s",
    "ttft_p50_s",
    "ttft_p99_s",
    "ttft_outside_engine_s",
    "gap_p50_s",
    "gap_p99_s",
    "resident_bytes",
    "cpu_s_per_token",
)


@dataclass(frozen=True, slots=True)
class RoundId:
    """Which round."""

    model: str
    side: str
    pair: int  # from 1
    clients: int


@dataclass(frozen=True, slots=True)
class Measurement:
    """One round. Percentiles are over its requests, or over all gaps between two chunks."""

    model: str
    side: str
    pair: int
    clients: int
    requests: int
    failed: int
    first_error: str
    output_tokens: int  # of the requests that did not fail
    seconds: float  # from the first request to the last token
    output_tokens_per_s: float
    ttft_p50_s: float
    ttft_p99_s: float
    ttft_outside_engine_s: float  # clients' mean less the engines' own; nan if unknown
    gap_p50_s: float
    gap_p99_s: float
    resident_bytes: int  # of all processes of the server, right after the round
    cpu_s_per_token: float  # of all processes of the server
    elsewhere_cores: float  # busy, on average, with neither the server nor the client
    start_s: float  # from the server's start to its first token


@dataclass(frozen=True, slots=True)
class Comparison:
    """One quantity at one number of clients, over all pairs."""

    model: str
    clients: int
    quantity: str  # a field of Measurement
    vllm: float  # median
    expertmesh: float  # median
    ratio: float  # of ExpertMesh to vLLM, median of the pairs' ratios
    ratio_min: float
    ratio_max: float
    pairs: int


def measure(
    which: RoundId,
    streams: Sequence[Stream],
    *,
    engine_ttft_s: float,
    resident_bytes: int,
    cpu: CpuUse,
    start_s: float,
) -> Measurement:
    """Put one round into numbers. engine_ttft_s: mean, by the engines' own account.

    Raises EngineError if every request failed.
    """
    good = [stream for stream in streams if not stream.failed]
    errors = [stream.error for stream in streams if stream.failed]
    if not good:
        raise EngineError(
            f"{which.side} answered none of {len(streams)} requests: {errors[0] if errors else ''}"
        )
    tokens = sum(stream.tokens for stream in good)
    seconds = max(s.arrivals_s[-1] for s in good) - min(s.started_s for s in streams)
    ttfts = [stream.ttft_s for stream in good]
    gaps = [gap for stream in good for gap in stream.gaps_s]
    return Measurement(
        which.model,
        which.side,
        which.pair,
        which.clients,
        requests=len(streams),
        failed=len(errors),
        first_error=errors[0] if errors else "",
        output_tokens=tokens,
        seconds=seconds,
        output_tokens_per_s=tokens / seconds,
        ttft_p50_s=percentile(ttfts, 50),
        ttft_p99_s=percentile(ttfts, 99),
        ttft_outside_engine_s=float(np.mean(ttfts)) - engine_ttft_s,
        gap_p50_s=percentile(gaps, 50),
        gap_p99_s=percentile(gaps, 99),
        resident_bytes=resident_bytes,
        cpu_s_per_token=cpu.server_s / tokens,
        elsewhere_cores=cpu.elsewhere_cores,
        start_s=start_s,
    )


def compare(measurements: Iterable[Measurement]) -> list[Comparison]:
    """Medians and ratios of the pairs of which both sides are there."""
    found = {(m.model, m.clients, m.pair, m.side): m for m in measurements}
    comparisons: list[Comparison] = []
    for model, clients in dict.fromkeys((key[0], key[1]) for key in found):
        pairs = [
            (mine, other)
            for (m, c, pair, side), mine in found.items()
            if (m, c, side) == (model, clients, EXPERTMESH)
            and (other := found.get((model, clients, pair, VLLM))) is not None
        ]
        if pairs:
            comparisons += [_compare(model, clients, quantity, pairs) for quantity in COMPARED]
    return comparisons


def _compare(
    model: str, clients: int, quantity: str, pairs: Sequence[tuple[Measurement, Measurement]]
) -> Comparison:
    mine = np.array([getattr(ours, quantity) for ours, _ in pairs], dtype=np.float64)
    theirs = np.array([getattr(plain, quantity) for _, plain in pairs], dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(theirs > 0, mine / theirs, math.nan)
    return Comparison(
        model,
        clients,
        quantity,
        vllm=float(np.median(theirs)),
        expertmesh=float(np.median(mine)),
        ratio=float(np.median(ratios)),
        ratio_min=float(ratios.min()),
        ratio_max=float(ratios.max()),
        pairs=len(pairs),
    )
