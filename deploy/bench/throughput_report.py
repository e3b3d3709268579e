"""What `bench throughput` was asked and what it answers: for the file, and for the one who reads.

The measuring is `deploy.bench.throughput`'s.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deploy.bench.measure import Comparison, Measurement, compare
from deploy.bench.report import Circumstances, describe, markdown_table
from deploy.bench.sides import EXPERTMESH, VLLM, EngineSetup

ENOUGH_PAIRS = 3
BUSY_CORES = 0.2
HEAD = ("clients", "quantity", VLLM, EXPERTMESH, "ratio", "of the pairs")


@dataclass(frozen=True, slots=True)
class Model:
    """What is served."""

    name: str
    folder: Path


@dataclass(frozen=True, slots=True)
class ThroughputOptions:
    """What is measured."""

    models: tuple[Model, ...]
    clients: tuple[int, ...]
    pairs: int
    requests: int  # of a round, at least
    requests_per_client: int  # of a round, at least
    prompt_tokens: int
    max_tokens: int
    seed: int  # of the prompts and of the random model
    engine: EngineSetup
    json_file: Path


@dataclass(frozen=True, slots=True)
class ThroughputReport:
    """What is written."""

    benchmark: str
    circumstances: Circumstances
    settings: Mapping[str, Any]
    is_complete: bool  # False in what an interrupted run leaves
    measurements: tuple[Measurement, ...]
    comparisons: tuple[Comparison, ...]


@dataclass(frozen=True, slots=True)
class Shown:
    """A quantity as people read it."""

    title: str
    factor: float
    form: str = ".1f"


SHOWN = {
    "output_tokens_per_s": Shown("output tok/s", 1),
    "ttft_p50_s": Shown("TTFT p50, ms", 1e3),
    "ttft_p99_s": Shown("TTFT p99, ms", 1e3),
    "ttft_outside_engine_s": Shown("of TTFT outside the engine, mean, ms", 1e3),
    "gap_p50_s": Shown("between tokens p50, ms", 1e3),
    "gap_p99_s": Shown("between tokens p99, ms", 1e3),
    "resident_bytes": Shown("resident, MiB", 2.0**-20, ",.0f"),
    "cpu_s_per_token": Shown("CPU per token, ms", 1e3),
}


def report_of(
    options: ThroughputOptions,
    around: Circumstances,
    measurements: Sequence[Measurement],
    *,
    is_complete: bool,
) -> ThroughputReport:
    """All that is known so far."""
    return ThroughputReport(
        benchmark="throughput",
        circumstances=around,
        settings=asdict(options),
        is_complete=is_complete,
        measurements=tuple(measurements),
        comparisons=tuple(compare(measurements)),
    )


def told(one: Measurement) -> str:
    """One round in a line."""
    failed = f"; {one.failed} of {one.requests} failed: {one.first_error}" if one.failed else ""
    return (
        f"  {one.output_tokens_per_s:.1f} tok/s, TTFT {1000 * one.ttft_p50_s:.0f} ms, "
        f"between tokens {1000 * one.gap_p50_s:.1f} ms, "
        f"{one.resident_bytes / 2**20:,.0f} MiB{failed}"
    )


def text_of(report: ThroughputReport) -> str:
    """Circumstances, and a table for each model."""
    return "\n\n".join(_parts(report)) + "\n"


def _parts(report: ThroughputReport) -> Iterator[str]:
    yield describe(report.circumstances)
    yield (
        f"pairs, one after the other: {report.settings['pairs']}; figures are medians; ratio: "
        f"{EXPERTMESH} to {VLLM}, median of the pairs' ratios, and their range"
    )
    if report.settings["pairs"] < ENOUGH_PAIRS:
        yield f"fewer than {ENOUGH_PAIRS} pairs: a trial, not a result"
    if failed := sum(one.failed for one in report.measurements):
        yield f"{failed} requests failed, and are in no figure"
    busy = max((one.elsewhere_cores for one in report.measurements), default=0.0)
    if busy > BUSY_CORES:
        yield f"something else kept up to {busy:.1f} cores busy in a round: repeat it undisturbed"
    for model in dict.fromkeys(each.model for each in report.comparisons):
        rows = [_row(each) for each in report.comparisons if each.model == model]
        yield f"{model}\n\n{markdown_table(HEAD, rows, labels=2)}"


def _row(one: Comparison) -> tuple[str, ...]:
    shown = SHOWN[one.quantity]
    values = (f"{value * shown.factor:{shown.form}}" for value in (one.vllm, one.expertmesh))
    spread = f"{one.ratio_min:.2f}-{one.ratio_max:.2f}"
    return (str(one.clients), shown.title, *values, f"{one.ratio:.2f}", spread)
