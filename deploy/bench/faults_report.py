"""What `bench faults` answers: for the file, and for the one who reads.

The striking is `deploy.bench.faults`'s, the shifting of load `deploy.bench.shift`'s.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from deploy.bench.load import Stream, percentile
from deploy.bench.report import Circumstances, describe, markdown_table

HEAD = (
    "scenario",
    "sent",
    "failed",
    "same text",
    "longest stall, s",
    "p99 ratio",
    "whole again after, s",
    "max/mean before",
    "after",
    "optimum",
)


@dataclass(frozen=True, slots=True)
class FaultResult:
    """One scenario. nan: it does not apply.

    same_text: requests whose greedy text equals the undisturbed run's, of `compared`.
    p99_ratio: of the time between chunks, against the undisturbed run, or before the moves.
    imbalance: maximum over mean load of the shards, mean over layers.
    """

    scenario: str
    sent: int
    failed: int
    same_text: int
    compared: int
    longest_stall_s: float
    p99_ratio: float = math.nan
    whole_again_s: float = math.nan
    imbalance_before: float = math.nan
    imbalance_after: float = math.nan
    imbalance_optimum: float = math.nan
    errors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FaultReport:
    """What is written."""

    benchmark: str
    circumstances: Circumstances
    application: str
    shards: int
    redundancy: int
    clients: int
    is_complete: bool
    results: tuple[FaultResult, ...]


def summarise(
    scenario: str, streams: Sequence[Stream], calm: Sequence[Stream], **more: float
) -> FaultResult:
    """A scenario's streams beside the undisturbed ones, which had the same prompts."""
    texts = {stream.prompt: stream.text for stream in calm}
    compared = [stream for stream in streams if stream.prompt in texts]
    calm_p99_s = percentile([gap for stream in calm for gap in stream.gaps_s], 99)
    p99_s = percentile([gap for stream in streams for gap in stream.gaps_s], 99)
    values = {"p99_ratio": p99_s / calm_p99_s} | more
    return FaultResult(
        scenario,
        sent=len(streams),
        failed=sum(stream.failed for stream in streams),
        same_text=sum(stream.text == texts[stream.prompt] for stream in compared),
        compared=len(compared),
        longest_stall_s=max((stream.longest_gap_s for stream in streams), default=0.0),
        errors=tuple(sorted({stream.error for stream in streams if stream.error}))[:3],
        **values,
    )


def text_of(report: FaultReport) -> str:
    """A table, with what must be known to repeat it."""
    rows = [_row(result) for result in report.results]
    return "\n".join(
        (
            describe(report.circumstances),
            f"served by {report.application}: {report.shards} shards, redundancy "
            f"{report.redundancy}; {report.clients} clients",
            "",
            markdown_table(HEAD, rows),
            *(f"{r.scenario}: {error}" for r in report.results for error in r.errors),
        )
    )


def _row(result: FaultResult) -> tuple[str, ...]:
    return (
        result.scenario,
        str(result.sent),
        str(result.failed),
        f"{result.same_text} of {result.compared}",
        _number(result.longest_stall_s),
        _number(result.p99_ratio),
        _number(result.whole_again_s),
        _number(result.imbalance_before),
        _number(result.imbalance_after),
        _number(result.imbalance_optimum),
    )


def _number(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "–"
