"""What `bench scale` answers: shards over time, what clients noticed, and what it saved."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.bench.load import Stream, percentile
from deploy.bench.report import Circumstances, describe, markdown_table
from router.errors import ConfigError

HEAD = ("requests/s", "from, s", "to, s", "requests", "failed", "TTFT p50, ms", "p95", "tokens/s")
WIDTH, HEIGHT = 9.0, 7.0  # inches


@dataclass(frozen=True, slots=True)
class Phase:
    """Some time with so many requests a second, which may end later.

    Times are since the beginning of the run, which was at `began_s` of the streams' clock.
    """

    rate: float
    start_s: float
    end_s: float
    began_s: float
    streams: tuple[Stream, ...]


@dataclass(frozen=True, slots=True)
class Look:
    """One moment. shards, replicas: of Serve, those that start or stop included."""

    at_s: float
    shards: int
    serving_shards: int
    replicas: int
    redundancy: int
    scaling: tuple[str, ...]  # what the controller wants, and why


@dataclass(frozen=True, slots=True)
class PhaseResult:
    """What clients saw of a phase; nan without requests."""

    rate: float
    start_s: float
    end_s: float
    requests: int
    failed: int
    ttft_p50_s: float
    ttft_p95_s: float
    tokens_per_s: float
    errors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ScaleReport:
    """What is written.

    shard_seconds: of the pool. ratio: of those to what a fixed pool of `most_shards`, the most
    there were, would have used.
    """

    benchmark: str
    circumstances: Circumstances
    application: str
    phases: tuple[PhaseResult, ...]
    looks: tuple[Look, ...]
    ttft: tuple[tuple[float, float], ...]  # when asked, seconds until the first token
    least_redundancy: int
    most_shards: int
    shard_seconds: float
    ratio: float
    failed: int


def summarise(
    around: Circumstances, application: str, phases: Sequence[Phase], looks: Sequence[Look]
) -> ScaleReport:
    """Count. looks: at least two."""
    most = max(look.shards for look in looks)
    used = shard_seconds(looks)
    results = tuple(_phase(phase) for phase in phases)
    return ScaleReport(
        "scale",
        around,
        application,
        results,
        tuple(looks),
        tuple((s.started_s - phase.began_s, s.ttft_s) for phase in phases for s in phase.streams),
        min(look.redundancy for look in looks),
        most,
        used,
        used / (most * (looks[-1].at_s - looks[0].at_s)),
        sum(result.failed for result in results),
    )


def shard_seconds(looks: Sequence[Look]) -> float:
    """Each count holds until the next look."""
    steps = itertools.pairwise(looks)
    return sum(now.shards * (then.at_s - now.at_s) for now, then in steps)


def _phase(phase: Phase) -> PhaseResult:
    good = [stream for stream in phase.streams if not stream.failed]
    return PhaseResult(
        phase.rate,
        phase.start_s,
        phase.end_s,
        len(phase.streams),
        len(phase.streams) - len(good),
        percentile([s.ttft_s for s in good], 50),
        percentile([s.ttft_s for s in good], 95),
        sum(s.tokens for s in good) / (phase.end_s - phase.start_s),
        tuple(sorted({s.error for s in phase.streams if s.error}))[:3],
    )


def text_of(report: ScaleReport) -> str:
    """A table, with what must be known to repeat it."""
    rows = [
        (
            f"{p.rate:g}",
            f"{p.start_s:.0f}",
            f"{p.end_s:.0f}",
            str(p.requests),
            str(p.failed),
            f"{1e3 * p.ttft_p50_s:.0f}",
            f"{1e3 * p.ttft_p95_s:.0f}",
            f"{p.tokens_per_s:.1f}",
        )
        for p in report.phases
    ]
    changes = [
        f"{look.at_s:6.0f} s  {look.shards} shards, {look.replicas} replicas; "
        f"{'; '.join(look.scaling)}"
        for before, look in zip(report.looks, report.looks[1:], strict=False)
        if (before.shards, before.replicas) != (look.shards, look.replicas)
    ]
    return "\n".join(
        (
            describe(report.circumstances),
            "",
            markdown_table(HEAD, rows),
            "",
            *changes,
            f"redundancy at least {report.least_redundancy}; {report.failed} requests failed",
            f"shard-seconds {report.shard_seconds:.0f}, {report.ratio:.2f} of a pool that always "
            f"has {report.most_shards}",
            *(f"{p.rate:g} requests/s: {error}" for p in report.phases for error in p.errors),
        )
    )


def plot(report: ScaleReport, png: Path) -> None:
    """Three panels over time. Raises ConfigError if matplotlib is not installed."""
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise ConfigError(
            "matplotlib is not installed: pip install matplotlib, or make setup."
        ) from error
    mpl.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(3, 1, figsize=(WIDTH, HEIGHT), sharex=True, layout="tight")
    load, actors, first = panels
    for phase in report.phases:
        load.plot([phase.start_s, phase.end_s], [phase.rate] * 2, color="tab:gray", lw=3)
    at_s = [look.at_s for look in report.looks]
    for name, values in (
        ("shards, with those that start or stop", [look.shards for look in report.looks]),
        ("shards that serve", [look.serving_shards for look in report.looks]),
        ("attention replicas", [look.replicas for look in report.looks]),
    ):
        actors.step(at_s, values, where="post", label=name)
    first.plot(*zip(*report.ttft, strict=True), ".", color="tab:green")
    load.set(
        ylabel="requests/s", title=f"{report.failed} failed, {report.ratio:.2f} of a fixed pool"
    )
    actors.set(ylabel="actors", ylim=(0, None))
    actors.legend(fontsize="small")
    first.set(ylabel="first token, s", xlabel="s", yscale="log")
    for panel in panels:
        panel.grid(alpha=0.3)
    figure.savefig(png, dpi=110)
    pyplot.close(figure)
